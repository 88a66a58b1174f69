"""A session as a stream of bytes: whole, broken, silent, too much, from both ends."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import ACKNOWLEDGE, DataType, ErrorType, KeyType, Status
from ratelimit.peers.definition import Definition
from ratelimit.peers.session import Session
from tests.helpers.peers_wire import (
    ADDRESS,
    ASK,
    CONFIRMED,
    FINISHED,
    HEARTBEAT,
    HELLO,
    NOW,
    PARTIAL,
    PROTOCOL_ERROR,
    SECOND,
    SIZE_ERROR,
    STRING,
    Recorder,
    Update,
    ack,
    define,
    message,
    messages,
    opened,
    update,
)
from tests.helpers.wire import string, varint

VERDICTS = Definition(
    1, "rlv_default", KeyType.IPV6, 16, (DataType.GPT,), {}, {DataType.GPT: 3}, 3_600_000
)
DEFINED = define(1, "rlv_default", bits=(22,), parameters=(22, 3), expire=3_600_000)


def fails(session: Session, data: bytes, answer: bytes, text: str) -> None:
    """Feed ``data``; it must end the session with ``answer``."""
    assert session.receive_data(data, NOW).endswith(answer)
    assert session.closed
    assert isinstance(session.error, PeersError)
    assert text in str(session.error)
    assert session.receive_data(update(1, ADDRESS, 1), NOW) == b"", "nothing is answered any more"
    assert not session.update(VERDICTS, ADDRESS, (1, 2, 3))
    assert session.take() == b""


def test_the_handshake() -> None:
    listener = Recorder()
    session = Session(listener, "agent", NOW)
    assert not session.opened
    assert session.receive_data(HELLO, NOW) == b"200\n" + ASK
    assert (session.name, session.pid, session.opened, session.synced) == (
        "hap1",
        14979,
        True,
        False,
    )
    assert listener.seen.events == ["hello of hap1 14979", "open"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 501),
        (b"HAProxyS 3.0\nagent\nhap1 1 1\n", 502),
        (b"HAProxyS 2.1\nother\nhap1 1 1\n", 503),
    ],
)
def test_a_bad_hello(data: bytes, status: int) -> None:
    listener = Recorder()
    session = Session(listener, "agent", NOW)
    fails(session, data, b"%d\n" % status, "")
    assert session.error is not None
    assert session.error.status == status
    assert listener.seen.events == [], "the listener hears only of a good hello"


@pytest.mark.parametrize(
    ("status", "text"),
    [(Status.TRY_LATER, "try later"), (Status.REMOTE_NAME, "remote name")],
)
def test_a_peer_that_is_not_admitted(status: Status, text: str) -> None:
    session = Session(Recorder(status), "agent", NOW)
    fails(session, HELLO + ASK, b"%d\n" % status, f"hap1 is not admitted: {text}")


def test_a_wrong_name_is_told_in_the_error() -> None:
    session = Session(Recorder(), "other", NOW)
    fails(session, HELLO, b"503\n", "hap1 expects a peer agent, not other")


def test_two_sessions_of_ours_understand_each_other() -> None:
    agent, haproxy = Recorder(), Recorder()
    here = Session(agent, "agent", NOW)
    there = Session(haproxy, "hap1", NOW, remote="agent", pid=7)
    said = there.take()
    for _ in range(3):
        said = there.receive_data(here.receive_data(said, NOW), NOW)
    assert (here.name, here.pid, there.name) == ("hap1", 7, "agent")
    assert agent.seen.events == ["hello of hap1 7", "open", "wanted"]
    assert haproxy.seen.events == ["open", "wanted"]


@pytest.mark.parametrize("status", [300, 501, 502, 503, 504])
def test_a_peer_that_refuses_us(status: int) -> None:
    session = Session(Recorder(), "hap1", NOW, remote="agent", pid=7)
    assert session.take() == b"HAProxyS 2.1\nagent\nhap1 7 1\n"
    assert session.receive_data(b"%d" % status, NOW) == b""
    fails(session, b"\n", b"", f"agent answers {status}")
    assert session.error is not None
    assert session.error.status == status


def test_teaching_in_both_directions() -> None:
    listener = Recorder()
    session = Session(listener, "agent", NOW)
    session.receive_data(HELLO, NOW)
    taught = define() + update(1, ADDRESS, 5, expire=900)
    assert session.receive_data(ASK + taught + FINISHED, NOW) == CONFIRMED + ack(1, 1)
    assert listener.seen.events[2:] == ["wanted", "synced", "read"]
    assert listener.seen.updates == [Update("rl_default", 1, ADDRESS, (5,), 900, synced=False)]
    assert session.synced
    assert session.update(VERDICTS, ADDRESS, (1, 2, 3), 60_000)
    session.finished()
    assert list(messages(session.take())) == [
        DEFINED,
        update(1, ADDRESS, 1, 2, 3, expire=60_000),
        FINISHED,
    ]
    assert session.receive_data(CONFIRMED, NOW) == b""


def test_teaching_in_part() -> None:
    session, seen = opened()
    assert session.receive_data(PARTIAL, NOW) == CONFIRMED
    assert seen.events == ["synced in part"]
    session.finished(whole=False)
    assert session.take() == PARTIAL


def test_the_last_update_of_each_table_of_a_read_is_acknowledged() -> None:
    session, seen = opened()
    one, two = define(1, "a"), define(300, "b", (STRING, 65))
    read = one + update(5, ADDRESS, 1) + two + update(9, b"\x01k", 1) + update(None, b"\x01k", 2)
    read += one + update(8, ADDRESS, 2) + update(None, ADDRESS, 3)
    assert session.receive_data(read, NOW) == ack(1, 9) + ack(300, 10)
    assert [(update.table, update.id) for update in seen.updates] == [
        ("a", 5),
        ("b", 9),
        ("b", 10),
        ("a", 8),
        ("a", 9),
    ]
    assert seen.events == ["read"]
    assert session.updates == 5
    assert session.receive_data(HEARTBEAT, NOW) == b""
    assert seen.events == ["read"]


def test_acknowledgements_are_at_most_ten_a_second() -> None:
    session, _ = opened()
    tables = define(1, "a") + update(1, ADDRESS, 1)
    assert session.receive_data(tables, NOW) == ack(1, 1)
    assert session.receive_data(update(2, ADDRESS, 1), NOW + ACKNOWLEDGE // 2) == b""
    session.receive_data(define(2, "b") + update(3, ADDRESS, 1), NOW + ACKNOWLEDGE // 2)
    assert session.receive_data(HEARTBEAT, NOW + ACKNOWLEDGE) == ack(1, 2) + ack(2, 3)
    session.receive_data(update(4, ADDRESS, 1), NOW + ACKNOWLEDGE)
    session.look(NOW + SECOND)
    assert session.take() == ack(2, 4), "no later than with the next look"


def test_numbers_of_updates_may_jump_in_both_directions() -> None:
    session, seen = opened()
    read = define() + b"".join(update(number, ADDRESS, 1) for number in (7, 2**32 - 1, 0, 3))
    assert session.receive_data(read, NOW) == ack(1, 3)
    assert [update.id for update in seen.updates] == [7, 2**32 - 1, 0, 3]


def test_a_switch_names_a_table_without_its_definition() -> None:
    session, seen = opened()
    switched = message(0x83, varint(1)) + update(1, ADDRESS, 7)
    session.receive_data(define(1, "a") + define(2, "b") + switched, NOW)
    assert [update.table for update in seen.updates] == ["a"]


def test_a_table_that_can_not_be_read_is_reported_once_and_others_go_on() -> None:
    session, seen = opened()
    read = define(1, "new", bits=(9, 30)) + update(1, ADDRESS, 1) + define(2, "a")
    read += update(2, ADDRESS, 1)
    for second in range(3):
        assert session.receive_data(read, NOW + second * SECOND) == ack(2, 2)
    assert seen.refused == {"new": "unknown data type 30"}
    assert [update.table for update in seen.updates] == ["a"] * 3
    assert list(seen.tables) == ["a"]


def test_a_table_that_the_listener_does_not_want() -> None:
    session, seen = opened(Recorder(skipped=["a"]))
    read = define(1, "a") + update(1, ADDRESS, 1) + define(2, "b") + update(2, ADDRESS, 1)
    assert session.receive_data(read, NOW) == ack(2, 2)
    assert [update.table for update in seen.updates] == ["b"]


def test_messages_of_newer_versions_are_skipped() -> None:
    session, seen = opened()
    newer = message(0x90, b"what") + b"\x0a\x05" + b"\x00\x09" + b"\x00\x81\x02ab"
    assert session.receive_data(newer + define() + update(1, ADDRESS, 1), NOW) == ack(1, 1)
    assert len(seen.updates) == 1


@pytest.mark.parametrize(
    ("data", "answer", "text"),
    [
        (b"\x02\x00", PROTOCOL_ERROR, "the unknown class 2"),
        (b"\xff\xff", PROTOCOL_ERROR, "the unknown class 255"),
        (b"\x0a\x80\xff\xff\xff", SIZE_ERROR, "too long"),
        (b"\x0a\x80" + varint(65_536), SIZE_ERROR, "65536 bytes; the maximum is 65535"),
        (b"\x0a\x82\x00", PROTOCOL_ERROR, "the frame ends"),
        (define() + update(1, ADDRESS[:8]), PROTOCOL_ERROR, "within a key"),
        (define() + update(1, ADDRESS), PROTOCOL_ERROR, "where an integer"),
        (define() + message(0x80, b"\0"), PROTOCOL_ERROR, "the frame ends"),
        (define(key=(STRING, 5)) + update(1, b"\x05abcde", 1), PROTOCOL_ERROR, "a key of 5 bytes"),
        (define() + define(bits=(1,)), PROTOCOL_ERROR, "becomes another"),
        (define() + define(2), PROTOCOL_ERROR, "a second table"),
        (message(0x83, varint(3)), PROTOCOL_ERROR, "a switch to the unknown table 3"),
        (ack(1, 1), PROTOCOL_ERROR, "an acknowledgement of the unknown table 1"),
        (message(0x84, varint(1)), PROTOCOL_ERROR, "the frame ends"),
        (define(bits=(19,)) + update(1, ADDRESS, string(b"\0")), PROTOCOL_ERROR, "number 0"),
    ],
)
def test_what_breaks_a_session_and_what_came_before_is_passed(
    data: bytes, answer: bytes, text: str
) -> None:
    session, seen = opened()
    fails(session, define(9, "before") + update(1, ADDRESS, 1) + data, answer, text)
    assert seen.updates == [Update("before", 1, ADDRESS, (1,))]
    assert seen.events == ["read"]


def test_an_update_without_a_table() -> None:
    session, _ = opened()
    fails(session, update(1, ADDRESS, 1), PROTOCOL_ERROR, "an update before the definition")


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (PROTOCOL_ERROR, ErrorType.PROTOCOL, "hap1 reports an error"),
        (SIZE_ERROR, ErrorType.SIZE, "hap1 reports a message that is too long"),
    ],
)
def test_an_error_that_haproxy_reports(data: bytes, status: ErrorType, text: str) -> None:
    session, _ = opened()
    fails(session, data, b"", text)
    assert session.error is not None
    assert session.error.status == status


def test_a_peer_that_causes_more_answers_than_fit() -> None:
    session, _ = opened()
    answers = session.receive_data(FINISHED * 100_000, NOW)
    assert len(answers) <= 1 << 16
    assert session.closed
    assert "more answers" in str(session.error)


def test_a_peer_that_asks_more_often_than_answers_fit() -> None:
    class Answers(Recorder):
        def on_sync_wanted(self, session: Session) -> None:
            session.finished()

    session, _ = opened(Answers())
    assert session.receive_data(ASK * 100_000, NOW) == FINISHED * (1 << 15)
    assert not session.closed
    assert session.receive_data(HEARTBEAT, NOW) == b""
    assert session.finished()


def test_an_incomplete_message_takes_no_more_than_its_size() -> None:
    session, _ = opened()
    start = b"\x0a\x82" + varint(65_535)
    session.receive_data(start, NOW)
    for _ in range(65):
        assert session.receive_data(b"\0" * 1000, NOW) == b""
        assert session.in_message and not session.closed
    fails(session, b"\0" * 600, PROTOCOL_ERROR, "the name of a table has 0 bytes")


def test_sessions_that_say_nothing_take_little_memory() -> None:
    tracemalloc.start()
    try:
        sessions = [Session(Recorder(), "agent", NOW) for _ in range(1000)]
        for session in sessions:
            session.receive_data(HELLO[:20], NOW)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / len(sessions) < 16_384


def test_heartbeats() -> None:
    session, _ = opened()
    said = []
    for second in range(10):
        now = NOW + second * SECOND
        session.receive_data(HEARTBEAT, now)
        session.look(now)
        if session.take() == HEARTBEAT:
            said.append(second)
    assert said == [3, 6, 9]


def test_what_is_said_saves_a_heartbeat() -> None:
    session, _ = opened()
    session.look(NOW + 2 * SECOND)
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    session.take()
    session.look(NOW + 4 * SECOND)
    assert session.take() == b""
    session.look(NOW + 5 * SECOND)
    assert session.take() == HEARTBEAT


def test_a_peer_that_falls_silent() -> None:
    session, _ = opened()
    for second in range(6):
        session.look(NOW + second * SECOND)
        assert not session.closed
    session.look(NOW + 6 * SECOND)
    assert session.closed
    assert str(session.error) == "no message for more than 5 s"
    assert session.take().endswith(PROTOCOL_ERROR)


def test_a_peer_that_sends_a_message_without_end_falls_silent_too() -> None:
    session, _ = opened()
    session.receive_data(b"\x0a\x82" + varint(5000), NOW)
    for second in range(1, 7):
        session.receive_data(b"\0", NOW + second * SECOND)
        session.look(NOW + second * SECOND)
    assert str(session.error) == "no message for more than 5 s"


def test_a_pause_of_the_agent_is_no_silence_of_the_peer() -> None:
    session, _ = opened()
    session.look(NOW + 60 * SECOND)
    assert not session.closed
    for second in range(61, 67):
        session.look(NOW + second * SECOND)
    assert session.closed


def test_a_peer_is_not_silent_while_its_data_waits() -> None:
    session, _ = opened()
    session.receive_data(CONFIRMED + define(4, "rlv_default", bits=(22,), parameters=(22, 3)), NOW)
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    for second in range(100):
        session.look(NOW + second * SECOND, unread=True)
    assert not session.closed
    for second in range(100, 107):
        session.look(NOW + second * SECOND)
    assert str(session.error) == "no message for more than 5 s"


@pytest.mark.parametrize("said", [b"", b"HAProxyS 2.1\nagent\n"])
def test_a_peer_without_a_hello(said: bytes) -> None:
    session = Session(Recorder(), "agent", NOW)
    session.receive_data(said, NOW)
    for second in range(6):
        session.look(NOW + second * SECOND)
        assert not session.closed and session.take() == b""
    session.look(NOW + 6 * SECOND)
    assert str(session.error) == "no handshake within 5 s"
    assert session.take() == b"501\n"


def test_a_peer_that_acknowledges_nothing() -> None:
    session, _ = opened()
    session.receive_data(CONFIRMED + define(4, "rlv_default", bits=(22,), parameters=(22, 3)), NOW)
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    session.take()
    assert session.unacknowledged == 2
    session.receive_data(ack(1, 1), NOW)
    assert session.unacknowledged == 1
    for second in range(31):
        session.receive_data(HEARTBEAT, NOW + second * SECOND)
        session.look(NOW + second * SECOND)
        assert not session.closed
    session.receive_data(HEARTBEAT, NOW + 31 * SECOND)
    session.look(NOW + 31 * SECOND)
    assert str(session.error) == "no update acknowledged for more than 30 s"


def test_what_haproxy_does_not_acknowledge_is_not_awaited() -> None:
    session, _ = opened()
    session.receive_data(define(4, "rlv_default"), NOW)
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    session.finished()
    session.take()
    assert session.unacknowledged == 0, "it is being taught"
    session.receive_data(CONFIRMED, NOW)
    assert session.unacknowledged == 0, "taught entries are confirmed together"
    unknown = Definition(2, "rlv_other", KeyType.IPV6, 16, (DataType.GPT0,))
    session.update(unknown, ADDRESS, (1,))
    assert session.unacknowledged == 0, "HAProxy does not have the table"
    session.update(VERDICTS, ADDRESS, (1, 2, 3))
    assert session.unacknowledged == 1


def test_a_listener_may_close_the_session_at_an_update() -> None:
    class Closes(Recorder):
        def on_update(self, session: Session, definition: Definition, update: object) -> None:
            session.close(Status.TRY_LATER)

    session, _ = opened(Closes())
    assert session.receive_data(define() + update(1, ADDRESS, 1) * 3 + b"\0", NOW) == b""
    assert session.closed and session.error is None and not session.in_message


def test_a_session_that_is_closed_before_its_hello() -> None:
    session = Session(Recorder(), "agent", NOW)
    session.close(Status.TRY_LATER)
    assert session.take() == b"300\n"
    session.close(Status.TRY_LATER)
    assert session.take() == b""


def test_updates_wait_for_room() -> None:
    session, _ = opened()
    sent = 0
    while session.update(VERDICTS, ADDRESS, (1, 2, 3)):
        sent += 1
    assert session.room() < 200
    assert len(list(messages(session.take()))) == sent + 1
    assert session.room() > 50_000


START = HELLO + ASK + define() + update(1, ADDRESS, 300, expire=900) + FINISHED
STREAM = (
    START
    + define(2, "k", (STRING, 65), (19, 22), (22, 3))
    + update(4, b"\x04gold", string(b"\x01" + string("s1")), 1, 2, 3)
)


@given(st.binary(max_size=400))
def test_any_bytes_leave_the_session_open_or_closed_with_an_error(noise: bytes) -> None:
    for session in (Session(Recorder(), "agent", NOW), opened()[0]):
        answer = session.receive_data(noise, NOW)
        assert session.closed == (session.error is not None)
        if session.closed and not session.opened:
            assert answer in (b"501\n", b"502\n")


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
def test_one_wrong_byte_never_raises(at: int, byte: int) -> None:
    session = Session(Recorder(), "agent", NOW)
    session.receive_data(STREAM[:at] + bytes([byte]) + STREAM[at + 1 :], NOW)
    assert session.closed == (session.error is not None)


@given(st.integers(0, len(STREAM)))
def test_a_stream_that_ends_anywhere(size: int) -> None:
    session = Session(Recorder(), "agent", NOW)
    session.receive_data(STREAM[:size], NOW)
    assert session.error is None
