"""Definitions of tables with every type of key and of data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import FrameError, TableError
from ratelimit.peers.constants import PLACE, VALUES, DataType, Form, KeyType
from ratelimit.peers.definition import Definition, read_definition, write_definition
from ratelimit.wire.reader import Reader
from tests.helpers.peers_wire import BINARY, INTEGER, IPV4, IPV6, STRING, define
from tests.helpers.wire import string, varint

NAMES = """server_id gpt0 gpc0 gpc0_rate conn_cnt conn_rate conn_cur sess_cnt sess_rate http_req_cnt
    http_req_rate http_err_cnt http_err_rate bytes_in_cnt bytes_in_rate bytes_out_cnt bytes_out_rate
    gpc1 gpc1_rate server_key http_fail_cnt http_fail_rate gpt gpc gpc_rate glitch_cnt glitch_rate
"""
"""The data types of HAProxy 2.6 to 3.4 in the order of their bits."""


def read(content: bytes) -> Definition:
    reader = Reader()
    reader.reset(content, 0, len(content))
    return read_definition(reader)


def content(message: bytes) -> bytes:
    assert message[2] < 240
    return message[3:]


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    key_type = draw(st.sampled_from(KeyType))
    size = {KeyType.INTEGER: 4, KeyType.IPV4: 4, KeyType.IPV6: 16}.get(key_type)
    types = tuple(sorted(draw(st.sets(st.sampled_from(DataType)))))
    u32 = st.integers(0, 2**32 - 1)
    return Definition(
        id=draw(u32),
        name=draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)),
        key_type=key_type,
        key_size=size or draw(st.integers(1, 16_384)),
        types=types,
        periods={kind: draw(u32) for kind in types if kind.form == Form.RATE},
        sizes={kind: draw(st.integers(1, 100)) for kind in types if kind.array},
        expire=draw(u32),
    )


@given(definitions())
def test_a_definition_is_read_as_it_was_written(definition: Definition) -> None:
    assert read(write_definition(definition)) == definition


def test_the_data_types_of_haproxy() -> None:
    assert [kind.name.lower() for kind in DataType] == NAMES.split()
    assert list(DataType) == list(range(27))
    rates = {kind for kind in DataType if kind.form == Form.RATE}
    assert rates == {3, 5, 8, 10, 12, 14, 16, 18, 21, 24, 26}
    assert {kind for kind in DataType if kind.array} == {22, 23, 24}
    assert {kind for kind in DataType if kind.form == Form.U64} == {13, 15}
    assert DataType.SERVER_ID.form == Form.SIGNED
    assert DataType.SERVER_KEY.form == Form.ENTRY


def test_places_of_values_do_not_overlap() -> None:
    taken = [
        PLACE[kind] + i for kind in DataType for i in range(kind.width * (100 if kind.array else 1))
    ]
    assert sorted(taken) == list(range(VALUES))


def test_parameters_of_rates_and_arrays() -> None:
    found = read(
        content(define(4, "t", (INTEGER, 4), (9, 10, 22, 24), (10, 1000, 22, 3, 24, 2, 500)))
    )
    assert found == Definition(
        4,
        "t",
        KeyType.INTEGER,
        4,
        (DataType.HTTP_REQ_CNT, DataType.HTTP_REQ_RATE, DataType.GPT, DataType.GPC_RATE),
        {DataType.HTTP_REQ_RATE: 1000, DataType.GPC_RATE: 500},
        {DataType.GPT: 3, DataType.GPC_RATE: 2},
        60_000,
    )
    assert [found.width(kind) for kind in found.types] == [1, 3, 3, 6]


def test_bytes_after_the_definition_are_of_newer_versions() -> None:
    assert read(content(define()) + b"more").name == "rl_default"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (define(bits=(9, 27)), "unknown data type 27"),
        (define(bits=(63, 30)), "unknown data type 30"),
        (define(key=(0, 16)), "unknown key type 0"),
        (define(key=(3, 16)), "unknown key type 3"),
        (define(key=(8, 16)), "unknown key type 8"),
        (define(key=(2**40, 16)), "unknown key type 1099511627776"),
        (define(key=(INTEGER, 8)), "keys of type integer with 8 bytes, not 4"),
        (define(key=(IPV4, 16)), "keys of type ipv4 with 16 bytes, not 4"),
        (define(key=(IPV6, 4)), "keys of type ipv6 with 4 bytes, not 16"),
        (define(key=(STRING, 0)), "keys of type string with 0 bytes, not 1 to 16384"),
        (define(key=(BINARY, 16_385)), "keys of type binary with 16385 bytes, not 1 to 16384"),
        (define(bits=(22,), parameters=(22, 0)), "an array gpt of 0 values, not 1 to 100"),
        (define(bits=(23,), parameters=(23, 101)), "an array gpc of 101 values, not 1 to 100"),
    ],
)
def test_a_table_that_can_not_be_read(message: bytes, text: str) -> None:
    with pytest.raises(TableError) as caught:
        read(content(message))
    assert (caught.value.number, caught.value.name) == (1, "rl_default")
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "data",
    [
        varint(1) + string(""),
        varint(1) + string("x" * 256),
        varint(1) + string("a\nb") + bytes((5, 16, 0, 0)),
        varint(1) + b"\x09short",
        content(define(bits=(10,), parameters=(11, 1000))),
        content(define(bits=(22,), parameters=(23, 3))),
        b"",
    ],
)
def test_what_is_no_definition(data: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        read(data)
    assert not isinstance(caught.value, TableError)


def test_a_definition_that_ends_early() -> None:
    whole = content(define(bits=(10, 24), parameters=(10, 1000, 24, 2, 500)))
    for size in range(len(whole)):
        with pytest.raises(FrameError, match="frame"):
            read(whole[:size])


@pytest.mark.parametrize(
    ("name", "types", "size", "text"),
    [
        ("x" * 256, (), 1, "has 256 bytes"),
        ("t", (DataType.GPC0, DataType.GPT0), 1, "data types of t are not in order"),
        ("t", (DataType.GPT,), 0, "arrays of t with .0. values"),
        ("t", (DataType.GPT,), 101, "arrays of t with .101. values"),
    ],
)
def test_what_is_no_table(name: str, types: tuple[DataType, ...], size: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Definition(1, name, KeyType.IPV6, 16, types, {}, {DataType.GPT: size})
