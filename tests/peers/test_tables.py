"""Tables that a peer announces, once or again, well or badly."""

from __future__ import annotations

import pytest

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.tables import Incoming, Tables
from tests.helpers.peers_wire import STRING, define


def content(message: bytes) -> bytes:
    return message[3:]


def defined(tables: Tables, message: bytes) -> Incoming:
    around = b"\xff" + content(message) + b"\xff"
    return tables.defined(around, 1, len(around) - 1)


def test_a_table_is_new_once() -> None:
    tables = Tables()
    first = defined(tables, define(1, "a"))
    assert tables.fresh
    second = defined(tables, define(2, "b", (STRING, 65)))
    assert tables.fresh
    for _ in range(3):
        assert defined(tables, define(1, "a")) is first
        assert not tables.fresh
        assert defined(tables, define(2, "b", (STRING, 65))) is second
        assert not tables.fresh
    assert (first.number, first.name, second.name) == (1, "a", "b")
    assert tables.names == {"a": first, "b": second}
    assert tables.switched(2) is second


def test_ids_with_the_same_first_byte() -> None:
    tables = Tables()
    numbers = range(240, 1840, 16)
    assert len({content(define(number))[0] for number in numbers}) == 1
    made = [defined(tables, define(number, f"t{number}")) for number in numbers]
    again = [defined(tables, define(number, f"t{number}")) for number in numbers]
    assert made == again
    assert not tables.fresh


def test_a_table_that_can_not_be_read_is_known_too() -> None:
    tables = Tables()
    for fresh in (True, False):
        table = defined(tables, define(1, "a", bits=(40,)))
        assert (table.definition, table.why) == (None, "unknown data type 40")
        assert tables.fresh is fresh


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (define(1, "a", bits=(1,)), "table a with the id 1 becomes another: a"),
        (define(1, "b"), "table a with the id 1 becomes another: b"),
        (define(1, "a", expire=1), "becomes another: a"),
        (define(1, "a", bits=(40,)), "becomes another: a"),
        (define(2, "a"), "a second table with the name a"),
    ],
)
def test_a_definition_may_not_change(message: bytes, text: str) -> None:
    tables = Tables()
    defined(tables, define(1, "a"))
    with pytest.raises(PeersError, match=text):
        defined(tables, message)


def test_tables_are_bounded() -> None:
    tables = Tables()
    for number in range(256):
        defined(tables, define(number, f"t{number}"))
    with pytest.raises(PeersError, match="more than 256 tables"):
        defined(tables, define(256, "t256"))
    assert defined(tables, define(255, "t255")).name == "t255"


def test_a_switch_to_an_unknown_table() -> None:
    tables = Tables()
    with pytest.raises(PeersError, match="the unknown table 7"):
        tables.switched(7)


@pytest.mark.parametrize(
    ("name", "key_type", "size", "alike"),
    [
        ("a", KeyType.IPV6, 16, True),
        ("b", KeyType.IPV6, 16, False),
        ("a", KeyType.BINARY, 16, False),
        ("c", KeyType.IPV6, 16, False),
    ],
)
def test_a_table_that_both_sides_have(name: str, key_type: KeyType, size: int, alike: bool) -> None:
    tables = Tables()
    defined(tables, define(1, "a"))
    defined(tables, define(2, "c", bits=(40,)))
    assert tables.alike(Definition(7, name, key_type, size, (DataType.GPT0,))) == alike
