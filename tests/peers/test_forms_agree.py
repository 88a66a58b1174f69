"""Compiled and plain are the same: every byte sent and value passed of the same random streams."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.peers import session as compiled
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from tests.helpers.forms import plain_modules
from tests.helpers.peers_wire import (
    ADDRESS,
    ASK,
    BINARY,
    CONFIRMED,
    FINISHED,
    HEARTBEAT,
    HELLO,
    INTEGER,
    IPV4,
    NOW,
    PARTIAL,
    SECOND,
    STRING,
    Recorder,
    ack,
    define,
    message,
    update,
)
from tests.helpers.wire import string, varint

if TYPE_CHECKING:
    from ratelimit.peers.session import Session

pytestmark = pytest.mark.both_forms

VERDICTS = Definition(
    1, "a", KeyType.IPV6, 16, (DataType.GPT0, DataType.GPT), {}, {DataType.GPT: 2}, 1_000
)
VALUES = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 239, 240, 2287, 2288])

FOUR = st.binary(min_size=4, max_size=4)

TABLES = [
    (define(1, "a", bits=(1, 22), parameters=(22, 2)), st.just(ADDRESS), 3),
    (define(2, "b", (STRING, 5), (9, 10), (10, 1000)), st.binary(max_size=5).map(string), 4),
    (
        define(300, "c", (INTEGER, 4), (13, 15, 24), (24, 3, 500)),
        st.binary(min_size=4, max_size=4),
        11,
    ),
    (define(4, "d", (IPV4, 4), ()), st.just(b"\x7f\0\0\1"), 0),
    (define(5, "e", (BINARY, 32), (40,)), st.just(b"x" * 32), 1),
]


class Teaches(Recorder):
    """Answers a request with two entries."""

    def on_sync_wanted(self, session: Session) -> None:
        super().on_sync_wanted(session)
        session.update(VERDICTS, ADDRESS, (1, 2**64 - 1, 240), 2**32 - 1)
        session.update(VERDICTS, ADDRESS, (0, 0, 0))
        session.finished()


@st.composite
def updates(draw: st.DrawFn) -> bytes:
    """A definition and updates of its table, mostly right."""
    defined, keys, width = draw(st.sampled_from(TABLES))
    number = st.none() | st.integers(0, 2**32 - 1)
    expire = st.none() | st.integers(0, 2**32 - 1)
    written = b"".join(
        update(
            draw(number),
            draw(keys),
            *draw(st.lists(VALUES, min_size=width, max_size=width)),
            expire=draw(expire),
        )
        for _ in range(draw(st.integers(0, 3)))
    )
    return defined + written


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """Updates of a table with dictionary entries: a text, and later only its number."""
    number = varint(draw(st.sampled_from([1, 2, 128])))
    text = draw(st.none() | st.binary(min_size=1, max_size=300))
    entry = string(number if text is None else number + string(text))
    return define(6, "f", bits=(0, 19)) + update(1, ADDRESS, draw(VALUES), entry)


good = st.one_of(
    updates(),
    updates(),
    entries(),
    st.sampled_from([ASK, FINISHED, PARTIAL, CONFIRMED, HEARTBEAT, b"\x0a\x05"]),
    st.builds(lambda number: ASK + CONFIRMED + ASK + ack(1, number), st.integers(0, 4)),
    st.binary(max_size=3000).map(lambda content: message(0x90, content)),
)
bad = st.one_of(
    st.binary(max_size=4),
    st.builds(ack, st.integers(0, 2), st.integers(0, 9)),
    st.builds(message, st.sampled_from([0x80, 0x82, 0x83, 0x84, 0x86]), st.binary(max_size=9)),
    st.integers(60_000, 2**40).map(lambda size: b"\x0a\x80" + varint(size)),
    st.sampled_from([0, 129, 2**20]).map(
        lambda number: define(6, "f", bits=(0, 19)) + update(1, ADDRESS, 1, string(varint(number)))
    ),
)


def play(kind: type[Session], reads: list[bytes]) -> tuple[object, ...]:
    """Everything that can be seen of a session."""
    listener = Teaches(skipped=["d"])
    session = kind(listener, "agent", NOW)
    sent = []
    for i, data in enumerate(reads):
        now = NOW + i * SECOND
        sent.append(session.receive_data(data, now))
        session.look(now)
        sent.append(session.take())
    error = session.error and (session.error.status, str(session.error))
    state = session.name, session.pid, session.opened, session.synced, session.closed
    counts = session.updates, session.unacknowledged, session.in_message, session.room()
    return sent, listener.seen, error, state, counts


@settings(max_examples=200, deadline=None)
@given(st.lists(good, max_size=12), st.lists(st.integers(0, 4000), max_size=6), st.data())
def test_both_forms_agree(stream: list[bytes], cuts: list[int], data: st.DataObject) -> None:
    fault = data.draw(st.sampled_from(["none", "bad", "byte"]))
    if fault == "bad":
        stream.insert(data.draw(st.integers(0, len(stream))), data.draw(bad))
    whole = HELLO + b"".join(stream)
    if fault == "byte":
        at = data.draw(st.integers(0, len(whole) - 1))
        whole = whole[:at] + data.draw(st.binary(min_size=1, max_size=1)) + whole[at + 1 :]
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    reads = [whole[a:b] for a, b in itertools.pairwise(edges)]
    plain: type[Session] = plain_modules()[compiled.__name__].Session
    assert play(compiled.Session, reads) == play(plain, reads)
