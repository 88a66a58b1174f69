"""Keys as people and HAProxy write them."""

from __future__ import annotations

import contextlib
import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from ratelimit.engine.constants import ADDRESS
from ratelimit.model import Limit

_MAPPED = 0xFFFF
_MAX_TEXT = 200


def key_text(kind: int, hi: int, lo: int, text: bytes, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the key of a client: ``192.0.2.1``, ``2001:db8::/64``, or the string itself.

    ``kind``, ``hi`` and ``lo`` are those of ``engine.key``, already cut to the prefix. A string
    that is not UTF-8 keeps its other bytes as ``\\xNN``, and one of more than 200 bytes is cut and
    told apart by its hash.
    """
    if kind != ADDRESS:
        shown = text[:_MAX_TEXT].decode("utf-8", "backslashreplace")
        return shown if len(text) <= _MAX_TEXT else f"{shown}~{hi:016x}{lo:016x}"
    if hi == 0 and lo >> 32 == _MAPPED:
        network = IPv4Network((lo & 0xFFFFFFFF, ipv4_prefix))
        return str(network.network_address if ipv4_prefix == 32 else network)
    network6 = IPv6Network((hi << 64 | lo, ipv6_prefix))
    return str(network6.network_address if ipv6_prefix == 128 else network6)


def key_bytes(text: str) -> bytes:
    """Return what ``engine.key`` takes for a key as text: of a network its address."""
    if "/" in text:
        with contextlib.suppress(ValueError):
            return str(ip_network(text).network_address).encode()
    return text.encode("utf-8", "surrogateescape")


_LIKE_ADDRESS = re.compile(
    r"[0-9]+(\.[0-9]+){3}"  # four numbers
    r"|[0-9.]+/.*"  # an IPv4 network
    r"|[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*(%.*)?(/.*)?"
    r"|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){6,}(%.*)?(/.*)?",
    re.DOTALL,
)
"""What somebody who wrote this can only have meant as an address or a network."""


def canonical(text: str) -> str:
    """Return a key as blocks have it: an address or network in its shortest form, else as it is.

    A network without host bits; one of a single address is that address; an IPv4-mapped address is
    the IPv4 one. Raises ValueError for what is nearly an address: a mistake, and not a string.
    """
    try:
        network = _network(text)
    except ValueError:
        if _LIKE_ADDRESS.fullmatch(text):
            raise ValueError("must be an IPv4 or IPv6 address or network") from None
        return text
    return _shown(network)


def has_host_bits(text: str) -> bool:
    """Tell whether a network is written by an address in it that is not its first."""
    with contextlib.suppress(ValueError):
        return (
            "/" in text
            and ip_address(text.partition("/")[0]) != ip_network(text, strict=False).network_address
        )
    return False


def counted_key(key: str, limit: Limit) -> str:
    """Return the key under which a limit counts an address or network that is canonical."""
    try:
        network = _network(key)
    except ValueError:
        return key
    prefix = limit.ipv4_prefix if network.version == 4 else limit.ipv6_prefix
    return _shown(network.supernet(new_prefix=min(prefix, network.prefixlen)))


def wider_keys(key: str) -> list[str]:
    """Return the networks that a canonical address or network is in, the narrowest first."""
    try:
        network = _network(key)
    except ValueError:
        return []
    return [
        _shown(network.supernet(new_prefix=bits)) for bits in range(network.prefixlen - 1, -1, -1)
    ]


def _network(text: str) -> IPv4Network | IPv6Network:
    if "%" in text:
        raise ValueError("a zone is not part of an address")
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _shown(network: IPv4Network | IPv6Network) -> str:
    alone: IPv4Address | IPv6Address = network.network_address
    return str(alone if network.prefixlen == network.max_prefixlen else network)
