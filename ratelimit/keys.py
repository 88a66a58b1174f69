"""Keys as people and HAProxy write them."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Network, IPv6Network, ip_network

from ratelimit.engine.constants import ADDRESS

_MAPPED = 0xFFFF
_MAX_TEXT = 200  # bytes
_HASHED = re.compile(r".*~([0-9a-f]{16})([0-9a-f]{16})", re.DOTALL)


def key_text(kind: int, hi: int, lo: int, text: bytes, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the key of a client: ``192.0.2.1``, ``2001:db8::/64``, or the string itself.

    ``kind``, ``hi`` and ``lo`` are those of ``engine.key``, already cut to the prefix. A string
    that is not UTF-8 keeps its other bytes as ``\\xNN``, and one of more than 200 bytes is cut;
    both are known by the hash at their end.
    """
    if kind != ADDRESS:
        shown = text[:_MAX_TEXT].decode("utf-8", "backslashreplace")
        # Also one that looks like it, so that every key that ends so was made here.
        told = shown.encode() != text or key_hash(shown) is not None
        return f"{shown}~{hi:016x}{lo:016x}" if told else shown
    if hi == 0 and lo >> 32 == _MAPPED:
        network = IPv4Network((lo & 0xFFFFFFFF, ipv4_prefix))
        return str(network.network_address if ipv4_prefix == 32 else network)
    network6 = IPv6Network((hi << 64 | lo, ipv6_prefix))
    return str(network6.network_address if ipv6_prefix == 128 else network6)


def key_hash(text: str) -> tuple[int, int] | None:
    """Return the hash that a key as text ends with, its upper and lower 64 bits; None without."""
    found = _HASHED.fullmatch(text)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def key_bytes(text: str) -> bytes:
    """Return what ``engine.key`` takes for a key as text: of a network its address."""
    if "/" in text:
        with contextlib.suppress(ValueError):
            return str(ip_network(text).network_address).encode()
    return text.encode("utf-8", "surrogateescape")
