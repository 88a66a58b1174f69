"""The hello of either side, and the status that answers it."""

from __future__ import annotations

import pytest

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import Status
from ratelimit.peers.handshake import (
    Hello,
    read_hello,
    read_status,
    write_hello,
    write_status,
)
from tests.helpers.peers_wire import HELLO


def test_the_hello_of_haproxy() -> None:
    assert read_hello(HELLO + b"\0\0") == Hello("agent", "hap1", 14979, len(HELLO))


def test_a_hello_is_read_as_it_was_written() -> None:
    written = write_hello("agent", "hap1", 7)
    assert written == b"HAProxyS 2.1\nagent\nhap1 7 1\n"
    assert read_hello(written) == Hello("agent", "hap1", 7, len(written))


@pytest.mark.parametrize("size", range(len(HELLO)))
def test_a_hello_may_come_in_parts(size: int) -> None:
    assert read_hello(HELLO[:size]) is None


def test_lines_may_end_with_carriage_returns() -> None:
    data = HELLO.replace(b"\n", b"\r\n")
    assert read_hello(data) == Hello("agent", "hap1", 14979, len(data))


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"GET / HTTP/1.1\r\n", Status.PROTOCOL, "no hello, but GET / HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00", Status.PROTOCOL, "no hello, but \\x16"),
        (b"HAProxyX", Status.PROTOCOL, "no hello, but HAProxyX"),
        (b"HAProxyS\n", Status.VERSION, "version  of the protocol, not 2.1"),
        (b"HAProxyS 2.2\n", Status.VERSION, "version 2.2 of the protocol, not 2.1"),
        (b"HAProxyS 2.0\n", Status.VERSION, "version 2.0"),
        (b"HAProxyS 2.10\n", Status.VERSION, "version 2.10"),
        (b"HAProxyS 2.1\nagent\n\n", Status.PROTOCOL, "NAME PID NUMBER"),
        (b"HAProxyS 2.1\nagent\nhap1\n", Status.PROTOCOL, "last line is hap1,"),
        (b"HAProxyS 2.1\nagent\nhap1 x 1\n", Status.PROTOCOL, "last line is hap1 x 1,"),
        (b"HAProxyS 2.1\nagent\n 1 1\n", Status.PROTOCOL, "last line"),
        (b"HAProxyS 2.1\n" + b"a" * 1100, Status.PROTOCOL, "more than 1024 bytes"),
    ],
)
def test_a_wrong_line_is_refused_as_soon_as_it_is_there(
    data: bytes, status: Status, text: str
) -> None:
    with pytest.raises(PeersError) as caught:
        read_hello(data)
    assert caught.value.status == status
    assert text in str(caught.value)


def test_a_name_can_not_write_into_the_log() -> None:
    hello = read_hello(b"HAProxyS 2.1\n\x1b[2J\nhap\xff 1 1\n")
    assert hello is not None
    assert (hello.remote, hello.local) == ("\\x1b[2J", "hap\\xff")


@pytest.mark.parametrize("status", list(Status))
def test_a_status_is_read_as_it_was_written(status: Status) -> None:
    written = write_status(status)
    assert read_status(written + b"\0\0") == (status, 4)
    assert all(read_status(written[:size]) is None for size in range(4))


@pytest.mark.parametrize("data", [b"20\n", b"2000\n", b"abc", b"\0\0", b"20000000000", b"\n"])
def test_what_is_no_status(data: bytes) -> None:
    with pytest.raises(PeersError, match="no status"):
        read_status(data)
