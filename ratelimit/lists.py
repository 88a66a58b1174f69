"""The lists of the configuration: who is never counted, and who is always refused.

They are read and cut into ``engine.networks`` form apart from the agent, in ``reload``: a hundred
thousand networks take most of a second, which no answer may wait for.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ratelimit.engine.constants import ALLOW, DENY
from ratelimit.exceptions import ConfigError
from ratelimit.keys import Network, parse_network

MAX_NETWORKS = 1_000_000
"""Of both lists together; each takes up to 48 bytes."""

_MAPPED = 0xFFFF << 32
_END = 1 << 128

Range = tuple[int, int, int]
"""First and last address, as 128 bits with IPv4 mapped, and the value of all of them."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Both lists, as ``engine.networks`` takes them; ``allow`` and ``deny`` count the networks."""

    starts: bytes = bytes(16)
    values: bytes = bytes(8)
    allow: int = 0
    deny: int = 0


def span(network: Network, value: int) -> Range:
    """Return the range of a network."""
    first = int(network.network_address)
    if network.version == 4:
        first |= _MAPPED
    # ipaddress has this too, and makes an object for it.
    return first, first | (1 << network.max_prefixlen - network.prefixlen) - 1, value


def cut(ranges: Iterable[Range]) -> tuple[bytes, bytes]:
    """Return the starts and the values of ``engine.networks``.

    Where ranges overlap, the higher value holds.
    """
    starts = array("Q", (0, 0))
    values = array("Q", (0,))
    opening = sorted(ranges)
    cuts = sorted({first for first, _, _ in opening} | {last + 1 for _, last, _ in opening})
    active: list[tuple[int, int]] = []
    opened = 0
    for at in cuts:
        while opened < len(opening) and opening[opened][0] == at:
            _, last, value = opening[opened]
            heapq.heappush(active, (-value, last))
            opened += 1
        while active and active[0][1] < at:
            heapq.heappop(active)
        value = -active[0][0] if active else 0
        if value == values[-1] or at == _END:
            continue
        if at == 0:
            values[0] = value
            continue
        starts.extend((at >> 64, at & 0xFFFFFFFFFFFFFFFF))
        values.append(value)
    return starts.tobytes(), values.tobytes()


def read_lists(
    allow: Sequence[str], deny: Sequence[str], allow_files: Sequence[str], deny_files: Sequence[str]
) -> Lists:
    """Return the lists; ConfigError with all that is wrong in the files."""
    problems: list[str] = []
    allowed = [parse_network(text) for text in allow]
    denied = [parse_network(text) for text in deny]
    for networks, files in ((allowed, allow_files), (denied, deny_files)):
        for name in files:
            networks.extend(_read_file(Path(name), problems))
    if len(allowed) + len(denied) > MAX_NETWORKS:
        problems.append(f"lists: more than {MAX_NETWORKS} networks")
    if problems:
        raise ConfigError(problems)
    ranges = [span(network, ALLOW) for network in allowed]
    ranges += [span(network, DENY) for network in denied]
    return Lists(*cut(ranges), len(allowed), len(denied))


def _read_file(path: Path, problems: list[str]) -> Iterator[Network]:
    """Yield the networks of a file: one a line, the rest of a line after ``#`` is a comment."""
    try:
        text = path.read_text("utf-8-sig", "backslashreplace")
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return
    wrong = 0
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            yield parse_network(entry)
        except ValueError as error:
            wrong += 1
            if wrong <= _SHOWN:
                problems.append(f"{path}: line {number}: {error}")
    if wrong > _SHOWN:
        problems.append(f"{path}: {wrong - _SHOWN} more lines are wrong")


_SHOWN = 10  # mistakes of a file
