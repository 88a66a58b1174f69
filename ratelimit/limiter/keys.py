"""Keys as text, in the forms of operators and of HAProxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ratelimit.engine.layout import ADDRESS, MAPPED
from ratelimit.limiter.suggest import Forms, meant
from ratelimit.model import Limit

_NAT64 = 0x0064FF9B << 64  # the upper 96 bits of 64:ff9b::/96
_APART = 10  # shorter networks contain both prefixes
_LATEST = 64  # keys whose network is cached; operations on a key need it several times
_HASHED = re.compile(r".*(~[0-9a-f]{32})", re.DOTALL)
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")

Network = IPv4Network | IPv6Network


def client_key(kind: int, hi: int, lo: int, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the key of a client: ``192.0.2.1``, ``2001:db8::/64``, or the hash of a string.

    ``kind``, ``hi`` and ``lo`` are those of ``engine.key``, already masked by the prefix.
    """
    if kind != ADDRESS:
        return hash_key(hi, lo)
    if hi == 0 and lo >> 32 == MAPPED:
        return network_text(IPv4Network((lo & 0xFFFFFFFF, ipv4_prefix)))
    return network_text(IPv6Network((hi << 64 | lo, ipv6_prefix)))


def parse_network(text: str, strict: bool = True) -> Network:
    """Return a network, or a single address as a network of one. Raises ValueError.

    With ``strict``, no bits may be set beyond the prefix. IPv4-mapped addresses and those of
    ``64:ff9b::/96`` (RFC 6052) become IPv4, as they are counted.
    """
    if "%" in text:
        raise ValueError(_mistake(text))
    try:
        network = ip_network(text, strict=strict)
    except ValueError:
        raise ValueError(_mistake(text)) from None
    if network.version == 4:
        return network
    first, bits = int(network.network_address), network.prefixlen
    if bits >= 96 and first >> 32 in (MAPPED, _NAT64):
        return IPv4Network((first & 0xFFFFFFFF, bits - 96))
    return network


def misses_nat64(network: Network) -> str:
    """Return a hint if a network lacks the NAT64 clients that it seems to contain, else nothing."""
    outside = 128 - network.prefixlen
    if network.version == 4 or not _APART <= network.prefixlen < 96:
        return ""
    if int(network.network_address) >> outside != _NAT64 << 32 >> outside:
        return ""
    return "clients of 64:ff9b::/96 are counted by their IPv4 address: use that address"


def _mistake(text: str) -> str:
    forms = meant(text)
    if "%" in text and forms:
        return f"an address can't have a zone: {text!a}{_suggested(forms)}"
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return f"not an address or a network: {text!a}{_suggested(forms or ())}"
    return f"{text!a} has bits set beyond its prefix; is it {network}?"


def _suggested(forms: Forms) -> str:
    return f"; is it {' and '.join(forms)}?" if forms else ""


def network_text(network: Network) -> str:
    """Return a network as a key: a network of one address as the address."""
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


@lru_cache(_LATEST)
def key_network(text: str) -> Network | None:
    """Return the network of a key; None for a key that is another string."""
    if "." not in text and ":" not in text:
        return None
    try:
        return parse_network(text)
    except ValueError:
        return None


def first_address(key: str) -> str:
    """Return the first address of a key that is a network; other keys unchanged."""
    network = key_network(key)
    return key if network is None else str(network.network_address)


def hash_key(hi: int, lo: int) -> str:
    """Return the key of a string from the upper and lower 64 bits of its hash."""
    return f"~{hi:016x}{lo:016x}"


def hash_of(text: str) -> str | None:
    """Return the key in a string that ends with its hash, ``~`` and 32 digits, or None."""
    found = _HASHED.fullmatch(text)
    return found[1] if found else None


def hash_numbers(key: str) -> tuple[int, int] | None:
    """Return the upper and lower 64 bits of a key that is a hash; None for an address."""
    return (int(key[1:17], 16), int(key[17:], 16)) if key.startswith("~") else None


def is_key(text: str) -> bool:
    """Return whether a text is a key of the blocklist: an address, a network or a hash."""
    if text.startswith("~"):
        return hash_of(text) == text
    return _IPV4.fullmatch(text) is not None or key_network(text) is not None


def is_like_address(text: str) -> bool:
    """Return whether a text is an address or a network, or resembles one."""
    if meant(text) is not None:
        return True
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def canonical(text: str) -> str | None:
    """Return an address or network in its shortest form; None for another string.

    Host bits are removed, a network of one address becomes the address, an IPv4-mapped address
    becomes IPv4. Raises ValueError for a text that resembles an address, with the nearest valid
    form.
    """
    try:
        return network_text(parse_network(text, strict=False))
    except ValueError as error:
        forms = meant(text)
        if forms is None:
            return None
        what = "must be an IPv4 or IPv6 address or network"
        raise ValueError(f"{what}{_suggested(forms)}") from error


def has_host_bits(text: str) -> bool:
    """Return whether a network is written with an address that is not its first."""
    try:
        network = parse_network(text, strict=False)
    except ValueError:
        return False
    return ip_address(text.partition("/")[0]) not in (network[0], ip_network(text, False)[0])


def counted_key(key: str, limit: Limit) -> str:
    """Return the key under which a limit counts an address or network; other keys unchanged."""
    network = key_network(key)
    if network is None:
        return key
    bits = limit.ipv4_prefix if network.version == 4 else limit.ipv6_prefix
    return network_text(network.supernet(new_prefix=min(bits, network.prefixlen)))


def wider_keys(key: str) -> Iterator[str]:
    """Yield the networks that contain an address or network, the narrowest first."""
    network = key_network(key)
    if network is not None:
        for bits in range(network.prefixlen - 1, -1, -1):
            yield network_text(network.supernet(new_prefix=bits))
