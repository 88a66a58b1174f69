"""Updates of every type of key and of data, in their four forms, and what is no update."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import FrameError
from ratelimit.peers.constants import PLACE, DataType, Form, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.updates import Shared, UpdateReader
from tests.helpers.peers_wire import ADDRESS, update
from tests.helpers.wire import string, varint

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNT = (DataType.HTTP_REQ_CNT,)


def reader(
    types: Sequence[DataType] = COUNT,
    key_type: KeyType = KeyType.IPV6,
    key_size: int = 16,
    sizes: dict[DataType, int] | None = None,
    shared: Shared | None = None,
) -> UpdateReader:
    definition = Definition(1, "t", key_type, key_size, tuple(types), sizes=sizes or {})
    return UpdateReader(definition, shared or Shared())


def feed(made: UpdateReader, message: bytes) -> UpdateReader:
    """Read the content of ``message`` from the middle of other bytes."""
    head = 3 if message[2] < 240 else 4
    around = b"\xff\xff" + message[head:] + b"\xff\xff"
    made.read(message[1], around, 2, len(around) - 2)
    return made


@pytest.mark.parametrize(
    ("number", "expire", "id_", "expiry"),
    [(7, None, 7, -1), (None, None, 1, -1), (9, 500, 9, 500), (None, 0, 1, 0)],
)
def test_the_four_forms(number: int | None, expire: int | None, id_: int, expiry: int) -> None:
    made = feed(reader(), update(number, ADDRESS, 3, expire=expire))
    assert (made.id, made.expiry, made.key()) == (id_, expiry, ADDRESS)
    assert made.value(PLACE[DataType.HTTP_REQ_CNT]) == 3


def test_an_update_without_a_number_has_the_next_one() -> None:
    made = reader()
    sent = (5, None, None, 2**32 - 1, None)
    numbers = [feed(made, update(number, ADDRESS, 1)).id for number in sent]
    assert numbers == [5, 6, 7, 2**32 - 1, 0]


@pytest.mark.parametrize(
    ("key_type", "size", "written", "key"),
    [
        (KeyType.INTEGER, 4, b"\xb3\x41\x47\x1f", b"\xb3\x41\x47\x1f"),
        (KeyType.IPV4, 4, b"\x7f\0\0\1", b"\x7f\0\0\1"),
        (KeyType.IPV6, 16, ADDRESS, ADDRESS),
        (KeyType.BINARY, 32, b"\0" * 32, b"\0" * 32),
        (KeyType.BINARY, 1, b"x", b"x"),
        (KeyType.STRING, 65, b"\x04gold", b"gold"),
        (KeyType.STRING, 65, b"\0", b""),
        (KeyType.STRING, 65, b"\x40" + b"g" * 64, b"g" * 64),
        (KeyType.STRING, 400, string(b"g" * 399), b"g" * 399),
    ],
)
def test_keys(key_type: KeyType, size: int, written: bytes, key: bytes) -> None:
    made = feed(reader(COUNT, key_type, size), update(1, written, 3))
    assert (made.key(), made.key_size, made.key_type) == (key, len(key), key_type)
    assert made.data[made.key_start : made.key_start + made.key_size] == key
    assert made.value(PLACE[DataType.HTTP_REQ_CNT]) == 3
    if key_type == KeyType.INTEGER:
        assert made.number == 0xB341471F


@given(st.data())
def test_every_set_of_data_types(data: st.DataObject) -> None:
    types = sorted(data.draw(st.sets(st.sampled_from(DataType))))
    sizes = {kind: data.draw(st.integers(1, 100)) for kind in types if kind.array}
    shared = Shared()
    made = reader(types, sizes=sizes, shared=shared)
    written: list[int | bytes] = []
    expected = {}
    for kind in types:
        for i in range(kind.width * sizes.get(kind, 1)):
            value = data.draw(st.integers(0, 2**64 - 1))
            if kind.form == Form.ENTRY:
                value = value % 128 + 1
                written.append(string(varint(value) + string(b"server%d" % value)))
            else:
                written.append(value)
            expected[PLACE[kind] + i] = value if kind.form == Form.U64 else value & 0xFFFFFFFF
    feed(made, update(1, ADDRESS, *written))
    assert {place: made.value(place) for place in expected} == expected
    if DataType.SERVER_KEY in types:
        number = expected[PLACE[DataType.SERVER_KEY]]
        assert made.text() == b"server%d" % number


def test_a_negative_server_id_is_cut_to_32_bits() -> None:
    made = feed(reader((DataType.SERVER_ID,)), update(1, ADDRESS, 2**64 - 1))
    assert made.value(PLACE[DataType.SERVER_ID]) == 0xFFFFFFFF


def test_a_text_is_sent_once_and_then_named_by_its_number_in_all_tables() -> None:
    shared = Shared()
    one = reader((DataType.SERVER_KEY, DataType.GLITCH_CNT), shared=shared)
    other = reader((DataType.SERVER_KEY,), shared=shared)
    feed(one, update(1, ADDRESS, string(b"\x03" + string("s1")), 5))
    assert (one.text(), one.value(PLACE[DataType.GLITCH_CNT])) == (b"s1", 5)
    assert feed(other, update(1, ADDRESS, string(b"\x03"))).text() == b"s1"
    assert feed(other, update(1, ADDRESS, string(b"\x04"))).text() is None
    assert feed(other, update(1, ADDRESS, 0)).text() is None
    feed(other, update(1, ADDRESS, string(b"\x03" + string("s2") + b"more")))
    assert feed(one, update(1, ADDRESS, string(b"\x03"), 6)).text() == b"s2"


def test_of_a_long_text_only_the_start_is_kept() -> None:
    made = reader((DataType.SERVER_KEY,))
    feed(made, update(1, ADDRESS, string(b"\x01" + string("s" * 1000))))
    assert made.text() == b"s" * 256


def test_bytes_after_the_values_are_of_newer_versions() -> None:
    made = feed(reader(), update(1, ADDRESS, 3, b"more"))
    assert made.value(PLACE[DataType.HTTP_REQ_CNT]) == 3


@pytest.mark.parametrize(
    ("made", "message", "text"),
    [
        (reader(), update(1, ADDRESS[:15]), "within a key"),
        (reader(), update(1, ADDRESS), "where an integer"),
        (reader(), update(1, ADDRESS, b"\xf0"), "within an integer"),
        (reader(), update(1, ADDRESS, b"\xf0" + b"\x80" * 9 + b"\0"), "more than 64 bits"),
        (reader(COUNT, KeyType.STRING, 5), update(1, string("abcde"), 1), "a key of 5 bytes"),
        (reader(COUNT, KeyType.STRING, 5), update(1, b"\x04abc"), "longer than its frame"),
        (reader(COUNT, KeyType.INTEGER, 4), update(1, b"abc"), "within a key"),
        (
            reader((DataType.GPT,), sizes={DataType.GPT: 3}),
            update(1, ADDRESS, 1, 2),
            "where an integer",
        ),
        (
            reader((DataType.SERVER_KEY,)),
            update(1, ADDRESS, string(b"\0")),
            "the number 0, not 1 to 128",
        ),
        (
            reader((DataType.SERVER_KEY,)),
            update(1, ADDRESS, string(varint(129))),
            "the number 129, not 1 to 128",
        ),
        (
            reader((DataType.SERVER_KEY,)),
            update(1, ADDRESS, b"\x08\x01\x02s1"),
            "longer than its frame",
        ),
        (
            reader((DataType.SERVER_KEY,)),
            update(1, ADDRESS, b"\x02\x01\x09s1", b"xxxxxxxxxx"),
            "longer than its size",
        ),
        (
            reader((DataType.SERVER_KEY,)),
            update(1, ADDRESS, b"\x01\xf1\x05", b"xxxxxxxxxx"),
            "longer than its size|the number",
        ),
    ],
)
def test_what_is_no_update(made: UpdateReader, message: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        feed(made, message)


def test_an_update_that_ends_early() -> None:
    made = reader((DataType.HTTP_REQ_CNT, DataType.HTTP_REQ_RATE))
    whole = update(1, ADDRESS, 300, 5, 300, 300, expire=1000)[3:]
    for size in range(len(whole)):
        with pytest.raises(FrameError):
            made.read(0x85, whole, 0, size)


def test_a_table_without_data() -> None:
    assert feed(reader(()), update(3, ADDRESS)).key() == ADDRESS


def test_ids_are_of_32_bits_most_significant_byte_first() -> None:
    assert feed(reader(), update(0x01020304, ADDRESS, 1)).id == 0x01020304
    assert update(0x01020304, ADDRESS, 1)[3:7] == struct.pack(">I", 0x01020304)
