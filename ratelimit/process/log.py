"""The log: one line of JSON per entry, or readable text on a terminal.

The log goes to standard error, including messages of libraries from ``logging``. A thread writes it
(see ``log_writer``), so that logging never waits and never fails. An entry is always one line
without control characters, whatever a client sent. Passwords in URLs are removed. At most ``LINES``
entries of one event are written in ``PERIOD`` seconds; the next entry, or a line at the end of the
process, has the number of omitted ones. Audit entries are always written.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ratelimit.notation import printable
from ratelimit.process.log_writer import LogWriter, stand_in

LINES = 20
"""Entries of one event in a ``PERIOD``."""

PERIOD = 1.0
"""Seconds."""

AUDIT = "audit"
"""The event that is never omitted: a change by an operator, or an attempt."""

END_TIMEOUT = 1.0
"""Seconds to write the queue when the process ends."""

_MAX_CAUSES = 1000
_PASSWORD = re.compile(r"(?<=://)([^/@\s]*):[^/@\s]*@")


class Bound:
    """Omits entries that come too often; ``clock`` returns seconds.

    Works as a structlog processor and as a filter for ``logging``. For ``logging``, entries with
    the same format string are the same event.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._lines: dict[str, int] = {}
        self._left_out: dict[str, int] = {}

    def __call__(self, _: WrappedLogger, __: str, entry: EventDict) -> EventDict:
        if entry["event"] == AUDIT:
            return entry
        left_out = self._admit(str(entry["event"]))
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            entry["left_out"] = left_out
        return entry

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record of a library."""
        left_out = self._admit(f"{record.name}: {record.msg}")
        if left_out:
            record.left_out = left_out
        return left_out is not None

    def rest(self) -> dict[str, int]:
        """Return how many entries of each event were omitted since its last one, and forget it."""
        rest, self._left_out = self._left_out, {}
        return rest

    def _admit(self, cause: str) -> int | None:
        """Return None to omit an entry, otherwise the number of omitted ones since the last."""
        now = self._clock()
        if now - self._began >= PERIOD:
            self._began = now
            self._lines.clear()
        if cause not in self._lines and len(self._lines) >= _MAX_CAUSES:
            return None
        self._lines[cause] = self._lines.get(cause, 0) + 1
        if self._lines[cause] <= LINES:
            return self._left_out.pop(cause, 0)
        if cause in self._left_out or len(self._left_out) < _MAX_CAUSES:
            self._left_out[cause] = self._left_out.get(cause, 0) + 1
        return None


def hide_passwords(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Replace the passwords of URLs by ``***``."""
    for name, value in entry.items():
        if isinstance(value, BaseException):
            value = repr(value)  # noqa: PLW2901 - the text in the log
        if isinstance(value, str) and name != "_record":
            entry[name] = _PASSWORD.sub(r"\1:***@", value)
    return entry


def escape(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Escape control characters for a terminal; structlog quotes the rest."""
    trace = entry.get("exception")
    shown = {
        printable(name): printable(value) if isinstance(value, str) else value
        for name, value in entry.items()
    }
    if trace is not None:
        shown["exception"] = "\n".join(f"  {printable(line)}" for line in trace.split("\n"))
    return shown


class _Safe:
    """Runs processors; if one fails, writes a short entry instead."""

    def __init__(self, *processors: Processor) -> None:
        self._processors = processors

    def __call__(
        self, logger: WrappedLogger, method: str, entry: EventDict
    ) -> tuple[tuple[str], dict[str, bool]]:
        """Return the arguments for ``_Logger``."""
        event = entry["event"]
        made: Any = entry
        try:
            for processor in self._processors:
                made = processor(logger, method, made)
        except Exception as error:  # noqa: BLE001 - it is in the line
            told = {"level": method, "event": str(event), "unreadable": type(error).__name__}
            made = json.dumps(told)
        return (made,), {"kept": event == AUDIT}


class _Logger:
    """The logger for structlog; ``keep`` writes lines that must not be dropped."""

    def __init__(self, write: Callable[[str], object], keep: Callable[[str], object]) -> None:
        self._write = write
        self._keep = keep

    def info(self, line: str, kept: bool = False) -> None:
        """Write a line of any level."""
        (self._keep if kept else self._write)(line + "\n")

    debug = warning = error = critical = exception = info


@dataclass(frozen=True, slots=True)
class LogStatus:
    """State of the log: dropped lines, waiting bytes, and why they wait."""

    dropped: int = 0
    waiting: int = 0
    problem: str = ""


_writers: list[LogWriter] = []
_bounds: list[Bound] = []


def state() -> LogStatus:
    """Return the state of the log."""
    for writer in _writers:
        return LogStatus(writer.dropped, writer.waiting, writer.problem)
    return LogStatus()


def begin(*more: str) -> None:
    """Write the log, and other streams of ``sys``, in threads until the process ends."""
    _writers.extend(stand_in(name) for name in ("stderr", *more))
    atexit.register(flush)
    _bounds.append(configure(cast(TextIO, _writers[0]), _writers[0].keep))


def flush() -> None:
    """Write the queue within ``END_TIMEOUT``; later text is lost."""
    for bound in _bounds:
        for event, count in bound.rest().items():
            structlog.get_logger().info("entries were left out", of=event, left_out=count)
    for writer in _writers:
        writer.close(END_TIMEOUT)


def configure(stream: TextIO | None = None, keep: Callable[[str], object] | None = None) -> Bound:
    """Write all entries to a stream, by default standard error; return what bounds their number.

    ``keep`` writes lines that must not be dropped.
    """
    stream = stream or sys.stderr
    bound = Bound()
    prepare: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_passwords,
    ]
    render: list[Processor] = [_first_things_first, structlog.processors.JSONRenderer(default=repr)]
    if stream.isatty():
        colors = not os.environ.get("NO_COLOR")
        render = [escape, structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)]
    logger = _Logger(stream.write, keep or stream.write)
    structlog.configure(
        processors=[bound, _Safe(*prepare, *render)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(bound.filter)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(("left_out",)), *prepare],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Requests of the API are in the audit log.
    logging.getLogger("aiohttp.access").disabled = True
    return bound


def _first_things_first(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    return {name: entry[name] for name in ("timestamp", "level", "event")} | dict(entry)
