"""The maps with the lists and the blocks by hand, which HAProxy applies without the agent.

The stick table holds whole clients only. Networks, parts of a client and exemptions are in two maps
(configuration.txt, section 7.3.1, ``map_ip``), which HAProxy reads from files when it starts. At
run time each map is filled in one transaction (management.txt, section 9.3), and a block by hand or
its removal changes one entry.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import structlog

from ratelimit.haproxy.commands import MAX_COMMAND, refusal
from ratelimit.haproxy.runtime_socket import Edge, EdgeError
from ratelimit.steps import Steps
from ratelimit.turns import paced

LISTS = "rl_lists.map"
"""Networks of the lists, with ``NEVER`` for the allow list and ``ALWAYS`` for the deny list.

As in the other map, a value is the epoch second at which a block ends.
"""

NEVER = -1
ALWAYS = (1 << 32) - 1

BLOCKS = "rl_blocks.map"
"""Blocks by hand, with the epoch second at which the block ends."""

NAMES = (LISTS, BLOCKS)

Lines = Callable[[str], Iterator[str]]
"""Returns the lines of a map by its name: a network or an address, a space, a value."""

_PIECE = MAX_COMMAND - 500  # bytes of lines per command; the rest is room for the path
_STEP = 8  # lines per step
_LONGEST = 100  # bytes, more than the longest line
_FILE = re.compile(r"(?m)^-?\d+ \(([A-Za-z0-9_./@:-]{1,400})\) ")
_VERSION = re.compile(r"New version created: (\d+)")

log = structlog.get_logger()


async def pieces(lines: Iterator[str]) -> AsyncGenerator[str]:
    """Yield the lines as texts for one command each; long work is done in slices."""
    while piece := await paced(_piece(lines)):
        yield piece


def _piece(lines: Iterator[str]) -> Steps[str]:
    taken: list[str] = []
    left = _PIECE
    for number, line in enumerate(lines, 1):
        taken.append(f"{line}\n")
        left -= len(line) + 1
        if left < _LONGEST:
            break
        if number % _STEP == 0:
            yield
    return "".join(taken)


class Maps:
    """The maps of one HAProxy; ``problem`` says why they can't be filled, or is empty."""

    def __init__(self, edge: Edge) -> None:
        self.problem = ""
        self._edge = edge
        self._files: dict[str, str] = {}
        self._filling = False
        self._marked: dict[str, int] = {}

    def mark(self, key: str, until: int) -> str:
        """Return the commands that block a key until an epoch second, or unblock it with 0.

        Empty if HAProxy has no such map. The key must be formatted by ``network_key()``.
        """
        if self._filling:
            self._marked[key] = until
        file = self._files.get(BLOCKS)
        if file is None:
            return ""
        added = f";add map {file} {key} {until}" if until else ""
        return f"del map {file} {key}{added}"

    async def fill(self, lines: Lines) -> None:
        """Fill the maps. Raises EdgeError if HAProxy does not answer.

        A refusal by HAProxy is stored in ``problem`` and logged once: the tables also work in an
        HAProxy without maps, or in one that accepts maps from an admin only.
        """
        before, self.problem = self.problem, ""
        self._filling = True
        self._marked.clear()
        try:
            await self._find()
            for name, file in self._files.items():
                await self._replace(file, lines(name))
            self._filling = False
            while self._marked:
                await self._tell(self.mark(*self._marked.popitem()))
        except _RefusedError as error:
            self.problem, self._files = str(error), {}
            if self.problem != before:
                log.warning("maps not filled", socket=self._edge.path, problem=self.problem)
        finally:
            self._filling = False

    async def _find(self) -> None:
        """Find the paths of the maps, under which commands name them."""
        answer = await self._edge.ask("show map")
        files = _FILE.findall("\n".join(answer))
        self._files = {file.rpartition("/")[2]: file for file in files}
        self._files = {name: self._files[name] for name in NAMES if name in self._files}
        if not self._files and not any(line.startswith("#") for line in answer):
            raise _RefusedError(refusal(answer))

    async def _replace(self, file: str, lines: Iterator[str]) -> None:
        found = _VERSION.search("\n".join(answer := await self._edge.ask(f"prepare map {file}")))
        if found is None:
            raise _RefusedError(refusal(answer))
        version = found[1]
        async with contextlib.aclosing(pieces(lines)) as texts:
            async for text in texts:
                await self._tell(f"add map @{version} {file} <<\n{text}")
        await self._tell(f"commit map @{version} {file}")

    async def _tell(self, command: str) -> None:
        problem = refusal(await self._edge.ask(command)) if command else ""
        if problem:
            raise _RefusedError(problem)


class _RefusedError(EdgeError):
    """HAProxy answered and refused the command."""


def entries(answer: Sequence[str]) -> dict[str, int]:
    """Return the number of entries of each map from ``show map``; -1 if unknown."""
    found = {}
    for line in answer:
        if (file := _FILE.match(line)) and (name := file[1].rpartition("/")[2]) in NAMES:
            count = re.search(r"entry_cnt=(\d+)", line)
            found[name] = int(count[1]) if count else -1
    return found
