"""Commands of HAProxy's runtime API for the edge table; no I/O.

HAProxy's command line has no quoting: a ``;`` or a line break would start another command. So
commands about blocks are built here only from numbers and from addresses that were parsed and
formatted again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ratelimit.limiter.keys import Network, key_network
from ratelimit.limiter.lists import span

TABLE = "t_block"
"""The stick table of blocked clients; ``gpt0`` is the epoch second at which a block ends."""

MAX_COMMAND = 15_000
"""Bytes of a command line: HAProxy's buffer has 16 KiB, and longer lines are dropped."""

_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_LOOPBACK = IPv6Address("::1")
_LAST_SECOND = (1 << 32) - 1  # gpt0 has 32 bits
_DONE = ("Entry currently in use, cannot remove", "Key not found.")  # the result is the same
_ENTRY = re.compile(r"key=(\S+) .*exp=(\d+) .*gpt0=(\d+)")


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Prefix lengths of the keys of the table: a client of the limit ``default``."""

    ipv4: int = 32
    ipv6: int = 64

    def of(self, network: Network) -> int:
        """Return the prefix length for this IP version."""
        return self.ipv4 if network.version == 4 else self.ipv6

    def client(self, network: Network) -> Network:
        """Return the client of the first address of a network."""
        return type(network)((int(network.network_address), self.of(network)), strict=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the edge table.

    Attributes:
        key: ``192.0.2.1``, or ``2001:db8::``, the first address of a client.
        until: epoch second at which the block ends; 0 for none.
        expires_in: milliseconds until HAProxy drops the entry.
    """

    key: str
    until: int
    expires_in: int

    @property
    def written(self) -> str:
        """The key in the form for a command."""
        return f"::ffff:{self.key}" if "." in self.key else self.key


def network_key(network: Network) -> str:
    """Return a network in the form for a map; a single address has no prefix length."""
    kind = IPv4Address if network.version == 4 else IPv6Address
    address = str(kind(int(network.network_address)))
    single = network.prefixlen == network.max_prefixlen
    return address if single else f"{address}/{int(network.prefixlen)}"


def entry_to_push(network: Network, prefixes: Prefixes) -> str | None:
    """Return the table key that blocks these addresses or part of them and no others, or None."""
    # A single address in a client with several addresses has no key of its own.
    return _key(network.network_address) if network.prefixlen <= prefixes.of(network) else None


def entries_of(network: Network, prefixes: Prefixes) -> list[str]:
    """Return the table keys of this network, or of the client that contains it."""
    keys = [_key(network.network_address)]
    if network.prefixlen == 32 and network.version == 4:
        # HAProxy stores a client behind NAT64 under the IPv6 address that it sees.
        keys.append(nat64(int(network.network_address)))
    if network.prefixlen > prefixes.of(network):
        keys.append(_key(network.supernet(new_prefix=prefixes.of(network)).network_address))
    if (inside := taken_for(network, prefixes)) is not None:
        keys.append(_key(inside.network_address))
    return list(dict.fromkeys(keys))


def nat64(ipv4: int) -> str:
    """Return the address of an IPv4 client behind NAT64 (RFC 6052), as HAProxy sees it."""
    return str(IPv6Address(int(_NAT64.network_address) | ipv4))


def taken_for(network: Network, prefixes: Prefixes) -> IPv4Network | None:
    """Return the IPv4 clients under which HAProxy 3.0 and later may store these addresses.

    Its ``ipmask()`` takes the IPv4 address from 6to4 addresses (RFC 3056) and from IPv4-compatible
    ones (RFC 4291, 2.5.5.1). Of the latter, only ``::1`` occurs as a client.
    """
    if network.version == 4:
        return None
    if network.subnet_of(_SIX_TO_FOUR):
        number = int(network.network_address) >> 80 & 0xFFFFFFFF
        bits = min(network.prefixlen - _SIX_TO_FOUR.prefixlen, prefixes.ipv4)
        return IPv4Network((number, bits), strict=False)
    if _LOOPBACK in network:
        return IPv4Network((int(_LOOPBACK), prefixes.ipv4), strict=False)
    return None


def within(key: str, network: Network) -> bool:
    """Return whether all addresses of a key are in this network; ``::/0`` includes IPv4."""
    other = key_network(key)
    if other is None:
        return False
    first, last, _ = span(network, 0)
    begin, end, _ = span(other, 0)
    return first <= begin and end <= last


def _key(address: IPv4Address | IPv6Address) -> str:
    # Built from the number, without any other part of the address object.
    number = int(address)
    return f"::ffff:{IPv4Address(number)}" if address.version == 4 else str(IPv6Address(number))


def show_prefixes() -> str:
    """Return the command that shows the prefix lengths of the shipped haproxy.cfg."""
    return "show env RATELIMIT_IPV4_PREFIX;show env RATELIMIT_IPV6_PREFIX"


def set_entry(key: str, until: int) -> str:
    """Return the command that blocks a key until an epoch second."""
    return f"set table {TABLE} key {key} data.gpt0 {max(0, min(int(until), _LAST_SECOND))}"


def clear_entry(key: str) -> str:
    """Return the commands that remove a key.

    An entry in use by a request can't be removed, so its block is ended first.
    """
    return f"{set_entry(key, 0)};clear table {TABLE} key {key}"


def show_entries(keys: Iterable[str] = ()) -> str:
    """Return the command that shows these entries of the table, or all."""
    return ";".join(f"show table {TABLE} key {key}" for key in keys) or f"show table {TABLE}"


def batches(commands: Iterable[str]) -> Iterator[str]:
    """Join commands to lines of at most ``MAX_COMMAND`` bytes."""
    line: list[str] = []
    size = 0
    for command in commands:
        if size + len(command) + 1 > MAX_COMMAND:
            yield ";".join(line)
            line, size = [], 0
        line.append(command)
        size += len(command) + 1
    if line:
        yield ";".join(line)


def refusal(answer: Sequence[str]) -> str:
    """Return why HAProxy refused a command, for operators; empty if it did not."""
    for line in answer:
        if line and line not in _DONE:
            return _EXPLAINED.get(line, f"HAProxy answers: {ascii(line)[1:-1]}")
    return ""


_EXPLAINED = {
    "Permission denied": "the socket's level is too low; tables need `level operator` on "
    "HAProxy's `stats socket` line, servers and (from 3.4 on) maps need `level admin`",
    "No such table": f"HAProxy has no stick table {TABLE}; see backend {TABLE} of haproxy.cfg",
    "Invalid key": f"the stick table {TABLE} is not of `type ipv6`",
    "Data type not stored in this table": f"the stick table {TABLE} does not `store gpt0`",
}


def read_prefixes(answer: Iterable[str]) -> Prefixes:
    """Return the prefixes in the answer to ``show_prefixes()``; missing ones have their default."""
    found = (re.fullmatch(r"RATELIMIT_IPV([46])_PREFIX=(\d{1,3})", line) for line in answer)
    return Prefixes(**{f"ipv{one[1]}": int(one[2]) for one in found if one})


def read_entries(answer: Iterable[str]) -> list[Entry]:
    """Return the entries in the answer to ``show table``."""
    return [entry for entry in map(read_entry, answer) if entry is not None]


def read_entry(line: str) -> Entry | None:
    """Return the entry in a line of ``show table``; None if there is none."""
    found = _ENTRY.search(line)
    if found is None:
        return None
    try:
        key = str(IPv6Address(found[1]).ipv4_mapped or found[1])
    except ValueError:
        return None
    return Entry(key, int(found[3]), int(found[2]))
