"""HELLO and DISCONNECT frames: what both sides agree on, and how a connection ends."""

from __future__ import annotations

import pytest

from ratelimit.spop.constants import MAX_FRAME_SIZE, Status
from tests.helpers import wire
from tests.helpers.spop import ASK, NOW, connection, ends, opened
from tests.helpers.wire import AGENT_DISCONNECT, AGENT_HELLO


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


def test_close_says_why_once() -> None:
    made = opened()
    (frame,) = wire.frames(made.close(Status.TIMEOUT, "x" * 500))
    assert frame.kind == AGENT_DISCONNECT
    assert frame.items["status-code"] == Status.TIMEOUT
    assert made.close(Status.NORMAL, "") == b""
