"""``/v1/events``, and the bus behind it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from ratelimit.api import events as stream
from ratelimit.events import bus as buses
from tests.helpers.running import block, lift, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from httpx import AsyncClient, Response


LATER = 1 << 31


class Reader:
    """Takes server-sent events apart."""

    def __init__(self, response: Response) -> None:
        self.comments = 0
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[int, str, dict[str, Any]]:
        """Return the id, name and data of the next event."""
        found: dict[str, str] = {}
        async with asyncio.timeout(5):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    found[name] = value
                elif "data" in found:
                    return int(found.get("id", 0)), found["event"], json.loads(found["data"])
                else:
                    found = {}
        raise AssertionError("the stream has ended")


@pytest.mark.integration
def test_events_are_heard_and_resumed(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            async with api.client.stream("GET", "/v1/events") as response:
                assert response.headers["content-type"] == "text/event-stream"
                assert response.headers["cache-control"] == "no-store"
                reader = Reader(response)
                api.events.on_block(block("192.0.2.1", LATER))
                first, name, data = await reader.next()
                assert (name, data["key"], data["limit"]) == ("block", "192.0.2.1", "default")
                await api.client.post("/v1/blocks", json={"key": "192.0.2.2", "ttl": 60})
                _, name, data = await reader.next()
                assert (name, data["key"], data["by"]) == ("block", "192.0.2.2", "operator")
            await until(lambda: len(api.control.bus) == 0)
            await api.client.delete("/v1/blocks/192.0.2.2")
            api.events.on_lift(lift("default", "192.0.2.1"))
            api.events.on_lift(lift("default", "192.0.2.9"))
            api.events.on_lost()
            api.events.on_back()
            headers = {"Last-Event-ID": str(first)}
            async with api.client.stream("GET", "/v1/events", headers=headers) as response:
                reader = Reader(response)
                seen = [await reader.next() for _ in range(5)]
            assert [(name, data.get("key"), data.get("by")) for _, name, data in seen] == [
                ("block", "192.0.2.2", "operator"),
                ("unblock", "192.0.2.2", "operator"),
                ("unblock", "192.0.2.1", ""),
                ("store.lost", None, None),
                ("store.back", None, None),
            ]
            ids = [number for number, _, _ in seen]
            assert ids == sorted(ids)
            assert first < ids[0]

    asyncio.run(main())


@pytest.mark.integration
def test_what_was_forgotten_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "HISTORY", 3)

    async def main() -> None:
        async with running(tmp_path) as api:
            events = [api.control.bus.publish("reload", number=number) for number in range(6)]
            for last, gap in ((events[1].id, True), (events[2].id, False), (7, True)):
                headers = {"Last-Event-ID": str(last)}
                async with api.client.stream("GET", "/v1/events", headers=headers) as response:
                    reader = Reader(response)
                    if gap:
                        assert (await reader.next())[1] == "gap"
                    assert (await reader.next())[0] == events[3].id
            for odd in ("", "x", "-1", "9" * 400):
                headers = {"Last-Event-ID": odd}
                async with api.client.stream("GET", "/v1/events", headers=headers) as response:
                    await until(lambda: len(api.control.bus) == 1)
                    made = api.control.bus.publish("reload")
                    assert (await Reader(response).next())[0] == made.id
                await until(lambda: len(api.control.bus) == 0)

    asyncio.run(main())


@pytest.mark.integration
def test_a_silent_stream_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT", 0.05)

    async def main() -> None:
        async with running(tmp_path) as api, api.client.stream("GET", "/v1/events") as response:
            async with asyncio.timeout(5):
                async for line in response.aiter_lines():
                    if line.startswith(":"):
                        return
        raise AssertionError("no comment came")

    asyncio.run(main())


@pytest.mark.integration
def test_many_events_are_sent_a_few_in_each_turn_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            turn, sent = 0, []

            def next_turn() -> None:
                nonlocal turn
                turn += 1
                asyncio.get_running_loop().call_soon(next_turn)

            async def note(response: object, text: str) -> None:
                if "data: " in text:
                    sent.append((turn, text.count("data: ")))
                await write(response, text)  # type: ignore[arg-type]

            write = stream._write
            monkeypatch.setattr(stream, "_write", note)
            first = api.control.bus.publish("reload", ok=True, problems=[])
            for _ in range(500):
                api.control.bus.publish("reload", ok=True, problems=[])
            next_turn()
            headers = {"Last-Event-ID": str(first.id)}
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(listen(api.client, headers, 500))
            assert sum(count for _, count in sent) == 4 * 500
            assert max(count for _, count in sent) <= 16
            assert len({turn for turn, _ in sent}) == len(sent), "two in one turn"

    async def listen(client: AsyncClient, headers: dict[str, str], count: int) -> None:
        async with client.stream("GET", "/v1/events", headers=headers) as response:
            reader = Reader(response)
            for _ in range(count):
                await reader.next()

    asyncio.run(main())


@pytest.mark.integration
def test_a_listener_that_does_not_read_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_WRITE_TIMEOUT", 0.2)

    async def main() -> None:
        async with running(tmp_path) as api:
            _, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=1)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            bus = api.control.bus
            await until(lambda: len(bus) == 1)

            def dropped() -> bool:
                for _ in range(20):
                    bus.publish("block", key="k" * 4000)
                return not len(bus)

            await until(dropped)
            writer.close()
            assert (await api.client.get("/healthz")).status_code == 200

    asyncio.run(main())


@pytest.mark.integration
def test_so_many_can_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "MAX_LISTENERS", 1)

    async def main() -> None:
        async with running(tmp_path) as api, api.client.stream("GET", "/v1/events") as first:
            assert first.status_code == 200
            answer = await api.client.get("/v1/events")
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            # Its connection is one like others again, which may not stay for ever.
            await until(
                lambda: sum(one.stream is None for one in api.server.connections.open()) == 1
            )

    asyncio.run(main())
