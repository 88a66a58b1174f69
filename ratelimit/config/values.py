"""The types of the fields: what a value may be, and the error for another one."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, StringConstraints
from pydantic_settings import NoDecode

from ratelimit.agent.trust import trusted_network
from ratelimit.files import read_secret
from ratelimit.model import NAME, TABLE_PREFIX, Address
from ratelimit.notation import (
    DAY,
    MILLISECOND,
    SECOND,
    format_duration,
    parse_duration,
    parse_host_port,
    parse_listen,
    parse_unix_path,
)
from ratelimit.store import MEMORY
from ratelimit.store.redis.url import parse

if TYPE_CHECKING:
    from collections.abc import Callable


_T = TypeVar("_T")


def _duration(value: object) -> int:
    # A variable with the value 0 arrives as a number.
    if value == 0 and type(value) is int:
        return 0
    return parse_duration(value if isinstance(value, str) else "")


def _text(parse: Callable[[str], Address]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value if isinstance(value, str) else ""))


def _between(low: int, high: int, unit: int) -> Callable[[int], int]:
    """Return a check that a duration is from ``low`` to ``high`` and a multiple of ``unit``."""

    def check(value: int) -> int:
        if value % unit:
            raise ValueError(f"must be a multiple of {format_duration(unit)}")
        if not low <= value <= high:
            raise ValueError(f"must be from {format_duration(low)} to {format_duration(high)}")
        return value

    return check


def _sync_interval(value: int) -> int:
    return value if value == 0 else _between(MILLISECOND, 10 * SECOND, MILLISECOND)(value)


def _store_url(url: str) -> str:
    if url != MEMORY:
        parse(url)
    return url


def _webhook_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0
    except ValueError:
        named = False
    if not url.startswith(("http://", "https://")) or not named or not url.isprintable():
        raise ValueError("must be https://HOST[:PORT]/PATH, or http:// in a trusted network")
    if "@" in parts.netloc:
        raise ValueError("must have no user or password; receivers verify the signature")
    return url


def check_host_name(name: str) -> str:
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", name):
        raise ValueError("must be a host name or an IPv4 address, without a port")
    return name.lower()


def _origin(text: str) -> str:
    """Return an origin in the form that browsers send (RFC 6454, section 6.2)."""
    found = re.fullmatch(
        r"(https?)://([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", text
    )
    if not found:
        raise ValueError('must be "https://HOST[:PORT]", without a path')
    scheme, host, port = found[1], found[2].lower(), found[3] or ""
    usual = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" + (f":{int(port)}" if port not in ("", usual) else "")


def _path(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError("names the home directory of an unknown user") from None
    return path


def _folder(path: str) -> str:
    if path and (not path.startswith("/") or "\0" in path):
        raise ValueError('must be the absolute path of a directory, such as "/run/ratelimit"')
    return path


def _peer_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,255}", name):
        raise ValueError("must have 1 to 255 of the characters A-Z a-z 0-9 _ . : -")
    return name


def _haproxy_peer(value: object) -> tuple[str, Address]:
    name, found, address = (value if isinstance(value, str) else "").partition("@")
    if not found:
        raise ValueError('must be "NAME@tcp://HOST:PORT" or "NAME@unix:///PATH"')
    return _peer_name(name), parse_listen(address)


def _count_table(name: str) -> str:
    if name and not re.fullmatch(TABLE_PREFIX + NAME, name):
        raise ValueError(
            f'must be the name of a stick table that begins with "{TABLE_PREFIX}", '
            f'such as "{TABLE_PREFIX}default"'
        )
    return name


def _readable(path: str) -> str:
    if path:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
    return path


def _some(named: tuple[_T, ...]) -> tuple[_T, ...]:
    if not named:
        raise ValueError("must name at least one")
    return named


def _different(sockets: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(sockets)) < len(sockets):
        raise ValueError("names a socket twice")
    return sockets


def _ladder(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if any(longer <= block for block, longer in pairwise(blocks)):
        raise ValueError("each block must be longer than the one before it")
    return blocks


def _secret_file(path: str) -> str:
    if path:
        try:
            read_secret(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{path}: {why}") from None
    return path


Duration = Annotated[int, BeforeValidator(_duration)]
"""Text in the file, nanoseconds in memory."""

Listen = Annotated[Address, _text(parse_listen)]
HostPort = Annotated[Address, NoDecode, _text(parse_host_port)]
Window = Annotated[Duration, AfterValidator(_between(100 * MILLISECOND, DAY, MILLISECOND))]
BlockLength = Annotated[Duration, AfterValidator(_between(SECOND, 30 * DAY, SECOND))]
Forget = Annotated[Duration, AfterValidator(_between(SECOND, 366 * DAY, SECOND))]
Hold = Annotated[Duration, AfterValidator(_between(SECOND, DAY, SECOND))]
SyncInterval = Annotated[Duration, AfterValidator(_sync_interval)]
HostName = Annotated[str, AfterValidator(check_host_name)]
Origin = Annotated[str, AfterValidator(_origin)]
FilePath = Annotated[str, AfterValidator(_path)]
TrustedNetwork = Annotated[str, AfterValidator(trusted_network)]
StatsSocket = Annotated[str, AfterValidator(parse_unix_path)]
LimitName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""A name that HAProxy accepts for a SPOE message, of at most 64 characters."""

PeerName = Annotated[str, AfterValidator(_peer_name)]
HaproxyPeer = Annotated[tuple[str, Address], BeforeValidator(_haproxy_peer)]
"""The name of an HAProxy and the address of its own peers socket."""

CountTable = Annotated[str, AfterValidator(_count_table)]
ReadableFile = Annotated[str, AfterValidator(_readable)]
SecretFile = Annotated[str, AfterValidator(_secret_file)]
Folder = Annotated[str, AfterValidator(_folder)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
WebhookUrl = Annotated[str, AfterValidator(_webhook_url)]
Ladder = Annotated[tuple[BlockLength, ...], AfterValidator(_ladder)]
Some = AfterValidator(_some)
"""For a list of at least one."""

Different = AfterValidator(_different)
"""For a list without repetitions."""
