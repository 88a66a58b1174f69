"""Durations and addresses as text, in the configuration and on the command line; escaped text."""

from __future__ import annotations

import os
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ratelimit.model import Address

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
DAY = 86_400 * SECOND

_UNITS = {"d": DAY, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": MILLISECOND}
_LONGEST_HOST = 253  # RFC 1035, section 2.3.4
_LONGEST_UNIX_PATH = 107  # sun_path of unix(7), less the NUL


def printable(text: str) -> str:
    """Return a text for a line of a log, an error or a table: control characters are escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def parse_duration(text: str) -> int:
    """Return the nanoseconds of a duration such as ``10ms``, ``1s``, ``5m``, ``24h`` or ``7d``.

    ``0`` needs no unit. Raises ValueError for anything else.
    """
    if text == "0":
        return 0
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text)
    if match is None:
        raise ValueError('must be a whole number and a unit, such as "10ms", "1s", "5m" or "24h"')
    return int(match[1]) * _UNITS[match[2]]


def format_duration(nanoseconds: int) -> str:
    """Return the shortest text that ``parse_duration`` reads as these whole milliseconds."""
    if not nanoseconds:
        return "0"
    name, unit = next(item for item in _UNITS.items() if nanoseconds % item[1] == 0)
    return f"{nanoseconds // unit}{name}"


def parse_host_port(text: str) -> Address:
    """Return the address of ``HOST:PORT``, with an IPv6 host in brackets. Raises ValueError.

    Port 0 means any free port.
    """
    match = re.fullmatch(r"(?:\[([^]]*)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None:
        raise ValueError("must be HOST:PORT, with an IPv6 address in brackets")
    ipv6, host, port = match[1], match[2], int(match[3])
    try:
        if ipv6 is not None:
            host = str(IPv6Address(ipv6))
        elif not re.search("[A-Za-z]", host):
            host = str(IPv4Address(host))
        elif len(host) > _LONGEST_HOST or not re.fullmatch(r"([^.]{1,63}\.)*[^.]{1,63}", host):
            raise ValueError("a host name must have parts of 1 to 63 characters, 253 in total")
    except AddressValueError as error:
        raise ValueError(f"not an address: {error}") from error
    if port > 65_535:
        raise ValueError("a port must be at most 65535")
    return Address(host, port)


def parse_listen(text: str) -> Address:
    """Return the address of ``tcp://HOST:PORT`` or ``unix:///PATH``. Raises ValueError."""
    if text.startswith("tcp://"):
        return parse_host_port(text.removeprefix("tcp://"))
    if not text.startswith("unix:///"):
        raise ValueError('must be "tcp://HOST:PORT" or "unix:///PATH"')
    return Address(path=parse_unix_path(text))


def parse_unix_path(text: str) -> str:
    """Return the path of ``/PATH``, ``unix:///PATH`` or ``unix@/PATH``. Raises ValueError."""
    path = text.removeprefix("unix://").removeprefix("unix@")
    if not path.startswith("/"):
        raise ValueError('must be the path of a unix socket, such as "/run/haproxy/ratelimit.sock"')
    if "\0" in path or path.endswith("/"):
        raise ValueError("not the path of a socket file")
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise ValueError(f"the path of a socket must have at most {_LONGEST_UNIX_PATH} bytes")
    return path
