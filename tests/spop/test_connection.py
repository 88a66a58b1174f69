from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.spop.connection import Connection
from ratelimit.spop.constants import MAX_FRAME_SIZE, Status
from ratelimit.spop.respond import Responder
from tests.helpers import wire
from tests.helpers.wire import ACK, AGENT_DISCONNECT, AGENT_HELLO

NOW = 1_700_000_000_000_000_000
ASK = wire.message("default", key=wire.address("192.0.2.1"))


def connection(rate: int = 1_000_000) -> Connection:
    return Connection(Responder(Limiter([Limit(rate=rate)], max_clients=64).engine))


def opened(rate: int = 1_000_000) -> Connection:
    made = connection(rate)
    made.receive_data(wire.hello(), NOW)
    return made


def ends(made: Connection, data: bytes) -> tuple[int, str]:
    """Feed ``data``; it must end the connection: the status and the message sent."""
    *before, last = wire.frames(made.receive_data(data, NOW))
    assert last.kind == AGENT_DISCONNECT
    assert made.closed
    assert all(frame.kind in (ACK, AGENT_HELLO) for frame in before)
    assert made.receive_data(wire.notify(ASK), NOW) == b"", "nothing is answered after the end"
    status, message = last.items["status-code"], last.items["message"]
    assert isinstance(status, int) and isinstance(message, str)
    return status, message


def test_handshake() -> None:
    made = connection()
    (hello,) = wire.frames(made.receive_data(wire.hello(engine_id=wire.text("e1")), NOW))
    assert hello.kind == AGENT_HELLO
    assert hello.ids == (0, 0)
    assert hello.items == {
        "version": "2.0",
        "max-frame-size": 16380,
        "capabilities": "pipelining",
    }
    assert not made.closed
    assert made.hello is not None
    assert made.hello.engine_id == "e1"


@pytest.mark.parametrize(("offered", "agreed"), [(256, 256), (1000, 1000), (10**6, MAX_FRAME_SIZE)])
def test_max_frame_size_is_the_lower_one(offered: int, agreed: int) -> None:
    made = connection()
    (hello,) = wire.frames(made.receive_data(wire.hello(size=wire.uint32(offered)), NOW))
    assert hello.items["max-frame-size"] == agreed
    oversized = wire.notify(wire.message("default", key=wire.text("x" * agreed)))
    assert ends(made, oversized)[0] == Status.TOO_BIG


def test_health_check_is_answered_and_closed() -> None:
    made = connection()
    (hello,) = wire.frames(made.receive_data(wire.hello(healthcheck=wire.TRUE), NOW))
    assert hello.kind == AGENT_HELLO
    assert hello.items["max-frame-size"] == 256, "fits the buffers of any HAProxy"
    assert made.closed
    assert made.error is None


@pytest.mark.parametrize(
    ("hello", "status"),
    [
        (wire.hello(versions=None), Status.NO_VERSION),
        (wire.hello(versions=wire.uint32(2)), Status.NO_VERSION),
        (wire.hello(versions=wire.text("1.0, 3.1")), Status.BAD_VERSION),
        (wire.hello(size=None), Status.NO_MAX_FRAME_SIZE),
        (wire.hello(size=wire.TRUE), Status.NO_MAX_FRAME_SIZE),
        (wire.hello(size=wire.uint32(255)), Status.BAD_MAX_FRAME_SIZE),
        (wire.hello(capabilities=None), Status.NO_CAPABILITIES),
        (wire.notify(ASK), Status.INVALID),
        (wire.frame(wire.ACK, b""), Status.INVALID),
        (wire.frame(1, b"", flags=0), Status.FRAGMENTED),
        (wire.frame(1, wire.string("x")), Status.INVALID),
        (b"GET / HTTP/1.1\r\n\r\n", Status.TOO_BIG),
        (b"\0\0\0\0", Status.INVALID),
        (b"\0\0\0\x01\x01", Status.INVALID),
    ],
)
def test_a_bad_start_is_told_its_status(hello: bytes, status: Status) -> None:
    made = connection()
    told, message = ends(made, hello)
    assert told == status
    assert message
    assert made.error is not None
    assert made.error.status == status


def test_versions_may_be_a_list_with_spaces() -> None:
    made = connection()
    (hello,) = wire.frames(made.receive_data(wire.hello(versions=wire.text("3.0, 2.1 ,1.0")), NOW))
    assert hello.items["version"] == "2.0"


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


def test_disconnect_is_answered() -> None:
    made = opened()
    assert ends(made, wire.disconnect(0))[0] == Status.NORMAL
    assert made.error is None


def test_an_idle_disconnect_of_haproxy_is_no_error() -> None:
    made = opened()
    assert ends(made, wire.disconnect(2, "timeout"))[0] == Status.NORMAL
    assert made.error is None


def test_why_haproxy_gave_up_is_kept() -> None:
    made = opened()
    ends(made, wire.disconnect(99, "out of\nmemory"))
    assert made.error is not None
    assert made.error.status == 99


def test_unknown_frames_are_skipped() -> None:
    made = opened()
    (ack,) = wire.frames(made.receive_data(wire.frame(77, b"?") + wire.notify(ASK), NOW))
    assert ack.kind == ACK


def test_close_says_why_once() -> None:
    made = opened()
    (frame,) = wire.frames(made.close(Status.TIMEOUT, "x" * 500))
    assert frame.kind == AGENT_DISCONNECT
    assert frame.items["status-code"] == Status.TIMEOUT
    assert made.close(Status.NORMAL, "") == b""


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
