"""HAProxy replaced by another one, of another version for example, without a gap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.world import HAPROXY, LONGEST, SHIPPED, Answer, World, free_port, until, world
from tests.integration.visitors import load, more

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def balancer(folder: Path, *proxies: World) -> Iterator[World]:
    """Yield a load balancer in front of two; clients come to its port."""
    first, second = (f"127.0.0.1:{proxy.port}" for proxy in proxies)
    front = World(folder, port=free_port())
    settings = {
        "BALANCER_LISTEN": f"127.0.0.1:{front.port}",
        "BALANCER_FIRST": first,
        "BALANCER_SECOND": second,
    }
    with (folder / "balancer.log").open("wb") as log:
        front.haproxy = subprocess.Popen(
            [*HAPROXY, "-db", "-f", str(Path(__file__).parent / "balancer.cfg")],
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
        )
    try:
        yield front
    finally:
        front.haproxy.terminate()
        front.haproxy.wait(5)


def state(folder: Path) -> str:
    return f'[store]\nstate_dir = "{folder}"\n'


def edit(files: Path) -> None:
    """Trust the load balancer, and let an idle client hold a process for less than 15 s."""
    (files / "lb.lst").write_text("127.0.0.1\n")
    config = files / "haproxy.cfg"
    config.write_text(config.read_text().replace("http-keep-alive 15s", "http-keep-alive 3s"))


def test_two_proxies_are_replaced_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        folders = [tmp_path / name for name in ("first", "second", "front")]
        for folder in folders:
            folder.mkdir()
        async with (
            asyncio.timeout(LONGEST),
            world(folders[0], state(folders[0]), edit=edit, processing=SHIPPED) as first,
            world(folders[1], state(folders[1]), edit=edit, processing=SHIPPED) as second,
        ):
            with balancer(folders[2], first, second) as front:
                await until(front.listens, "the load balancer listens")
                async with load(front) as answers:
                    for proxy in (first, second):
                        await replace(proxy, answers)
                await front.down()

    asyncio.run(main())


async def replace(proxy: World, answers: list[Answer]) -> None:
    """Stop an HAProxy as docker-compose.yml has it stopped, and start another one in its place."""
    old = proxy.haproxy
    assert old is not None
    # A client that is idle, and holds the old process for as long as HAProxy lets it.
    assert (await proxy.client("127.9.4.1").get()).status == 200
    old.send_signal(signal.SIGUSR1)
    await more(answers)
    await until(lambda: old.poll() is not None, "the old one ends")
    await more(answers)
    proxy.start_haproxy()
    await until(proxy.listens, "the new one listens")
    await until(lambda: proxy.agent_is("UP"), "it sees its agent")
    before = proxy.requests.total()
    await until(lambda: proxy.requests.total() > before, "the load balancer uses it")
