from __future__ import annotations

from ratelimit.wire.writer import Writer


def test_what_was_written_is_taken_once() -> None:
    writer = Writer(3)
    assert writer.room() == 3
    for value in b"ab":
        writer.byte(value)
    assert (writer.pos, writer.room()) == (2, 1)
    assert writer.take() == b"ab"
    assert (writer.pos, writer.room(), writer.take()) == (0, 3, b"")
    writer.byte(255)
    assert writer.take() == b"\xff", "nothing is left of what was there before"


def test_a_string_is_written_after_its_length() -> None:
    writer = Writer(4)
    writer.string(b"abc")
    assert (writer.room(), writer.take()) == (0, b"\x03abc")
