"""The lists of the configuration: who is never counted, and who is always refused.

A hundred thousand networks take a second to read, which the agent spends in a thread while it goes
on to answer. So no step here keeps the interpreter for long: networks are sorted in small pieces,
which are then merged one by one.
"""

from __future__ import annotations

import heapq
import itertools
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
_PIECE = 512  # networks sorted at a time
_SHOWN = 10  # mistakes of a file

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
    """Return the starts and the values of ``engine.networks`` for ranges that rise by their first.

    Where ranges overlap, the higher value holds.
    """
    starts = array("Q", (0, 0))
    values = array("Q", (0,))
    latest = 0  # where the last cut is
    active: list[tuple[int, int]] = []  # a heap of value, negated, and last address
    rest = iter(ranges)
    coming = next(rest, None)
    while active or coming is not None:
        at = active[0][1] + 1 if active else _END
        if coming is not None and coming[0] <= at:
            at, last, value = coming
            heapq.heappush(active, (-value, last))
            coming = next(rest, None)
        while active and active[0][1] < at:
            heapq.heappop(active)
        value = -active[0][0] if active else 0
        if at == latest:
            values[-1] = value
            if len(values) > 1 and values[-2] == value:
                values.pop()
                del starts[-2:]
                latest = starts[-2] << 64 | starts[-1]
        elif at < _END and value != values[-1]:
            starts.extend((at >> 64, at & 0xFFFFFFFFFFFFFFFF))
            values.append(value)
            latest = at
    return starts.tobytes(), values.tobytes()


def read_lists(
    allow: Sequence[str], deny: Sequence[str], allow_files: Sequence[str], deny_files: Sequence[str]
) -> Lists:
    """Return the lists; ConfigError with all that is wrong in the files."""
    problems: list[str] = []
    pieces: list[list[Range]] = []
    counts = []
    for value, networks, files in ((ALLOW, allow, allow_files), (DENY, deny, deny_files)):
        found = map(parse_network, networks)
        every = itertools.chain(found, *(_read_file(Path(name), problems) for name in files))
        ranges = (span(network, value) for network in every)
        before = sum(map(len, pieces))
        while piece := sorted(itertools.islice(ranges, _PIECE), reverse=True):
            pieces.append(piece)
            if before + _PIECE * len(pieces) > MAX_NETWORKS + 2 * _PIECE:
                break
        counts.append(sum(map(len, pieces)) - before)
    if sum(counts) > MAX_NETWORKS:
        problems.append(f"lists: more than {MAX_NETWORKS} networks")
    if problems:
        raise ConfigError(problems)
    return Lists(*cut(heapq.merge(*map(_drain, pieces))), *counts)


def _drain(piece: list[Range]) -> Iterator[Range]:
    """Yield the ranges from the last to the first, and let go of each.

    To let go of all of them at once would take 12 ms for 100,000.
    """
    while piece:
        yield piece.pop()


def _read_file(path: Path, problems: list[str]) -> Iterator[Network]:
    """Yield the networks of a file: one a line, the rest of a line after ``#`` is a comment."""
    wrong = 0
    try:
        with path.open(encoding="utf-8-sig", errors="backslashreplace") as lines:
            for number, line in enumerate(lines, 1):
                entry = line.partition("#")[0].strip()
                if not entry:
                    continue
                try:
                    yield parse_network(entry)
                except ValueError as error:
                    wrong += 1
                    if wrong <= _SHOWN:
                        problems.append(f"{path}: line {number}: {error}")
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    if wrong > _SHOWN:
        problems.append(f"{path}: {wrong - _SHOWN} more lines are wrong")
