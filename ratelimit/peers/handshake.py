"""The hello and its status (peers.txt, "Handshake"), for both sides of a session."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit.exceptions import PeersError
from ratelimit.peers.constants import MAX_HELLO, VERSION, Status

_PROTOCOL = b"HAProxyS"
_LINES = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """The hello of a peer.

    Attributes:
        remote: the name that the peer expects of this side.
        local: the name of the peer.
        pid: its process.
        size: bytes of the hello.
    """

    remote: str
    local: str
    pid: int
    size: int


def read_hello(data: bytes) -> Hello | None:
    """Return the hello at the start of ``data``, or None if it is not yet complete.

    Raises PeersError with the status to answer, as soon as a line is wrong.
    """
    lines = data[:MAX_HELLO].split(b"\n", _LINES)
    whole = [line.removesuffix(b"\r") for line in lines[:-1]]
    if whole:
        protocol, _, version = whole[0].partition(b" ")
        if protocol != _PROTOCOL:
            raise PeersError(Status.PROTOCOL, f"no hello, but {_shown(whole[0])}")
        if version != VERSION:
            raise PeersError(
                Status.VERSION, f"version {_shown(version)} of the protocol, not {VERSION.decode()}"
            )
    elif not (_PROTOCOL + b" ").startswith(data[: len(_PROTOCOL) + 1]):
        raise PeersError(Status.PROTOCOL, f"no hello, but {_shown(data)}")
    if len(whole) < _LINES:
        if len(data) >= MAX_HELLO:
            raise PeersError(Status.PROTOCOL, f"a hello of more than {MAX_HELLO} bytes")
        return None
    words = whole[2].split(b" ")
    if len(words) < 2 or not words[0] or not words[1].isdigit():
        raise PeersError(
            Status.PROTOCOL, f"a hello whose last line is {_shown(whole[2])}, not NAME PID NUMBER"
        )
    size = sum(len(line) + 1 for line in lines[:-1])
    return Hello(_shown(whole[1]), _shown(words[0]), int(words[1][:10]), size)


def write_hello(remote: str, local: str, pid: int) -> bytes:
    """Return the hello to the peer ``remote``."""
    return b"%s %s\n%s\n%s %d 1\n" % (_PROTOCOL, VERSION, remote.encode(), local.encode(), pid)


def read_status(data: bytes) -> tuple[int, int] | None:
    """Return the status at the start of ``data`` and its bytes, or None if it is not complete.

    Raises PeersError.
    """
    line, end, _ = data[:8].partition(b"\n")
    digits = line.removesuffix(b"\r")
    if not end and len(data) < 8 and (digits.isdigit() or not digits):
        return None
    if not end or len(digits) != 3 or not digits.isdigit():
        raise PeersError(Status.PROTOCOL, f"no status, but {_shown(data)}")
    return int(digits), len(line) + 1


def write_status(status: int) -> bytes:
    """Return the answer to a hello."""
    return b"%d\n" % status


def _shown(value: bytes) -> str:
    """Return a text for logs: no control characters, at most 64 bytes."""
    text = value[:64].decode("ascii", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
