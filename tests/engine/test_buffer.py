"""A buffer that is filled from the front and taken whole."""

from __future__ import annotations

from ratelimit.engine.buffer import Buffer


def test_what_was_written_is_taken_once() -> None:
    buffer = Buffer(3)
    assert buffer.room() == 3
    for value in b"ab":
        buffer.byte(value)
    assert (buffer.pos, buffer.room()) == (2, 1)
    assert buffer.take() == b"ab"
    assert (buffer.pos, buffer.room(), buffer.take()) == (0, 3, b"")
    buffer.byte(255)
    assert buffer.take() == b"\xff", "nothing is left of what was there before"
