"""The loads of peers mode: HAProxy's side of a session understands what an agent says."""

from __future__ import annotations

import pytest

from benchmarks.harness.edge import ALL_COUNTERS, RATED, VERDICTS, Heard, counts, integers, key
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from tests.helpers.peers_wire import CONFIRMED, NOW, Recorder, ack, opened, update
from tests.helpers.wire import varint

TABLE = Definition(
    2, "/rlv_default", KeyType.IPV6, 16, (DataType.GPT,), sizes={DataType.GPT: 3}, expire=3_600_000
)
ENTRIES = [(key(n), (1_700_000_000 + n, n % 1000, n % 6)) for n in range(300)]


def said() -> bytes:
    """Return what an agent says that acknowledges, tells verdicts, and ends."""
    session, _ = opened()
    said = session.receive_data(counts() + update(7, key(1), 0, 1, 0, 1, 0, 5), NOW)
    for number, (name, values) in enumerate(ENTRIES):
        assert session.update(TABLE, name, values, 3000 if number % 2 else None)
        said += session.take()
    session.finished()
    return said + session.take()


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_all_verdicts_are_heard_however_they_are_cut(size: int) -> None:
    heard, data = Heard(), said()
    found = []
    for at in range(0, len(data), size):
        found += heard.take(data[at : at + size])
    assert [(name, tuple(integers(values))) for name, values in found] == ENTRIES
    assert heard.told == len(ENTRIES)
    assert heard.acknowledged == 7
    assert heard.controls == {1: 1}


def test_an_acknowledgement_is_no_control_message() -> None:
    heard = Heard()
    heard.take(ack(1, 0x00030003))
    assert heard.controls == {}
    heard.take(CONFIRMED)
    assert heard.controls == {3: 1}


@pytest.mark.parametrize("types", [RATED, ALL_COUNTERS])
def test_an_agent_reads_the_tables(types: tuple[int, ...]) -> None:
    listener = Recorder()
    session, seen = opened(listener)
    session.receive_data(counts(types) + VERDICTS, NOW)
    assert seen.refused == {}
    told = seen.tables["/rl_default"]
    assert tuple(told.types) == types
    assert told.periods == {DataType.HTTP_REQ_RATE: 1000}
    assert seen.tables["/rlv_default"].sizes == {DataType.GPT: 3}


@pytest.mark.parametrize("value", [0, 239, 240, 2287, 2288, 1 << 31, (1 << 64) - 1])
def test_integers_of_all_lengths(value: int) -> None:
    assert integers(varint(value) + varint(5)) == [value, 5]
