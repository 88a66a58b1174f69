"""The lists of the configuration: who is never counted, and who is always refused.

A hundred thousand networks take a second to read, which the agent spends in a thread while it goes
on to answer. So no step here keeps the interpreter for long: networks are sorted in small pieces,
which are then merged one by one.
"""

from __future__ import annotations

import heapq
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from ratelimit.engine.constants import ALLOW, DENY
from ratelimit.exceptions import ConfigError
from ratelimit.keys import Network, parse_network

MAX_NETWORKS = 1_000_000
"""Of both lists together; each takes up to 48 bytes."""

_MAPPED = 0xFFFF << 32
_END = 1 << 128
_PIECE = 128  # networks, half a millisecond of work
_SHOWN = 10  # mistakes of a file
_LONGEST = 1 << 16  # characters of a line

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
    allow: Sequence[str],
    deny: Sequence[str],
    allow_files: Sequence[str],
    deny_files: Sequence[str],
    name: Callable[[str, str], str] = "{}: {}".format,
    pause: Callable[[], object] = lambda: None,
) -> Lists:
    """Return the lists; ConfigError with all that is wrong in them.

    ``name`` puts a field, such as ``lists.deny.0``, and what is wrong with it into a line;
    ``pause`` is called after every small piece of the work.
    """
    problems: list[str] = []
    pieces: list[list[Range]] = []
    counts = []
    for value, field, texts, files in (
        (ALLOW, "lists.allow", allow, allow_files),
        (DENY, "lists.deny", deny, deny_files),
    ):
        entries = _parse(enumerate(texts), problems, partial(_place, name, field))
        read = (
            _read_file(Path(file), problems, partial(name, f"{field}_files.{number}"))
            for number, file in enumerate(files)
        )
        every = itertools.chain(entries, *read)
        ranges = (span(network, value) for network in every)
        before = sum(map(len, pieces))
        while piece := sorted(itertools.islice(ranges, _PIECE), reverse=True):
            pieces.append(piece)
            pause()
            if _PIECE * len(pieces) > MAX_NETWORKS + 2 * _PIECE:
                break
        counts.append(sum(map(len, pieces)) - before)
    if sum(counts) > MAX_NETWORKS:
        problems.append(f"lists: more than {MAX_NETWORKS} networks")
    if problems:
        raise ConfigError(problems)
    return Lists(*cut(_paced(heapq.merge(*map(_drain, pieces)), pause)), *counts)


def _paced(ranges: Iterable[Range], pause: Callable[[], object]) -> Iterator[Range]:
    for number, one in enumerate(ranges, 1):
        yield one
        if number % _PIECE == 0:
            pause()


def _drain(piece: list[Range]) -> Iterator[Range]:
    """Yield the ranges from the last to the first, and let go of each.

    To let go of all of them at once would take 12 ms for 100,000.
    """
    while piece:
        yield piece.pop()


def _parse(
    entries: Iterable[tuple[int, str]], problems: list[str], tell: Callable[[int, str], str]
) -> Iterator[Network]:
    """Yield the networks of numbered entries; of the first that are wrong, ``tell`` is a line."""
    wrong = 0
    for number, entry in entries:
        try:
            yield parse_network(entry)
        except ValueError as error:
            wrong += 1
            if wrong <= _SHOWN:
                problems.append(tell(number, str(error)))
            last = number
    if wrong > _SHOWN:
        problems.append(tell(last, f"the last of {wrong - _SHOWN} more that are wrong"))


def _place(name: Callable[[str, str], str], field: str, number: int, what: str) -> str:
    return name(f"{field}.{number}", what)


def _read_file(path: Path, problems: list[str], name: Callable[[str], str]) -> Iterator[Network]:
    """Yield the networks of a file: one a line, the rest of a line after ``#`` is a comment."""
    try:
        # One that is not regular might never end, or never begin.
        if path.exists() and not path.is_file():
            problems.append(name(f"{path}: not a file"))
            return
        with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
            before = os.fstat(file.fileno())
            yield from _parse(_entries(file), problems, lambda n, what: f"{path}: line {n}: {what}")
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            what = "changed while it was read; write another and rename it"
            problems.append(name(f"{path}: {what}"))
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL.
        problems.append(name(f"{path}: {error.strerror if isinstance(error, OSError) else error}"))


def _entries(file: TextIO) -> Iterator[tuple[int, str]]:
    """Yield what the lines of a file have beside comments, each with its number."""
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST and not line.endswith("\n"):
            raise OSError(0, f"line {number} is too long for a list")
        entry = line.partition("#")[0].strip()
        if entry:
            yield number, entry
