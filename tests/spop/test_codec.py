from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import FrameError
from ratelimit.spop.codec import Typed, Value
from ratelimit.wire.reader import Reader
from tests.helpers import wire


def typed(data: bytes, size: int | None = None) -> tuple[Typed, Reader]:
    reader = Reader()
    reader.reset(data, 0, len(data) if size is None else size)
    return Typed(reader), reader


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
    values, reader = typed(data)
    assert values.value() == value
    assert reader.pos == len(data)


@pytest.mark.parametrize(
    "data", ["", "0a", "0f", "06010203", "07" + "00" * 15, "08", "0805616263", "09ff", "04f0"]
)
def test_typed_data_that_lies(data: str) -> None:
    with pytest.raises(FrameError):
        typed(bytes.fromhex(data))[0].value()


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_within_their_end(data: bytes) -> None:
    values, reader = typed(data + b"\x08\x01x" * 4, len(data))
    with contextlib.suppress(FrameError):
        values.kv_list()
    assert reader.pos <= len(data)
