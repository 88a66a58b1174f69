"""The process of the agent: its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvloop

from ratelimit.app import SOON, Running, run_node
from ratelimit.config import Config
from ratelimit.exceptions import RatelimitError
from ratelimit.node.operations import Control
from ratelimit.process import log as logs
from ratelimit.process.ending import LastResort
from ratelimit.process.handover import Predecessor
from ratelimit.process.hold_signals import let_through
from ratelimit.process.systemd import Manager

STOP_TIMEOUT = 7.0
"""Seconds from the signal to stop to the end of the process; systemd waits 10."""

LEAVE_TIMEOUT = 2.0
"""Seconds from the stop signal until a predecessor must have left what it knows."""

log = structlog.get_logger()


def serve(config: Config) -> int:
    """Run the agent until SIGTERM or SIGINT; return the exit status."""
    logs.begin()
    service = functools.partial(_serve, config)
    return run(config, service, STOP_TIMEOUT, signal.SIGTERM, signal.SIGINT)


def run(
    config: Config,
    service: Callable[[], Coroutine[Any, Any, None]],
    timeout: float,
    *stop: signal.Signals,
) -> int:
    """Run a service until it ends or one of the signals arrives; return the exit status.

    The process ends within ``timeout`` seconds after the signal, even if something hangs.
    """
    if files := config.exposed_files():
        log.warning("secrets are readable by every user of this machine", files=files)
    if warnings := config.warnings():
        log.warning("settings without effect in peers mode", settings=warnings)
    last_resort = LastResort(timeout)
    try:
        uvloop.run(_until(stop, service, last_resort))
    except (RatelimitError, OSError):
        raise
    except Exception:
        log.exception("internal error, the process ends")
        return 1
    return 0


async def _until(
    stop: tuple[signal.Signals, ...],
    service: Callable[[], Coroutine[Any, Any, None]],
    last_resort: LastResort,
) -> None:
    """Run a service until it ends or a signal cancels it, also during its start."""
    running = asyncio.create_task(service())
    stopped = asyncio.create_task(on_signal(*stop).wait())
    await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
    last_resort.begin()
    for task in (stopped, running):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _serve(config: Config) -> None:
    again = on_signal(signal.SIGHUP)
    follow = on_signal(signal.SIGUSR2)
    let_through()
    predecessor = Predecessor.of_environment()
    with contextlib.closing(Manager.of_environment()) as manager:
        async with run_node(config, manager, predecessor=predecessor) as running:
            tasks = running.control.tasks
            tasks.start("watchdog", manager.watch, SOON)
            tasks.start("reload", lambda: _reload(running.control, manager, again))
            tasks.start("hand-over", lambda: _hand_over(running, manager, predecessor, follow))
            await running.handed_over.wait()


async def _reload(control: Control, manager: Manager, again: asyncio.Event) -> None:
    while True:
        await again.wait()
        again.clear()
        manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await control.reload()
        finally:
            manager.tell("READY=1")


async def _hand_over(
    running: Running, manager: Manager, predecessor: Predecessor | None, follow: asyncio.Event
) -> None:
    """Make the predecessor end; then, at each signal, try to hand over to a successor."""
    if predecessor is not None:
        replacing = asyncio.create_task(predecessor.replace(running.take))
        try:
            await asyncio.shield(replacing)
        except asyncio.CancelledError:
            # The process stops. What the predecessor leaves is in no file yet.
            await asyncio.wait([replacing], timeout=LEAVE_TIMEOUT)
            replacing.cancel()
            raise
        running.control.store.adopt()
    while running.successor is None:
        await follow.wait()
        follow.clear()
        await running.hand_over()
    manager.tell(f"MAINPID={running.successor.pid}")


def on_signal(*numbers: signal.Signals) -> asyncio.Event:
    """Return an event that each of these signals sets."""
    event = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event
