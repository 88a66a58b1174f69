"""What a session writes, read by the protocol's own description and by the other end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import DataType, Form, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.sender import Sender
from ratelimit.peers.tables import Tables
from tests.helpers.peers_wire import ADDRESS, BINARY, STRING, define, messages, update
from tests.helpers.peers_wire import ack as written_ack
from tests.helpers.wire import string, varint
from tests.peers.test_definition import definitions

VERDICTS = Definition(
    1, "rlv_default", KeyType.IPV6, 16, (DataType.GPT,), {}, {DataType.GPT: 3}, 3_600_000
)
DEFINED = define(1, "rlv_default", bits=(22,), parameters=(22, 3), expire=3_600_000)


BOTH = Tables()
BOTH.defined(DEFINED[3:], 0, len(DEFINED) - 3)


def opened() -> Sender:
    sender = Sender()
    sender.open()
    return sender


def test_an_update_follows_its_definition_and_has_a_number() -> None:
    sender = opened()
    assert sender.update(VERDICTS, ADDRESS, (1, 240, 2**32 - 1), None, b"")
    assert sender.update(VERDICTS, ADDRESS, (0, 0, 0), 0, b"")
    assert list(messages(sender.take())) == [
        DEFINED,
        update(1, ADDRESS, 1, 240, 2**32 - 1),
        update(2, ADDRESS, 0, 0, 0, expire=0),
    ]


def test_a_definition_is_repeated_when_another_table_came_between() -> None:
    other = Definition(2, "rlc_limits", KeyType.STRING, 65, (DataType.GPT0,), expire=1)
    sender = opened()
    for _ in range(2):
        sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
        sender.update(other, b"default", (7,), None, b"")
    key = string("default")
    limits = define(2, "rlc_limits", (STRING, 65), (1,), (), 1)
    assert list(messages(sender.take())) == [
        DEFINED,
        update(1, ADDRESS, 1, 2, 3),
        limits,
        update(1, key, 7),
        DEFINED,
        update(2, ADDRESS, 1, 2, 3),
        limits,
        update(2, key, 7),
    ]


def test_a_text_is_written_with_its_number() -> None:
    table = Definition(
        3, "t", KeyType.BINARY, 1, (DataType.GPT0, DataType.SERVER_KEY, DataType.GLITCH_CNT)
    )
    sender = opened()
    sender.update(table, b"k", (1, 5, 2), None, b"s1")
    sender.update(table, b"k", (1, 5, 2), None, b"")
    sender.update(table, b"k", (1, 0, 2), None, b"")
    assert list(messages(sender.take())) == [
        define(3, "t", (BINARY, 1), (1, 19, 25), (), 0),
        update(1, b"k", 1, string(varint(5) + string("s1")), 2),
        update(2, b"k", 1, string(varint(5)), 2),
        update(3, b"k", 1, 0, 2),
    ]


@given(definitions(), st.data())
def test_every_table_can_be_written(definition: Definition, data: st.DataObject) -> None:
    width = sum(definition.width(kind) for kind in definition.types)
    numbers = st.integers(0, 128) if DataType.SERVER_KEY in definition.types else st.integers(0)
    values = data.draw(st.lists(numbers, min_size=width, max_size=width))
    size = definition.key_size - (definition.key_type == KeyType.STRING)
    sender = opened()
    assert sender.update(definition, bytes(size), values, 5, b"text")
    assert len(list(messages(sender.take()))) == 2
    assert DataType.SERVER_KEY.form == Form.ENTRY


def test_updates_leave_room_for_answers() -> None:
    sender = opened()
    count = 0
    while sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b""):
        count += 1
    assert count > 1000
    room = sender.room()
    assert room < 200
    for _ in range(256):
        sender.acknowledge(2**32, 1)
    sender.say(0, 4)
    assert sender.room() == 0
    assert len(sender.take()) <= 1 << 16
    assert sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    assert sender.tables[1].sent == count + 1


def test_more_answers_than_fit_are_an_error() -> None:
    sender = opened()
    for _ in range(1 << 15):
        sender.say(0, 3)
    with pytest.raises(PeersError, match="more answers"):
        sender.say(0, 3)
    assert not sender.define(VERDICTS), "nothing is written, so the table is not known"
    sender.offer(0, 4)
    assert len(sender.take()) == 1 << 16
    assert sender.define(VERDICTS)


@pytest.mark.parametrize(
    ("key", "values", "text"),
    [
        (ADDRESS[:15], (1, 2, 3), "a key of 15 bytes"),
        (ADDRESS, (1, 2), "2 values for a table with 3"),
        (ADDRESS, (1, 2, 3, 4), "4 values for a table with 3"),
    ],
)
def test_what_is_no_update_of_the_table(key: bytes, values: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        opened().update(VERDICTS, key, values, None, b"")


@pytest.mark.parametrize(
    ("expire", "told"), [(-5, 0), (0, 0), (2**31, 2**31 - 1), (2**40, 2**31 - 1)]
)
def test_a_time_that_is_over_or_beyond_the_range_of_haproxy(expire: int, told: int) -> None:
    sender = opened()
    sender.update(VERDICTS, ADDRESS, (1, 2, 3), expire, b"")
    assert list(messages(sender.take()))[1] == update(1, ADDRESS, 1, 2, 3, expire=told)


def test_a_string_key_is_shorter_than_announced() -> None:
    table = Definition(2, "t", KeyType.STRING, 5, (DataType.GPT0,))
    assert opened().update(table, b"abcd", (1,), None, b"")
    with pytest.raises(ValueError, match="a key of 5 bytes"):
        opened().update(table, b"abcde", (1,), None, b"")


def test_an_id_belongs_to_one_table() -> None:
    sender = opened()
    sender.define(VERDICTS)
    with pytest.raises(ValueError, match="the id 1"):
        sender.define(Definition(1, "other", KeyType.IPV6, 16, (DataType.GPT0,)))


def test_acknowledgements() -> None:
    sender = opened()
    for _ in range(5):
        sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    assert sender.pending(BOTH) == 5
    assert sender.pending(Tables()) == 0, "HAProxy does not know the table, and acknowledges none"
    sender.acknowledged(1, 3)
    assert sender.pending(BOTH) == 2
    sender.acknowledged(1, 2)
    assert sender.pending(BOTH) == 2, "an older one changes nothing"
    sender.forgive()
    assert sender.pending(BOTH) == 0


def test_acknowledgements_beyond_32_bits() -> None:
    sender = opened()
    sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    sender.tables[1].sent = 2**32 - 1
    sender.take()
    sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    assert list(messages(sender.take())) == [
        update(0, ADDRESS, 1, 2, 3),
        update(1, ADDRESS, 1, 2, 3),
    ]
    sender.acknowledged(1, 2**32 - 1)
    assert sender.pending(BOTH) == 2
    sender.acknowledged(1, 0)
    assert sender.pending(BOTH) == 1


@pytest.mark.parametrize(("table", "number"), [(2, 1), (1, 6), (1, 2**32 - 1)])
def test_an_acknowledgement_of_what_was_not_sent(table: int, number: int) -> None:
    sender = opened()
    for _ in range(5):
        sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    with pytest.raises(PeersError, match="acknowledge"):
        sender.acknowledged(table, number)


def test_an_acknowledgement_is_written() -> None:
    sender = opened()
    sender.acknowledge(300, 2**32 - 1)
    assert sender.take() == written_ack(300, 2**32 - 1)


def test_before_it_is_open_only_a_handshake_fits() -> None:
    sender = Sender()
    sender.raw(b"hello")
    assert not sender.define(VERDICTS)
    assert not sender.update(VERDICTS, ADDRESS, (1, 2, 3), None, b"")
    sender.open()
    assert sender.define(VERDICTS)
    assert sender.take() == b"hello" + DEFINED
