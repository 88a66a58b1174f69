"""Takes the configuration anew while answers go on.

The files are read and checked by a process of its own: a hundred thousand networks take a second,
which no answer may wait for, and much memory for a moment. ``python -m ratelimit.reload [FILE]`` is
that process.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ratelimit.config import Config, load
from ratelimit.exceptions import ConfigError, RatelimitError

if TYPE_CHECKING:
    from ratelimit.limiter import Limiter
    from ratelimit.lists import Lists
    from ratelimit.sync import Sync

_TIMEOUT = 30  # seconds to read it
_NICENESS = 10  # answers go first
_SECTIONS = ("agent", "ops", "store", "haproxy")
"""What is taken at the start only."""

log = structlog.get_logger()


class ReloadError(RatelimitError):
    """The configuration could not be read anew."""


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What became of a reload.

    Attributes:
        at: epoch seconds.
        ok: the configuration is in force; otherwise the one before still is.
        problems: if not ok, what is wrong, ``source: field: what`` each.
        restart: sections that have changed and are taken at the next start only.
    """

    at: float
    ok: bool
    problems: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Reloader:
    """Reloads limits, lists and what ``parts`` are for; one time after the other.

    ``last`` is what became of the last time. A part takes the new configuration and returns what
    puts it in force, or raises ConfigError: then nothing changes.
    """

    def __init__(self, config: Config, limiter: Limiter, sync: Sync) -> None:
        self.config = config
        self.last: ReloadResult | None = None
        self.parts: list[Callable[[Config], Callable[[], object]]] = []
        self._limiter = limiter
        self._sync = sync
        self._lock = asyncio.Lock()

    async def reload(self) -> ReloadResult:
        """Read the configuration again, and put it in force if nothing is wrong with it."""
        async with self._lock:
            try:
                config, lists = await read(self.config.path)
                changes = [part(config) for part in self.parts]
                restore = self._limiter.reload(config.limits_in_force(), lists)
            except ConfigError as error:
                return self._failed(error.problems)
            except (ReloadError, OSError, ValueError) as error:
                return self._failed([str(error)])
            self._sync.reloaded()
            for change in changes:
                change()
            restart = tuple(
                name for name in _SECTIONS if getattr(config, name) != getattr(self.config, name)
            )
            self.config = config
            for _ in restore:
                await asyncio.sleep(0)
            self.last = ReloadResult(time.time(), ok=True, restart=restart)
            log.info(
                "configuration reloaded",
                limits=[limit.name for limit in config.limits_in_force()],
                allow=lists.allow,
                deny=lists.deny,
            )
            if restart:
                log.warning("what else has changed is taken at the next start", sections=restart)
            return self.last

    def _failed(self, problems: list[str]) -> ReloadResult:
        self.last = ReloadResult(time.time(), ok=False, problems=tuple(problems))
        log.error("configuration not reloaded, the one before stays", problems=problems)
        return self.last


async def read(path: Path | None) -> tuple[Config, Lists]:
    """Have the configuration read by another process.

    Raises ConfigError with all that is wrong in it, or ReloadError if it can't be read at all.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ratelimit.reload",
        *([str(path)] if path else []),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT)
    except TimeoutError:
        raise ReloadError(f"the configuration was not read within {_TIMEOUT} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ReloadError(f"the configuration could not be read: {' '.join(last)}")
    found = pickle.loads(output)  # noqa: S301 - of our own child
    if isinstance(found, list):
        raise ConfigError(found)
    config, lists = found
    return config, lists


def main() -> None:
    """Read the configuration and write it, or a list of what is wrong, to standard output."""
    os.nice(_NICENESS)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    found: list[str] | tuple[Config, Lists]
    try:
        config = load(path)
        found = config, config.read_lists()
    except ConfigError as error:
        found = error.problems
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    main()
