"""The allow list and the deny list of the configuration.

A hundred thousand networks take a second to process. This is done in steps of half a millisecond,
while the agent answers: networks are sorted in small pieces, which are then merged.
"""

from __future__ import annotations

import heapq
import io
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TextIO

from ratelimit.engine.layout import ALLOW, DENY, M64, MAPPED, NONE
from ratelimit.exceptions import ConfigError
from ratelimit.limiter.keys import Network, parse_network
from ratelimit.steps import Steps

MAX_NETWORKS = 1_000_000
"""Maximum for both lists together; each network takes up to 48 bytes."""

_MAPPED = MAPPED << 32
_END = 1 << 128
_PIECE = 128  # networks, half a millisecond of work
_CUTS = 64  # the same for cutting
_SHOWN = 10  # errors reported per file
_LONGEST = 1 << 16  # characters of a line
_LARGEST = 1 << 28  # bytes of a file

Range = tuple[int, int, int]
"""First and last address as 128 bits, with IPv4 mapped, and their value."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Both lists in the form of ``engine.networks``; ``allow`` and ``deny`` count the networks."""

    starts: bytes = bytes(16)
    values: bytes = bytes(8)
    allow: int = 0
    deny: int = 0

    def networks(self) -> Iterator[tuple[str, int]]:
        """Yield disjoint networks that cover the lists, each with its value."""
        starts, values = memoryview(self.starts).cast("Q"), memoryview(self.values).cast("Q")
        for number, value in enumerate(values):
            if value == NONE:
                continue
            first = starts[2 * number] << 64 | starts[2 * number + 1]
            after = 2 * number + 2
            end = starts[after] << 64 | starts[after + 1] if after < len(starts) else _END
            # IPv4-mapped addresses are written as IPv4.
            for low, high, base in (
                (first, min(end, _MAPPED), 0),
                (max(first, _MAPPED), min(end, _MAPPED + (1 << 32)), _MAPPED),
                (max(first, _MAPPED + (1 << 32)), end, 0),
            ):
                for network in _cover(low - base, high - base, 32 if base else 128):
                    yield network, value


def _cover(low: int, high: int, bits: int) -> Iterator[str]:
    """Yield the smallest set of networks for the addresses from ``low`` to below ``high``."""
    kind = IPv4Network if bits == 32 else IPv6Network
    while low < high:
        size = (low & -low).bit_length() - 1 if low else bits
        size = min(size, (high - low).bit_length() - 1)
        yield str(kind((low, bits - size)))
        low += 1 << size


@dataclass(frozen=True, slots=True)
class ListFile:
    """A file with one network per line; ``problem`` says why it can't be read, or is empty."""

    path: str
    data: bytes = b""
    problem: str = ""

    @classmethod
    def read(cls, path: str) -> ListFile:
        """Read a file; may wait for a disk or a network."""
        try:
            # Reading another kind of file might never end.
            if Path(path).exists() and not Path(path).is_file():
                return cls(path, problem="not a file")
            with Path(path).open("rb") as file:
                before = os.fstat(file.fileno())
                if before.st_size > _LARGEST:
                    return cls(path, problem=f"larger than {_LARGEST >> 20} MiB")
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
        except OSError as error:
            return cls(path, problem=str(error.strerror))
        except ValueError as error:  # a path with a NUL
            return cls(path, problem=str(error))
        if (len(data), before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            what = "changed while it was read; write a new file and rename it"
            return cls(path, problem=what)
        return cls(path, data)


def span(network: Network, value: int) -> Range:
    """Return the range of a network."""
    first = int(network.network_address)
    if network.version == 4:
        first |= _MAPPED
    # Faster than ipaddress, which creates an object for the last address.
    return first, first | (1 << network.max_prefixlen - network.prefixlen) - 1, value


def cut(ranges: Iterable[Range]) -> Steps[tuple[bytes, bytes]]:
    """Return starts and values of ``engine.networks`` for ranges sorted by their first address.

    Where ranges overlap, the higher value holds.
    """
    starts = array("Q", (0, 0))
    values = array("Q", (0,))
    latest = 0  # position of the last cut
    active: list[tuple[int, int]] = []  # a heap of negated values and last addresses
    rest = iter(ranges)
    coming = next(rest, None)
    for step in itertools.count(1):
        if not active and coming is None:
            break
        if step % _CUTS == 0:
            yield
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
            starts.extend((at >> 64, at & M64))
            values.append(value)
            latest = at
    return starts.tobytes(), values.tobytes()


def read_lists(
    allow: Sequence[str],
    deny: Sequence[str],
    allow_files: Sequence[ListFile],
    deny_files: Sequence[ListFile],
    name: Callable[[str, str], str] = "{}: {}".format,
) -> Steps[Lists]:
    """Return the lists. The steps raise ConfigError with all mistakes.

    ``name`` formats a field, such as ``lists.deny.0``, and its problem as a line.
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
            _read_file(file, problems, partial(name, f"{field}_files.{number}"))
            for number, file in enumerate(files)
        )
        every = itertools.chain(entries, *read)
        ranges = (span(network, value) for network in every)
        before = sum(map(len, pieces))
        while piece := sorted(itertools.islice(ranges, _PIECE), reverse=True):
            pieces.append(piece)
            yield
            if _PIECE * len(pieces) > MAX_NETWORKS + 2 * _PIECE:
                break
        counts.append(sum(map(len, pieces)) - before)
    if sum(counts) > MAX_NETWORKS:
        problems.append(f"lists: more than {MAX_NETWORKS} networks")
    if problems:
        raise ConfigError(problems)
    starts, values = yield from cut(heapq.merge(*map(_drain, pieces)))
    return Lists(starts, values, *counts)


def _drain(piece: list[Range]) -> Iterator[Range]:
    """Yield the ranges from last to first, and free each of them.

    Freeing 100,000 at once takes 12 ms.
    """
    while piece:
        yield piece.pop()


def _parse(
    entries: Iterable[tuple[int, str]], problems: list[str], tell: Callable[[int, str], str]
) -> Iterator[Network]:
    """Yield the networks of numbered entries; report the first errors with ``tell``."""
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
        problems.append(tell(last, f"the last of {wrong - _SHOWN} more errors"))


def _place(name: Callable[[str, str], str], field: str, number: int, what: str) -> str:
    return name(f"{field}.{number}", what)


def _read_file(
    file: ListFile, problems: list[str], name: Callable[[str], str]
) -> Iterator[Network]:
    """Yield the networks of a file: one per line, with comments after ``#``."""
    if file.problem:
        problems.append(name(f"{file.path}: {file.problem}"))
        return
    text = io.TextIOWrapper(io.BytesIO(file.data), encoding="utf-8-sig", errors="backslashreplace")
    try:
        yield from _parse(
            _entries(text), problems, lambda n, what: f"{file.path}: line {n}: {what}"
        )
    except ValueError as error:
        problems.append(name(f"{file.path}: {error}"))


def _entries(file: TextIO) -> Iterator[tuple[int, str]]:
    """Yield the entries of a file without comments, each with its line number."""
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST and not line.endswith("\n"):
            raise ValueError(f"line {number} is too long")
        entry = line.partition("#")[0].strip()
        if entry:
            yield number, entry
