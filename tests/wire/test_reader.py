from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import FrameError
from ratelimit.wire.reader import Reader
from ratelimit.wire.writer import Writer
from tests.helpers import wire

U64 = st.integers(0, 2**64 - 1)


def reader(data: bytes) -> Reader:
    made = Reader()
    made.reset(data, 0, len(data))
    return made


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "00"),
        (239, "ef"),
        (240, "f000"),
        (2287, "ff7f"),
        (2288, "f08000"),
        (264431, "ffff7f"),
        (264432, "f0808000"),
        (2**64 - 1, "fff0fefefefefefefe0e"),
    ],
)
def test_varint_of_the_specification(value: int, written: str) -> None:
    writer = Writer(16)
    writer.varint(value)
    assert writer.take().hex() == written
    assert reader(bytes.fromhex(written)).varint() == value


@given(U64)
def test_varint_is_read_as_it_was_written(value: int) -> None:
    writer = Writer(16)
    writer.varint(value)
    written = writer.take()
    assert written == wire.varint(value)
    assert reader(written).varint() == value


@pytest.mark.parametrize("data", ["", "f0", "ff80", "f0" + "80" * 9 + "00", "ff" + "ff" * 400])
def test_varint_that_never_ends_or_is_too_long(data: str) -> None:
    with pytest.raises(FrameError):
        reader(bytes.fromhex(data)).varint()
