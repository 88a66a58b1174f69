from __future__ import annotations

from ratelimit.wire.writer import Writer


def test_writer_starts_again_after_take() -> None:
    writer = Writer(8)
    writer.string(b"abc")
    assert writer.room() == 4
    assert writer.take() == b"\x03abc"
    assert writer.room() == 8
    assert writer.take() == b""


def test_what_was_written_is_taken_once() -> None:
    buffer = Writer(3)
    assert buffer.room() == 3
    for value in b"ab":
        buffer.byte(value)
    assert (buffer.pos, buffer.room()) == (2, 1)
    assert buffer.take() == b"ab"
    assert (buffer.pos, buffer.room(), buffer.take()) == (0, 3, b"")
    buffer.byte(255)
    assert buffer.take() == b"\xff", "nothing is left of what was there before"
