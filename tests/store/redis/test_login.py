"""Who the agent is to a server, over what, and which servers will do."""

from __future__ import annotations

import re
import ssl
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ratelimit.exceptions import ConfigError
from ratelimit.store import open_store
from ratelimit.store.base import Events, Node
from ratelimit.store.redis.url import parse
from tests.helpers.acl import commands, rights
from tests.helpers.servers import Server, until
from tests.store.conftest import block, lift, nodes, run

pytestmark = pytest.mark.integration

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)


def test_the_documented_rights_are_enough_and_no_more_than_needed(server: Server) -> None:
    server.do("ACL", "SETUSER", "ratelimit", *rights("server"))
    url = f"redis://ratelimit:secret@127.0.0.1:{server.port}"

    async def main() -> None:
        server.do("CONFIG", "RESETSTAT")
        async with nodes(url, 2) as [(first, one), (second, two)]:
            await first.save(block("192.0.2.1"))
            await first.exchange("default", 0, 7, 5000, RECORD, b"hot")
            await until(lambda: two.hot and two.blocks)
            # So many lifts that one of them is forgotten for each that comes.
            many = [word for n in range(200_001) for word in (f"default|{n}", "9999999999 1")]
            server.do("HSET", "test:{fleet}:lifts", *many)
            await second.nodes_list()
            assert await second.claim("load", "high", 60)
            assert await second.lift(lift("192.0.2.1"))
            await until(lambda: not one.blocks)
        with server.client() as client:
            used = {
                name.removeprefix("cmdstat_")
                for name, calls in client.info("commandstats").items()
                # Not what this test itself, another user, has asked, or its library by itself.
                if name
                not in ("cmdstat_info", "cmdstat_config|resetstat", "cmdstat_client|setinfo")
            }
        assert used - {"hello"} == commands("server")  # HELLO is refused to no user
        assert not any(line["reason"] for line in _refusals(server))
        for wrong, problem in {
            f"redis://127.0.0.1:{server.port}": "",
            f"redis://ratelimit:wrong@127.0.0.1:{server.port}": "refuses the user or the password",
            f"redis://nobody:secret@127.0.0.1:{server.port}": "refuses the user or the password",
        }.items():
            async with nodes(wrong) as [(store, _)]:
                assert problem in store.problem
                assert "secret" not in store.problem
                assert store.up is (problem == "")
        server.do("ACL", "SETUSER", "ratelimit", "-hset")
        async with nodes(url) as [(store, _)]:
            assert "ACL" in store.problem

    run(main)


def test_the_documented_rights_reach_no_other_key_and_channel(server: Server) -> None:
    server.do("ACL", "SETUSER", "ratelimit", *rights("server"))
    url = f"redis://ratelimit:secret@127.0.0.1:{server.port}"

    async def main() -> None:
        async with nodes(url, prefix="other") as [(store, _)]:
            assert "ACL" in store.problem

    run(main)
    assert {line["reason"] for line in _refusals(server)} <= {"key", "channel"}
    assert server.do("KEYS", "other:*") == []


def _refusals(server: Server) -> list[dict[str, str]]:
    """Return what the server's ACL has refused."""
    with server.client() as client:
        return [{name: str(value) for name, value in entry.items()} for entry in client.acl_log()]


def test_passwords(make_server: Callable[..., Server], folder: Path) -> None:
    server = make_server("--requirepass", "s@cr:t/")
    (folder / "password").write_text("s@cr:t/\n")

    async def main() -> None:
        for url in (
            f"redis://:s%40cr%3At%2F@127.0.0.1:{server.port}/3",
            f"redis://default:s%40cr%3At%2F@127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}?password_file={folder}/password",
            f"unix://{server.socket}?password_file={folder}/password&db=2",
        ):
            async with nodes(url) as [(store, _)]:
                assert store.up
        async with nodes(server.url) as [(store, _)]:
            assert "requires a password" in store.problem

    run(main)


CA = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
"""What Python 3.13 and later want of a CA, beside what openssl adds by itself."""


def certificates(folder: Path, ca: tuple[str, ...] = CA) -> None:
    """Make a CA, a certificate for localhost and one for the agent, and another CA."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt",
                "-subj", f"/CN={name}", "-days", "2", *ca)  # fmt: skip
    for name in ("server", "agent"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "names").write_text("subjectAltName=DNS:localhost")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.crt", "-days", "2", "-extfile",
                "names")  # fmt: skip


def test_tls(make_server: Callable[..., Server], folder: Path) -> None:
    certificates(folder)
    server = make_server(
        "--tls-cert-file", f"{folder}/server.crt", "--tls-key-file", f"{folder}/server.key",
        "--tls-ca-cert-file", f"{folder}/ca.crt", tls=True,
    )  # fmt: skip
    base = f"rediss://localhost:{server.port}?cacert={folder}"
    mine = f"cert={folder}/agent.crt&key={folder}/agent.key"

    async def main() -> None:
        async with nodes(f"{base}/ca.crt&{mine}", 2) as [(first, _), (_, seen)]:
            assert first.up
            await first.save(block("192.0.2.1"))
            await until(lambda: seen.blocks)
        for wrong, problem in {
            f"{base}/other.crt&{mine}": "certificate is refused",
            f"rediss://127.0.0.1:{server.port}?cacert={folder}/ca.crt&{mine}": "IP address",
            f"rediss://localhost:{server.port}": "certificate is refused",
            f"{base}/ca.crt": "TLS",
            f"redis://127.0.0.1:{server.port}": "closed|reset",
        }.items():
            async with nodes(wrong) as [(store, _)]:
                assert re.search(problem, store.problem)

        # By its address, which no certificate has, and by a name that another server has.
        address = f"rediss://127.0.0.1:{server.port}?cacert={folder}/ca.crt&{mine}"
        async with nodes(parse(address, "localhost")) as [(store, _)]:
            assert store.up
        async with nodes(parse(address, "other.example")) as [(store, _)]:
            assert "certificate is not valid for 'other.example'" in store.problem
            assert "store.tls_server_name" in store.problem
        # As from Python 3.13 on, which is stricter.
        strict = parse(f"{base}/ca.crt&{mine}")
        assert strict.tls is not None
        strict.tls.verify_flags |= ssl.VERIFY_X509_STRICT
        async with nodes(strict) as [(store, _)]:
            assert store.up

    run(main)
    plain = make_server()

    async def main_plain() -> None:
        url = f"rediss://localhost:{plain.port}?cacert={folder}/ca.crt"
        async with nodes(url) as [(store, _)]:
            assert "uses TLS" in store.problem

    run(main_plain)


def test_a_ca_without_key_usage(make_server: Callable[..., Server], folder: Path) -> None:
    certificates(folder, ca=())
    server = make_server(
        "--tls-cert-file", f"{folder}/server.crt", "--tls-key-file", f"{folder}/server.key",
        "--tls-ca-cert-file", f"{folder}/ca.crt", "--tls-auth-clients", "no", tls=True,
    )  # fmt: skip
    target = parse(f"rediss://localhost:{server.port}?cacert={folder}/ca.crt")
    assert target.tls is not None
    target.tls.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13 on

    async def main() -> None:
        async with nodes(target) as [(store, _)]:
            assert "does not include key usage extension" in store.problem
            assert "keyUsage=critical,keyCertSign,cRLSign" in store.problem

    run(main)


@pytest.mark.parametrize("prefix", ["", "a{b", "a b", "x" * 65])
def test_a_prefix_that_can_not_be(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.prefix"):
        open_store("redis://h", prefix=prefix, state_dir="", events=Events(), node=Node("", "", 0))
