"""The application and the agent found by DNS, with a name server that behaves well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ratelimit.haproxy.process import files
from tests.helpers.nameserver import Code, NameServer
from tests.helpers.world import (
    HAPROXY,
    LONGEST,
    World,
    free_port,
    haproxy_version,
    until,
    world,
)
from tests.integration.containers import Containers
from tests.integration.visitors import load, more

pytestmark = pytest.mark.integration

NAME = "app.invalid"
LOCAL = "localhost"
"""The only name that the system's own resolver knows as well, wherever the tests run."""


def addresses(first: int, last: int) -> list[str]:
    return [f"127.8.{n >> 8}.{n & 255}" for n in range(first, last + 1)]


@contextlib.asynccontextmanager
async def fleet(
    folder: Path,
    name: str,
    *known: str,
    agent: bool = False,
    env: dict[str, str] | None = None,
) -> AsyncIterator[tuple[World, NameServer, Containers]]:
    """Yield HAProxy with a name server that knows containers, which are not started."""
    names, containers = NameServer(), Containers()
    await names.start()
    names.addresses[name] = list(known)
    settings = {
        "RATELIMIT_DNS": f"{names.host}:{names.port}",
        "RATELIMIT_BACKEND_DNS": f"{name}:{containers.port}",
        "RES_OPTIONS": "timeout:1 attempts:1",  # of the system's resolver, which knows no NAME
        **(env or {}),
    }
    try:
        async with asyncio.timeout(LONGEST), world(folder, agent=agent, env=settings) as made:
            yield made, names, containers
    finally:
        names.close()
        await containers.close()


def test_more_addresses_than_an_answer_of_512_bytes_holds(tmp_path: Path) -> None:
    async def main() -> None:
        known = addresses(1, 45)
        async with fleet(tmp_path, NAME, *known) as (w, _, containers):
            await containers.start(*known)
            await until(lambda: up(w, known), "all are up")
            assert await w.client("127.9.1.1").statuses(100) == [200] * 100
            assert len(containers.requests) == 45

    asyncio.run(main())


async def some_up(w: World) -> bool:
    return bool(await w.up())


async def up(w: World, known: list[str]) -> bool:
    return {address.rpartition(":")[0] for address in await w.up()} == set(known)


@pytest.mark.parametrize("trouble", [None, *Code], ids=str)
def test_no_request_is_lost_while_the_name_server_fails(
    tmp_path: Path, trouble: Code | None
) -> None:
    """Without a code it is silent."""

    async def main() -> None:
        known = addresses(1, 3)
        async with fleet(tmp_path, NAME, *known) as (w, names, containers):
            await containers.start(*known)
            await until(lambda: up(w, known), "all are up")
            async with load(w):
                names.silent, names.code = trouble is None, trouble or Code.GOOD
                asked = names.asked[NAME]
                await until(lambda: names.asked[NAME] > asked + 1, "HAProxy asks again")
            assert await up(w, known)

    asyncio.run(main())


def test_what_a_name_server_does_not_say_is_no_reason_to_remove_a_server() -> None:
    """HAProxy's own default is 30 s; tests/story/ waits for longer than that."""
    config = (files() / "haproxy.cfg").read_text()
    held = dict(re.findall(r"^ +hold (\w+) (\w+)$", config, re.MULTILINE))
    assert held == dict.fromkeys(("timeout", "refused", "nx", "other"), "1h")


def test_servers_in_dns_that_do_not_listen_yet_cost_no_request(tmp_path: Path) -> None:
    async def main() -> None:
        old, new = addresses(1, 3), addresses(4, 40)
        async with fleet(tmp_path, NAME, *old) as (w, names, containers):
            await containers.start(*old)
            await until(lambda: up(w, old), "three are up")
            async with load(w, clients=20, pause=0.01) as answers:
                names.addresses[NAME] = [*old, *new]
                asked = names.asked[NAME]
                await until(lambda: names.asked[NAME] > asked + 2, "HAProxy knows them")
                await more(answers, 500)
                await containers.start(*new)
                await until(lambda: up(w, [*old, *new]), "all are up")
                await more(answers, 500)
                names.addresses[NAME] = old
                await containers.stop(*new)
                await more(answers, 500)
                await until(lambda: up(w, old), "three are left")

    asyncio.run(main())


