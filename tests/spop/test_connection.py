"""A connection as a stream of bytes: split anywhere, broken anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.spop.constants import Status
from tests.helpers import wire
from tests.helpers.spop import ASK, NOW, connection, ends, opened
from tests.helpers.wire import ACK, AGENT_DISCONNECT, AGENT_HELLO


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (wire.hello(), Status.INVALID),
        (wire.frame(0, b""), Status.FRAGMENTED),
        (wire.frame(3, ASK, flags=0), Status.FRAGMENTED),
        (wire.frame(3, ASK, flags=3), Status.FRAGMENTED),
        (wire.frame(3, ASK[:-1]), Status.INVALID),
        (wire.frame(3, ASK + b"\x07"), Status.INVALID),
        (wire.frame(3, wire.string("default") + b"\x02" + wire.string("key")), Status.INVALID),
        (b"\0\0\0\x01\x03", Status.INVALID),
        (b"\0\0\0\0\x03", Status.INVALID),
        (b"\x7f\xff\xff\xff\x03", Status.TOO_BIG),
    ],
)
def test_what_breaks_an_open_connection_and_what_came_before_is_answered(
    data: bytes, status: Status
) -> None:
    made = opened()
    *acks, _ = wire.frames(opened().receive_data(wire.notify(ASK, ids=(5, 6)) + data, NOW))
    assert [ack.ids for ack in acks] == [(5, 6)]
    assert ends(made, data)[0] == status


def test_unknown_frames_are_skipped() -> None:
    made = opened()
    (ack,) = wire.frames(made.receive_data(wire.frame(77, b"?") + wire.notify(ASK), NOW))
    assert ack.kind == ACK


def test_more_answers_than_one_output_buffer_holds() -> None:
    made = opened(rate=1)
    asked = [wire.notify(ASK, ids=(n, 1)) for n in range(1, 3001)]
    acks = wire.frames(made.receive_data(b"".join(asked), NOW))
    assert [ack.ids[0] for ack in acks] == list(range(1, 3001))
    assert sum("deny" in ack.items for ack in acks) == 2999


STREAM = (
    wire.hello()
    + b"".join(wire.notify(ASK, ids=(n, n + 1)) for n in (1, 239, 240, 100_000, 2**63))
    + wire.frame(50, b"unknown")
    + wire.notify(ASK, wire.message("default", key=wire.text("k" * 300)), ids=(7, 7))
    + wire.disconnect()
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_frames_may_be_split_anywhere(cuts: list[int]) -> None:
    whole = connection().receive_data(STREAM, NOW)
    made = connection()
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [made.receive_data(STREAM[a:b], NOW) for a, b in itertools.pairwise(edges)]
    assert b"".join(parts) == whole
    assert made.closed


def test_a_byte_at_a_time() -> None:
    made = connection()
    parts = [made.receive_data(STREAM[i : i + 1], NOW) for i in range(len(STREAM))]
    assert b"".join(parts) == connection().receive_data(STREAM, NOW)


@given(st.binary(max_size=400))
def test_any_bytes_leave_the_connection_open_or_closed_with_a_status(noise: bytes) -> None:
    for made in (connection(), opened()):
        answers = wire.frames(made.receive_data(noise, NOW))
        if made.closed:
            assert answers[-1].kind in (AGENT_DISCONNECT, AGENT_HELLO)


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
def test_one_wrong_byte_never_raises(at: int, byte: int) -> None:
    made = connection()
    wire.frames(made.receive_data(STREAM[:at] + bytes([byte]) + STREAM[at + 1 :], NOW))
