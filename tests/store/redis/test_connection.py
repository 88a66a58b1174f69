"""One connection to a server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ratelimit.steps import Steps
from ratelimit.store import StoreError
from ratelimit.store.redis.connection import MAX_UNSENT, Link
from ratelimit.store.redis.url import parse
from tests.helpers.servers import Server
from tests.store.conftest import run

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("asking", [False, True])
def test_a_request_that_fills_the_buffer_by_itself_fails(server: Server, asking: bool) -> None:
    target = parse(server.url)

    async def main() -> None:
        link = await Link.open(target, target.endpoints[0], target.login, timeout=10)
        try:
            server.pause()
            waiting = asyncio.create_task(link.call(60, "PING"))
            await asyncio.sleep(0)
            # More than the kernel and the transport take together.
            with pytest.raises(StoreError, match="the server does not read") as caught:
                await link.call(60, "ECHO", bytes(64 * MAX_UNSENT), asking=asking)
            assert not caught.value.unsent
            with pytest.raises(StoreError, match="does not read"):
                await waiting
            with pytest.raises(StoreError) as caught:
                await link.call(60, "PING")
            assert caught.value.unsent
        finally:
            server.resume()
            await link.close()

    run(main)


def test_a_password_file_on_a_disk_that_hangs_holds_up_nothing(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server("--requirepass", "hush")
    path = tmp_path / "password"
    path.write_text("hush\n")
    target = parse(f"redis://127.0.0.1:{server.port}?password_file={path}")
    path.unlink()
    os.mkfifo(path)  # a read waits until something is written
    late = threading.Timer(20, path.write_text, ["hush\n"])
    late.daemon = True
    late.start()  # in case the loop waits for it

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(StoreError, match="password: no answer from the disk") as caught:
                await Link.open(target, target.endpoints[0], target.login, timeout=0.1)
            assert caught.value.unsent
        assert [one.name for one in threading.enumerate()].count("password") == 1
        opening = asyncio.create_task(
            Link.open(target, target.endpoints[0], target.login, timeout=10)
        )
        await asyncio.to_thread(path.write_text, "hush\n")
        link = await opening
        assert await link.call(10, "PING") == b"PONG"
        await link.close()

    run(main)
    late.cancel()


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock is set forward by ``ahead`` seconds."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def test_messages_are_taken_in_slices_and_what_is_behind_them_is_not_late(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ratelimit.turns.SLICE", 0)  # a step for each
    target = parse(server.url)
    count, timeout = 500, 10
    turn = 0
    taken: list[int] = []

    async def main(loop: Clock) -> None:
        def count_turns() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(count_turns)

        def push(message: list[object]) -> Steps[None] | None:
            return hear() if message and message[0] == b"message" else None

        def hear() -> Steps[None]:
            taken.append(turn)
            yield
            taken.append(turn)
            loop.ahead += timeout  # so long does that take

        link = await Link.open(target, target.endpoints[0], target.login, timeout, push)
        link.send("SUBSCRIBE", "news")
        await link.call(timeout, "PING")
        count_turns()
        with server.client() as client:
            for _ in range(count):
                # More than the kernel takes for a connection.
                client.publish("news", bytes(20_000))
        assert await link.call(timeout, "PING") == b"PONG"
        assert len(taken) == len(set(taken)) == 2 * count
        assert await link.call(timeout, "PING") == b"PONG"
        await link.close()

    with asyncio.Runner(loop_factory=Clock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Clock)
        runner.run(main(loop))