def test_servers_that_stop_before_their_addresses_are_removed_cost_no_request(
    tmp_path: Path,
) -> None:
    """HAProxy prefers each of them to the busy one until three attempts have taken it off."""

    async def main() -> None:
        (first, *others) = addresses(1, 40)
        async with fleet(tmp_path, NAME, first) as (w, names, containers):
            await containers.start(first, *others)
            await until(lambda: up(w, [first]), "the first is up")
            containers.answering.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(w.client("127.9.1.1").get())
                await until(lambda: bool(containers.requests), "the first is busy")
                names.addresses[NAME] = [first, *others]

                async def checked() -> bool:
                    found = await w.servers("app")
                    return sum(one["check_code"] == "200" for one in found.values()) == 40

                await until(checked, "all have passed a check")
                await containers.stop(*others)
                asked = group.create_task(w.client("127.9.1.2").get())
                await until(
                    lambda: containers.requests[first] == 2 or asked.done(), "it meets the first"
                )
                containers.answering.set()
            assert asked.result().status == 200

    asyncio.run(main())


def test_a_new_server_that_is_not_ready_is_taken_off_by_its_first_check(tmp_path: Path) -> None:
    """From 3.1 on, it gets no request before that."""

    async def main() -> None:
        (first, *new), unready = addresses(1, 6), Containers()
        many = {"RATELIMIT_ALONE_RATE": "100000"}
        async with fleet(tmp_path, NAME, first, env=many) as (w, names, containers):
            unready.port, unready.status = containers.port, 503
            await containers.start(first)
            await unready.start(*new)
            await until(lambda: up(w, [first]), "the first is up")
            names.addresses[NAME] = [first, *new]

            async def checked() -> bool:
                found = await w.servers("app")
                return sum(one["check_code"] == "503" for one in found.values()) == len(new)

            answers = []
            while not await checked():
                answers.append((await w.client("127.9.1.2").get()).status)
            assert haproxy_version() < (3, 1) or set(answers) <= {200}
            assert await w.client("127.9.1.3").statuses(50) == [200] * 50
            await unready.close()

    asyncio.run(main())


@pytest.mark.parametrize("silent", [True, False])
def test_a_reload_while_the_name_server_is_silent_or_checks_are_slow(
    tmp_path: Path, silent: bool
) -> None:
    async def main() -> None:
        async with fleet(tmp_path, LOCAL, "127.0.0.1", agent=True) as (w, names, containers):
            # The system's resolver may prefer either.
            await containers.start("127.0.0.1", "::1")
            await until(lambda: some_up(w), "it is up")
            names.silent = silent
            containers.check_seconds = 0.0 if silent else 0.4
            async with load(w):
                await w.reload()

    asyncio.run(main())


def test_an_agent_whose_name_is_not_known_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        known, agent, port = addresses(1, 1), "agent.invalid", free_port()
        where = {"RATELIMIT_SPOP": f"{agent}:{port}"}
        async with fleet(tmp_path, NAME, *known, env=where) as (w, names, containers):
            await containers.start(*known)
            await until(lambda: up(w, known), "it is up")
            client = w.client("127.9.1.4")
            assert await client.statuses(3) == [200] * 3
            listen = f"unix://{tmp_path}/spop.sock,tcp://127.0.0.1:{port}"
            monkeypatch.setenv("RATELIMIT_AGENT__LISTEN", listen)
            w.start_agent()
            await until(w.agent_listens, "the agent listens")
            names.addresses[agent] = ["127.0.0.1"]
            await until(lambda: w.agent_is("UP"), "HAProxy has found the agent")
            assert await client.statuses(3) == [200] * 3
            assert w.checks() == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "settings",
    [
        {"RATELIMIT_SPOP": "no-such-name.invalid:9190"},
        {"RATELIMIT_BACKEND2": "no-such-name.invalid:80", "RATELIMIT_DNS": "127.0.0.1:53"},
        {"RATELIMIT_BACKEND_DNS": "no-such-name.invalid:80"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_haproxy_starts_with_a_name_that_is_not_known_yet(settings: dict[str, str]) -> None:
    command = [*HAPROXY, "-c", "-f", str(files() / "haproxy.cfg")]
    env = {"RES_OPTIONS": "timeout:1 attempts:1", "PATH": os.environ["PATH"], **settings}
    checked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
