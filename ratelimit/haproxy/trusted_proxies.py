"""Lists of trusted proxies, such as ``cdn.lst``: reading, checking and writing; no I/O.

One network per line, as HAProxy reads it with ``-f`` (configuration.txt, section 7.1.1). A line
that starts with ``#`` is a comment; a comment can't follow an entry. The comments ``date:`` and
``source:`` give the date and the source of a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

from ratelimit.limiter.keys import Network

OLDEST = timedelta(days=30)
"""Age after which a list should be updated."""

_WIDEST = {4: 12, 6: 28}
"""Shortest accepted prefixes by version. The widest that a CDN publishes are a /12 and a /29."""

_DATE = "# date: "
_SOURCE = "# source: "


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong; ``line`` is 0 for the whole list."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}" if self.line else self.problem


@dataclass(frozen=True, slots=True)
class ProxyList:
    """The content of a list.

    Attributes:
        networks: with their line numbers, in the order of the file.
        findings: invalid lines, and networks with bits set beyond their prefix.
        date: when the list was made, or None.
        sources: URLs that it was made from.
    """

    networks: tuple[tuple[int, Network], ...] = ()
    findings: tuple[Finding, ...] = ()
    date: datetime | None = None
    sources: tuple[str, ...] = field(default=())

    def count(self, version: int) -> int:
        """Return the number of networks of an IP version."""
        return sum(network.version == version for _, network in self.networks)


def read(text: str) -> ProxyList:
    """Return the content of the text of a list, including its mistakes."""
    networks: list[tuple[int, Network]] = []
    findings: list[Finding] = []
    date: datetime | None = None
    sources: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(_SOURCE):
            sources.append(line.removeprefix(_SOURCE).strip())
        elif line.startswith(_DATE):
            try:
                made = datetime.fromisoformat(line.removeprefix(_DATE).strip())
            except ValueError:
                findings.append(Finding(number, "not a date such as 2026-11-24T09:10:03Z"))
            else:
                date = made if made.tzinfo else made.replace(tzinfo=UTC)
        elif line.strip() and not line.startswith("#"):
            entry = line.strip()
            network = _parse(entry, strict=False)
            if network is None:
                findings.append(Finding(number, _explain(entry)))
                continue
            networks.append((number, network))
            if network != _parse(entry, strict=True):
                problem = f"{entry} has bits set beyond its prefix: HAProxy reads {network}"
                findings.append(Finding(number, problem))
    return ProxyList(tuple(networks), tuple(findings), date, tuple(sources))


def judge(found: ProxyList, now: datetime, private: bool = False) -> list[Finding]:
    """Return all findings of a list, in the order of its lines.

    ``private`` accepts ranges that are not public, such as those of load balancers.
    """
    findings = [*found.findings, *_overlaps(found.networks)]
    for number, network in found.networks:
        if network.prefixlen < _WIDEST[network.version]:
            problem = f"{network} is too wide: every address in it could name any client"
            findings.append(Finding(number, problem))
        if not private and not _is_public(network):
            problem = (
                f"{network} is not a public range: every host in it could name any client; "
                "--private accepts it"
            )
            findings.append(Finding(number, problem))
    if found.date is not None and now - found.date > OLDEST:
        days = (now - found.date).days
        findings.append(Finding(0, f"{days} days old: the CDN may have given up networks"))
    if found.date is not None and found.date - now > timedelta(days=1):
        findings.append(Finding(0, f"its date, {found.date:%Y-%m-%d}, is in the future"))
    return sorted(findings, key=lambda finding: finding.line)


def write(networks: Iterable[Network], date: datetime, sources: Sequence[str]) -> str:
    """Return the text of a list."""
    head = ["# Networks of a CDN. Written by `ratelimit trusted-proxies update`."]
    head.append(f"{_DATE}{date.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    head += [f"{_SOURCE}{source}" for source in sources]
    return "\n".join([*head, *map(str, networks)]) + "\n"


def _parse(entry: str, strict: bool) -> Network | None:
    if "%" in entry:  # HAProxy accepts no zone
        return None
    try:
        return ip_network(entry, strict=strict)
    except ValueError:
        return None


def _explain(entry: str) -> str:
    if "#" in entry:
        return "HAProxy accepts comments only on separate lines"
    return f"not an address or a network: {entry!a}"


def _is_public(network: Network) -> bool:
    ends = (network.network_address, network.broadcast_address)
    return all(end.is_global and not end.is_multicast for end in ends)


def _overlaps(networks: Iterable[tuple[int, Network]]) -> Iterator[Finding]:
    """Yield networks that others contain; in sorted order, each follows those that contain it."""
    for version in (4, 6):
        outer: list[tuple[int, Network]] = []
        of_version = [(number, one) for number, one in networks if one.version == version]
        for number, network in sorted(
            of_version, key=lambda entry: (int(entry[1][0]), entry[1].prefixlen, entry[0])
        ):
            while outer and outer[-1][1].broadcast_address < network.network_address:  # type: ignore[operator]
                outer.pop()
            if outer:
                line, around = outer[-1]
                same = network == around
                problem = f"{network} is duplicate" if same else f"{network} is in {around}"
                yield Finding(number, f"{problem}, see line {line}")
            outer.append((number, network))
