"""Takes the configuration again while answers go on.

All that can fail comes first; then what is in force is replaced, all of it at once. So a reload
that fails, for whatever reason, has changed nothing.

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from ratelimit.config import Config, load
from ratelimit.exceptions import ConfigError
from ratelimit.turns import paced

if TYPE_CHECKING:
    from ratelimit.limiter.limiter import Limiter
    from ratelimit.limiter.lists import ListFile
    from ratelimit.store.sync import Sync

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread is asked to let the answers go on; 5 ms is Python's own."""

READ_TIMEOUT = 10.0
"""Seconds for all files to be read; a disk may hang."""

log = structlog.get_logger()


Prepare: TypeAlias = "Callable[[Config], Callable[[], object]]"
_Read: TypeAlias = (
    "tuple[Config, tuple[list[ListFile], list[ListFile]], list[Callable[[], object]]]"
)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What became of a reload.

    Attributes:
        at: epoch seconds.
        ok: the configuration is in force; otherwise the one before still is.
        invalid: if not ok, whether the configuration is wrong; else it can't be taken now.
        problems: if not ok, what is wrong, ``source: field: what`` each.
        restart: fields that differ from what runs and are taken at the next start only.
    """

    at: float
    ok: bool
    invalid: bool = False
    problems: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Reloader:
    """Reloads limits, lists and what else has an owner; one time after the other.

    ``config`` is what was taken at the start, ``last`` what became of the last reload, and
    ``owned`` has the tables and fields that a reload changes. Every other field needs a restart.
    """

    def __init__(self, config: Config, limiter: Limiter, sync: Sync) -> None:
        self.config = config
        self.last: ReloadResult | None = None
        self.owned = {"limits", "lists"}
        self._owners: list[Prepare] = []
        self._limiter = limiter
        self._sync = sync
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "reload")
        sys.setswitchinterval(SWITCH_INTERVAL)

    def own(self, prepare: Prepare, *fields: str) -> None:
        """Have an owner of tables or fields, such as ``ops.token_file``, reloaded as well.

        ``prepare`` is called in a thread. It reads what it needs for the new configuration and
        returns what puts that in force, which must not fail; or it raises ConfigError.
        """
        self._owners.append(prepare)
        self.owned.update(fields)

    def restart(self, new: Config) -> tuple[str, ...]:
        """Return the fields, such as ``store.url``, that differ and that no owner takes."""
        changed = [
            f"{section}.{field}"
            for section, values in new
            if section not in self.owned
            for field, value in values
            if value != getattr(getattr(self.config, section), field)
        ]
        return tuple(field for field in changed if field not in self.owned)

    async def reload(self) -> ReloadResult:
        """Read the configuration again, and put it in force if nothing is wrong with it."""
        async with self._lock:
            try:
                config, files, changes = await self._read()
                lists = await paced(config.list_steps(*files))
                limits, restart = config.limits_in_force(), self.restart(config)
                restore = await paced(self._limiter.reload(limits, lists))
            except ConfigError as error:
                return self._failed(error.problems, invalid=True)
            except (OSError, ValueError, MemoryError) as error:
                return self._failed([str(error) or repr(error)])
            except Exception as error:
                log.exception("a reload failed")
                return self._failed([f"internal error; see the log: {error!r}"])
            self._sync.reloaded()
            for change in changes:
                change()
            try:
                await paced(restore)
            except Exception:
                log.exception("not all blocks were put back where clients are counted differently")
            self.last = ReloadResult(time.time(), ok=True, restart=restart)
            log.info(
                "configuration reloaded",
                limits=[limit.name for limit in limits],
                allow=lists.allow,
                deny=lists.deny,
            )
            if restart:
                log.warning("what else has changed is taken at the next start", fields=restart)
            return self.last

    async def _read(self) -> _Read:
        """Return all that the files say."""
        try:
            reading = asyncio.get_running_loop().run_in_executor(
                self._thread, _read, self.config.path, tuple(self._owners)
            )
        except RuntimeError as error:
            raise OSError(f"no thread can be started to read the files: {error}") from error
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await reading
        except TimeoutError:
            raise TimeoutError(f"the files were not read within {READ_TIMEOUT:g} s") from None

    def _failed(self, problems: list[str], invalid: bool = False) -> ReloadResult:
        self.last = ReloadResult(time.time(), ok=False, invalid=invalid, problems=tuple(problems))
        log.error("configuration not reloaded, the one before stays", problems=problems)
        return self.last


def _read(path: Path | None, owners: tuple[Prepare, ...]) -> _Read:
    config = load(path)
    return config, config.read_list_files(), [prepare(config) for prepare in owners]
