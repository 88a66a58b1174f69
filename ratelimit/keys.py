"""Keys as people and HAProxy write them."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Network, IPv6Network, ip_network

from ratelimit.engine.constants import ADDRESS

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
