"""Reloads the configuration without interrupting answers.

Everything that can fail comes first; then all changes are applied at once. So a failed reload
changes nothing.

Files are read in a thread, which yields to the event loop every half millisecond. The lists, which
take long, are built in the event loop in steps of half a millisecond: a thread that computes for a
second would compete for the processor, which the kernel hands over only after milliseconds.
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
"""Seconds after which a thread yields to the event loop; Python's default is 5 ms."""

READ_TIMEOUT = 10.0
"""Seconds to read all files; a disk may hang."""

log = structlog.get_logger()


Prepare: TypeAlias = "Callable[[Config], Callable[[], object]]"
_Read: TypeAlias = (
    "tuple[Config, tuple[list[ListFile], list[ListFile]], list[Callable[[], object]]]"
)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The result of a reload.

    Attributes:
        at: epoch seconds.
        ok: whether the new configuration is in force; otherwise the previous one still is.
        invalid: if not ok, whether the configuration is invalid; otherwise it can't be applied now.
        problems: if not ok, lines of the form ``source: field: problem``.
        restart: changed fields that need a restart.
    """

    at: float
    ok: bool
    invalid: bool = False
    problems: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Reloader:
    """Reloads limits, lists and everything else that has an owner, one reload at a time.

    ``config`` is the configuration of the start, ``last`` the result of the last reload. ``owned``
    has the tables and fields that a reload changes; every other field needs a restart.
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
        """Register an owner of tables or fields, such as ``ops.token_file``.

        ``prepare`` runs in a thread. It reads what the new configuration needs and returns a
        function that applies it and must not fail; or it raises ConfigError.
        """
        self._owners.append(prepare)
        self.owned.update(fields)

    def restart(self, new: Config) -> tuple[str, ...]:
        """Return the changed fields, such as ``store.url``, that no owner reloads."""
        changed = [
            f"{section}.{field}"
            for section, values in new
            if section not in self.owned
            for field, value in values
            if value != getattr(getattr(self.config, section), field)
        ]
        return tuple(field for field in changed if field not in self.owned)

    async def reload(self) -> ReloadResult:
        """Read the configuration and apply it if it is valid."""
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
                log.exception("internal error in a reload")
                return self._failed([f"internal error; see the log: {error!r}"])
            self._sync.reloaded()
            for change in changes:
                change()
            try:
                await paced(restore)
            except Exception:
                log.exception("internal error: not all blocks were restored after a new prefix")
            self.last = ReloadResult(time.time(), ok=True, restart=restart)
            log.info(
                "configuration reloaded",
                limits=[limit.name for limit in limits],
                allow=lists.allow,
                deny=lists.deny,
            )
            if warnings := config.warnings():
                log.warning("settings without effect in peers mode", settings=warnings)
            if restart:
                log.warning("some changes need a restart", fields=restart)
            return self.last

    async def _read(self) -> _Read:
        """Read the configuration and all its files."""
        try:
            reading = asyncio.get_running_loop().run_in_executor(
                self._thread, _read, self.config.path, tuple(self._owners)
            )
        except RuntimeError as error:
            raise OSError(f"can't start a thread to read the files: {error}") from error
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await reading
        except TimeoutError:
            raise TimeoutError(f"the files were not read within {READ_TIMEOUT:g} s") from None

    def _failed(self, problems: list[str], invalid: bool = False) -> ReloadResult:
        self.last = ReloadResult(time.time(), ok=False, invalid=invalid, problems=tuple(problems))
        log.error("configuration not reloaded; the previous one stays in force", problems=problems)
        return self.last


def _read(path: Path | None, owners: tuple[Prepare, ...]) -> _Read:
    config = load(path)
    return config, config.read_list_files(), [prepare(config) for prepare in owners]
