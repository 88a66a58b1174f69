"""Trusted peers: networks of the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from ratelimit.limiter.keys import network_text, parse_network


def trusted_network(text: str) -> str:
    """Return a network or address in its shortest form. Raises ValueError."""
    return network_text(parse_network(text))


def peer_address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address of a peer, as the kernel writes it; None for a peer without one."""
    try:
        address = ip_address(host.partition("%")[0])  # fe80::1%eth0
    except ValueError:
        return None
    # An IPv4 peer on a dual-stack socket.
    return (address.ipv4_mapped or address) if address.version == 6 else address


class Trusted:
    """A set of networks; ``address in trusted`` tests an address."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(parse_network(text) for text in networks)

    def __contains__(self, host: str) -> bool:
        """Return whether a peer's address, as the kernel writes it, is in one of the networks."""
        address = peer_address(host)
        return address is not None and any(address in network for network in self._networks)


def is_loopback(host: str) -> bool:
    """Return whether the address of a peer is on this machine."""
    return host in _LOOPBACK


_LOOPBACK = Trusted(("127.0.0.0/8", "::1"))
