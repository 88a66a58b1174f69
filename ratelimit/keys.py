"""Keys as people and HAProxy write them."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ratelimit.engine.constants import ADDRESS
from ratelimit.model import Limit

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_MAX_TEXT = 200  # bytes
_HASHED = re.compile(r".*~([0-9a-f]{16})([0-9a-f]{16})", re.DOTALL)

Network = IPv4Network | IPv6Network


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
    if hi == 0 and lo >> 32 == 0xFFFF:
        return network_text(IPv4Network((lo & 0xFFFFFFFF, ipv4_prefix)))
    return network_text(IPv6Network((hi << 64 | lo, ipv6_prefix)))


def parse_network(text: str, strict: bool = True) -> Network:
    """Return the network, or the address as a network of one; raises ValueError.

    With ``strict`` no bits may be set beyond the prefix. An IPv6 address that is counted as an IPv4
    one is that: an IPv4-mapped one, and one of ``64:ff9b::/96`` (RFC 6052).
    """
    if "%" in text:
        raise ValueError(f"a zone is not part of an address: {text!a}")
    try:
        network = ip_network(text, strict=strict)
    except ValueError:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"not an address or a network: {text!a}") from None
        raise ValueError(f"{text!a} has bits set beyond its prefix; is it {network}?") from None
    if network.version == 4:
        return network
    for outer in (_MAPPED, _NAT64):
        if network.subnet_of(outer):
            inner = int(network.network_address) & 0xFFFFFFFF
            return IPv4Network((inner, network.prefixlen - outer.prefixlen))
    if network.supernet_of(_NAT64) and not network.supernet_of(_MAPPED):
        raise ValueError(f"clients in {_NAT64} are counted by the IPv4 address inside: name that")
    return network


def network_text(network: Network) -> str:
    """Return a network as a key: that of one address as the address."""
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def key_network(text: str) -> Network | None:
    """Return the network that a key is; None for a key that is another string."""
    if "." not in text and ":" not in text:
        return None
    try:
        return parse_network(text)
    except ValueError:
        return None


def first_address(key: str) -> str:
    """Return the first address of a key that is a network; other keys as they are."""
    network = key_network(key)
    return key if network is None else str(network.network_address)


def key_hash(text: str) -> tuple[int, int] | None:
    """Return the hash that a key as text ends with, its upper and lower 64 bits; None without."""
    found = _HASHED.fullmatch(text)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def key_bytes(text: str) -> bytes:
    """Return what ``engine.key`` takes for a key as text: of a network its first address."""
    return first_address(text).encode("utf-8", "surrogateescape")


_LIKE_ADDRESS = re.compile(
    r"[0-9]+(\.[0-9]+){3}(\.|:[0-9]+)?"  # four numbers, as a log may have them
    r"|[0-9.]+/.*"  # an IPv4 network
    r"|[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*(%.*)?(/.*)?"
    r"|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){6,}(%.*)?(/.*)?"
    r"|\[[0-9A-Fa-f:.]*:.*\](:[0-9]+)?",
    re.DOTALL,
)
"""What somebody who wrote this can only have meant as an address or a network."""


def canonical(text: str) -> str:
    """Return a key as blocks have it: an address or network in its shortest form, else as it is.

    A network without host bits; one of a single address is that address; an IPv4-mapped address is
    the IPv4 one. Raises ValueError for what is nearly an address: a mistake, and not a string.
    """
    try:
        return network_text(parse_network(text, strict=False))
    except ValueError:
        if _LIKE_ADDRESS.fullmatch(text):
            raise ValueError("must be an IPv4 or IPv6 address or network") from None
        return text


def has_host_bits(text: str) -> bool:
    """Tell whether a network is written by an address in it that is not its first."""
    try:
        network = parse_network(text, strict=False)
    except ValueError:
        return False
    return ip_address(text.partition("/")[0]) not in (network[0], ip_network(text, False)[0])


def counted_key(key: str, limit: Limit) -> str:
    """Return as whom a limit counts an address or network; other keys stay as they are."""
    network = key_network(key)
    if network is None:
        return key
    bits = limit.ipv4_prefix if network.version == 4 else limit.ipv6_prefix
    return network_text(network.supernet(new_prefix=min(bits, network.prefixlen)))


def wider_keys(key: str) -> list[str]:
    """Return the networks that an address or network is in, the narrowest first."""
    network = key_network(key)
    if network is None:
        return []
    widths = range(network.prefixlen - 1, -1, -1)
    return [network_text(network.supernet(new_prefix=bits)) for bits in widths]
