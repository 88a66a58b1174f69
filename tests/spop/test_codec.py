from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import SpopError
from ratelimit.spop.codec import Reader, Value, Writer
from ratelimit.spop.constants import Status
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
    with pytest.raises(SpopError) as caught:
        reader(bytes.fromhex(data)).varint()
    assert caught.value.status == Status.INVALID


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (wire.NULL, None),
        (wire.TRUE, True),
        (wire.FALSE, False),
        (b"\x02" + wire.varint(7), 7),
        (b"\x02" + wire.varint(2**64 - 7), -7),
        (wire.uint32(2**32 - 1), 2**32 - 1),
        (wire.int64(-1), -1),
        (b"\x05" + wire.varint(2**64 - 1), 2**64 - 1),
        (wire.address("192.0.2.1"), bytes([192, 0, 2, 1])),
        (wire.address("2001:db8::1"), bytes.fromhex("20010db8" + "00" * 11 + "01")),
        (wire.text("a b"), b"a b"),
        (wire.text(""), b""),
        (wire.binary(b"\0\xff"), b"\0\xff"),
        (wire.text("x" * 5000), b"x" * 5000),
    ],
)
def test_every_form_of_typed_data(data: bytes, value: Value) -> None:
    cursor = reader(data)
    assert cursor.value() == value
    assert cursor.pos == len(data)


@pytest.mark.parametrize(
    "data", ["", "0a", "0f", "06010203", "07" + "00" * 15, "08", "0805616263", "09ff", "04f0"]
)
def test_typed_data_that_lies(data: str) -> None:
    with pytest.raises(SpopError) as caught:
        reader(bytes.fromhex(data)).value()
    assert caught.value.status == Status.INVALID


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_within_their_end(data: bytes) -> None:
    cursor = Reader()
    cursor.reset(data + b"\x08\x01x" * 4, 0, len(data))
    with contextlib.suppress(SpopError):
        cursor.kv_list()
    assert cursor.pos <= len(data)


def test_writer_starts_again_after_take() -> None:
    writer = Writer(8)
    writer.string(b"abc")
    assert writer.room() == 4
    assert writer.take() == b"\x03abc"
    assert writer.room() == 8
    assert writer.take() == b""
