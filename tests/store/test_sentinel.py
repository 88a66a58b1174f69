"""A primary that Sentinels watch over, and its failover."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.acl import rights
from tests.store.conftest import block, nodes, run
from tests.store.servers import PROGRAM, Server, until

pytestmark = pytest.mark.integration

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


def watch(sentinel: Server, primary: Server, *lines: str) -> Server:
    """Make a server, not yet started, a Sentinel."""
    path = sentinel.folder / f"{sentinel.port}.conf"
    path.write_text(
        "\n".join(
            (
                f"port {sentinel.port}",
                "bind 127.0.0.1",
                f"unixsocket {sentinel.socket}",
                f"dir {sentinel.folder}",
                f"sentinel monitor main 127.0.0.1 {primary.port} 1",
                "sentinel down-after-milliseconds main 300",
                "sentinel failover-timeout main 2000",
                *lines,
                "",
            )
        )
    )
    assert PROGRAM is not None
    sentinel._command = [*PROGRAM, str(path), "--sentinel"]
    return sentinel.start()


def test_a_failover(make_server: Callable[..., Server], logs: list[Any]) -> None:
    primary = make_server()
    replica = make_server("--replicaof", f"127.0.0.1 {primary.port}")
    with replica.client() as client:
        while client.info("replication")["master_link_status"] != "up":
            time.sleep(0.01)
    # It looks for replicas at its start, and then every ten seconds.
    sentinel = watch(make_server(start=False), primary)
    absent = make_server(start=False)
    url = f"redis+sentinel://127.0.0.1:{absent.port},127.0.0.1:{sentinel.port}/main"

    async def main() -> None:
        with sentinel.client() as client:
            await until(lambda: len(client.sentinel_slaves("main")) == 1)
        async with nodes(url, 2) as [(first, one), (second, two)]:
            await first.save(block("before"))
            await first.exchange("default", 0, 7, 600_000, RECORD)
            with primary.client() as client:
                # WAIT is for what its own connection wrote, and all that was written before.
                client.set("written", 1)
                assert client.wait(1, 40_000) == 1
            primary.kill()
            await until(lambda: not first.up and not second.up)
            second.put(block("meanwhile"))
            await until(lambda: first.up and second.up)
            await until(lambda: one.clients() == two.clients() == {"before", "meanwhile"})
            answer = await second.exchange("default", 0, 7, 600_000, RECORD)
            assert int.from_bytes(answer[12:16], "little") == 2
            assert first.outages >= 1 and second.outages >= 1
            # The old primary comes back and takes itself for one still, but nobody goes to it.
            primary.start()
            await first.save(block("after"))
            await until(lambda: "after" in two.clients())
            assert primary.do("DBSIZE") == 0
            assert replica.do("HEXISTS", "test:{fleet}:blocks", "default|after") == 1

    run(main)
    events = [line["event"] for line in logs]
    assert events.count("store lost") == events.count("store back") >= 2


def test_what_sentinels_say(make_server: Callable[..., Server]) -> None:
    primary = make_server("--requirepass", "one")
    sentinel = watch(
        make_server(start=False), primary, "sentinel auth-pass main one", "requirepass two"
    )
    base = f"127.0.0.1:{sentinel.port}"

    async def main() -> None:
        for url, problem in {
            f"redis+sentinel://:one@{base}/main?sentinel_password=two": "",
            f"redis+sentinel://:one@{base}/other?sentinel_password=two": "no service other",
            f"redis+sentinel://:one@{base}/main": "Sentinel 127.0.0.1",
            f"redis+sentinel://:one@{base}/main?sentinel_password=one": "refuses the user",
            f"redis+sentinel://{base}/main?sentinel_password=two": "asks for a password",
            "redis+sentinel://127.0.0.1:1/main": "Sentinel 127.0.0.1:1: Connection refused",
        }.items():
            async with nodes(url) as [(store, _)]:
                assert problem in store.problem
                assert store.up is (problem == "")

    run(main)


def test_the_documented_rights(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    primary.do("ACL", "SETUSER", "ratelimit", *rights("server"))
    sentinel = watch(make_server(start=False), primary)
    sentinel.do("ACL", "SETUSER", "ratelimit", *rights("sentinel"))
    address = f"127.0.0.1:{sentinel.port}/main?sentinel_user=ratelimit&sentinel_password="

    async def main() -> None:
        url = f"redis+sentinel://ratelimit:secret@{address}"
        async with nodes(url + "secret", 2) as [(first, _), (_, two)]:
            await first.save(block("a"))
            await until(lambda: two.clients() == {"a"})
        async with nodes(url + "wrong") as [(store, _)]:
            assert "refuses the user or the password" in store.problem

    run(main)
    with sentinel.client() as client:
        assert {line["reason"] for line in client.acl_log()} == {"auth"}
