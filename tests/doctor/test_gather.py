"""What the doctor sees of an agent's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ratelimit.api.client import Client
from ratelimit.config import load
from ratelimit.doctor import diagnose
from ratelimit.exceptions import FrameError
from ratelimit.spop.handshake import read_health, write_agent_disconnect, write_agent_hello


async def spop_finding(listener: Callable[..., Awaitable[None]], path: Path) -> str:
    server = await asyncio.start_unix_server(listener, path)
    async with server:
        config = path.with_suffix(".toml")
        config.write_text(f"[agent]\nlisten = ['unix://{path}']")
        return (await diagnose(load(config), Client("http://127.0.0.1:1")))[0].finding


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (write_agent_hello(16380), "answers HAProxy's health check"),
        (write_agent_disconnect(13, "full"), "full (status 13)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak SPOP"),
        (b"\0\0\0\1\xff", "does not speak SPOP"),
        (b"\0\0\0\0", "does not speak SPOP"),
        (b"\0\0", "closes the connection without an answer"),
        (b"", "closes the connection without an answer"),
    ],
)
def test_what_answers_in_the_place_of_an_agent(tmp_path: Path, answer: bytes, finding: str) -> None:
    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    assert finding in asyncio.run(spop_finding(listener, tmp_path / "spop.sock"))


def test_a_frame_that_is_no_answer_to_a_health_check() -> None:
    with pytest.raises(FrameError):
        read_health(b"")
