"""Takes the configuration anew while answers go on.

The files are read in a thread, and the interpreter goes from that to the answers every half
millisecond. What takes long, the lists, is done between the answers, in steps of half a
millisecond: a thread that is busy for a second competes with the answers for the processor too,
which the kernel lets it have for milliseconds at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ratelimit.config import Config, load
from ratelimit.exceptions import ConfigError
from ratelimit.turns import paced

if TYPE_CHECKING:
    from ratelimit.limiter import Limiter
    from ratelimit.lists import ListFile
    from ratelimit.sync import Sync

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread is asked to let the answers go on; 5 ms is Python's own."""

_SECTIONS = ("agent", "ops", "store", "haproxy")
"""What is taken at the start only."""

log = structlog.get_logger()


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
        sys.setswitchinterval(SWITCH_INTERVAL)

    async def reload(self) -> ReloadResult:
        """Read the configuration again, and put it in force if nothing is wrong with it."""
        async with self._lock:
            try:
                config, files = await asyncio.to_thread(_read, self.config.path)
                lists = await paced(config.list_steps(*files))
                changes = [part(config) for part in self.parts]
                restore = await paced(self._limiter.reload(config.limits_in_force(), lists))
            except ConfigError as error:
                return self._failed(error.problems)
            except (OSError, ValueError) as error:
                return self._failed([str(error)])
            self._sync.reloaded()
            for change in changes:
                change()
            restart = tuple(
                name for name in _SECTIONS if getattr(config, name) != getattr(self.config, name)
            )
            self.config = config
            await paced(restore)
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


def _read(path: Path | None) -> tuple[Config, tuple[list[ListFile], list[ListFile]]]:
    config = load(path)
    return config, config.read_list_files()
