"""What HAProxy has counted of a client itself, in the tables of peers mode; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from ratelimit.haproxy.commands import nat64
from ratelimit.haproxy.stats import Table, read_tables
from ratelimit.limiter.keys import Network

_ENTRY = re.compile(r"0x\S+: key=(\S+) (.*)")
_VALUE = re.compile(r"([a-z_]+\d*)(?:\((\d+)\))?=(\d+)")
_OTHERS = ("use", "exp", "shard")


@dataclass(frozen=True, slots=True)
class Counted:
    """An entry of a table of counts or verdicts.

    Attributes:
        socket: of the HAProxy.
        table: its name, without that of the section ``peers``.
        key: the client, as HAProxy has it; an IPv4 address without ``::ffff:``.
        expires_in: milliseconds until HAProxy drops the entry, unless it is used.
        values: by data type, such as ``http_req_cnt``; elements of an array are ``gpt0``, ``gpt1``.
        periods: milliseconds of the period of each rate among the values.
    """

    socket: str
    table: str
    key: str
    expires_in: int
    values: dict[str, int]
    periods: dict[str, int]


def show_clients(tables: Iterable[Table], wanted: Mapping[str, Iterable[Network]]) -> Iterator[str]:
    """Yield the commands that show clients in tables; ``wanted`` has them by the tables' last name.

    HAProxy shows no single entry of a table whose keys are digests.
    """
    for table in tables:
        for network in wanted.get(table.last_name, ()):
            for key in _keys(network, table.type):
                yield f"show table {table.name} key {key}"


def _keys(network: Network, kind: str) -> Iterator[str]:
    """Yield the keys of a client in a table with this type of keys."""
    first = int(network.network_address)
    if network.version == 6:
        if kind == "ipv6":
            yield str(IPv6Address(first))
    elif kind == "ip":
        yield str(network.network_address)
    elif kind == "ipv6":
        yield f"::ffff:{network.network_address}"
        if network.prefixlen == network.max_prefixlen:
            yield nat64(first)


def read_counted(socket: str, answer: Iterable[str]) -> Iterator[Counted]:
    """Yield the entries in the answers to these commands."""
    table = ""
    for line in answer:
        for header in read_tables([line]):
            table = header.last_name
        found = _ENTRY.match(line)
        if found is None or not table:
            continue
        values = {name: int(number) for name, _, number in _VALUE.findall(found[2])}
        periods = {name: int(period) for name, period, _ in _VALUE.findall(found[2]) if period}
        expires_in = values.get("exp", 0)
        for name in _OTHERS:
            values.pop(name, None)
        yield Counted(socket, table, _shown(found[1]), expires_in, values, periods)


def _shown(key: str) -> str:
    try:
        return str(IPv6Address(key).ipv4_mapped or key)
    except ValueError:
        return key  # of a table with keys of another type
