"""A stream of bytes as messages: split anywhere, too long, of no known class."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import ErrorType
from ratelimit.peers.messages import Messages
from tests.helpers.peers_wire import ASK, HEARTBEAT, PROTOCOL_ERROR, message
from tests.helpers.wire import varint

SIZES = [0, 1, 239, 240, 2287, 2288, 65_535]

Found = tuple[int, int, bytes]


def read(messages: Messages, data: bytes) -> list[Found]:
    found = []
    if messages.feed(data):
        while messages.next():
            content = messages.data[messages.start : messages.end]
            found.append((messages.group, messages.kind, content))
        messages.keep()
    return found


def test_messages_with_and_without_content() -> None:
    stream = ASK + message(0x82, b"abc") + PROTOCOL_ERROR + b"\x0a\x05" + message(0x84, b"")
    assert read(Messages(), stream) == [
        (0, 0, b""),
        (10, 0x82, b"abc"),
        (1, 0, b""),
        (10, 5, b""),
        (10, 0x84, b""),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_lengths(size: int) -> None:
    messages = Messages()
    content = bytes(size)
    assert read(messages, message(0x80, content) + HEARTBEAT) == [(10, 0x80, content), (0, 4, b"")]
    assert not messages.waiting()


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2000), max_size=12))
def test_a_stream_may_be_split_anywhere(contents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(message(0x90, content) + HEARTBEAT for content in contents)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    messages = Messages()
    found = [each for a, b in itertools.pairwise(edges) for each in read(messages, stream[a:b])]
    assert found == read(Messages(), stream)
    assert [content for _, kind, content in found if kind == 0x90] == contents
    assert not messages.waiting()


def test_a_byte_at_a_time_is_joined_once() -> None:
    stream = message(0x90, bytes(5000))
    messages = Messages()
    joined = 0
    for i in range(len(stream)):
        joined += messages.feed(stream[i : i + 1])
        if messages.data:
            assert messages.next() == (i == len(stream) - 1)
            messages.keep()
    assert joined <= 6, "while the length is unknown, and when the message is complete"


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"\x02\x00", ErrorType.PROTOCOL, "the unknown class 2"),
        (b"\xff\x80", ErrorType.PROTOCOL, "the unknown class 255"),
        (b"\x0a\x80" + varint(65_536), ErrorType.SIZE, "65536 bytes; the maximum is 65535"),
        (b"\x0a\x80" + varint(264_431), ErrorType.SIZE, "264431 bytes"),
        (b"\x0a\x80" + varint(264_432), ErrorType.SIZE, "too long"),
        (b"\x00\x80\xff\xff\xff", ErrorType.SIZE, "too long"),
        (b"\x01\xff\xf0\x80\x80", ErrorType.SIZE, "too long"),
    ],
)
def test_what_is_no_message(data: bytes, status: ErrorType, text: str) -> None:
    messages = Messages()
    messages.feed(HEARTBEAT + data)
    assert messages.next()
    with pytest.raises(PeersError, match=text) as caught:
        messages.next()
    assert caught.value.status == status
    messages.drop()
    assert not messages.waiting()
