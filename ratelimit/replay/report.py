"""The report of a replay, as text and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ratelimit.notation import MILLISECOND, SECOND, format_duration

if TYPE_CHECKING:
    from ratelimit.model import Limit
    from ratelimit.replay.accesslog import AccessLog, Unread

_PATIENCE = 2  # seconds before progress is shown
_UNBOUNDED = 200  # columns without a terminal


@dataclass(slots=True)
class Offender:
    """A client that the limit would have refused; times in nanoseconds since the epoch.

    ``blocked_for`` is the total length of its blocks in seconds; ``peak`` the most hits in a
    window, including refused hits.
    """

    key: str
    first: int
    last: int = 0
    throttled: int = 0
    blocked: int = 0
    blocks: int = 0
    blocked_for: int = 0
    peak: int = 0

    @property
    def refused(self) -> int:
        return self.throttled + self.blocked


@dataclass(slots=True)
class ReplayReport:
    """The result of a replay; ``offenders`` are the most refused clients.

    ``grain`` is the log's unit of time in nanoseconds, ``zone`` its offset from UTC in seconds.
    ``late`` counts requests that were too far out of order and are not in ``requests``. ``clients``
    is a lower bound unless ``clients_exact``. ``nameless`` counts refusals of clients that exceeded
    the number of offenders.
    """

    log: str
    format: str
    grain: int
    limit: Limit
    zone: int | None = None
    lines: int = 0
    unread: int = 0
    first_unread: Unread | None = None
    invalid: int = 0
    late: int = 0
    requests: int = 0
    clients: int = 0
    clients_exact: bool = True
    first: int = 0
    last: int = 0
    throttled: int = 0
    blocked: int = 0
    blocks: int = 0
    offending: int = 0
    nameless: int = 0
    offenders: list[Offender] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return self.throttled + self.blocked

    def json(self) -> dict[str, Any]:
        """Return the report as plain values; durations in seconds, times as ISO 8601.

        Without a request, ``first`` and ``last`` are the epoch.
        """
        found = asdict(self)
        del found["zone"], found["grain"]
        found["limit"]["window"] = self.limit.window / SECOND
        found["refused"] = self.refused
        for entry, offender in zip(found["offenders"], self.offenders, strict=True):
            entry["refused"] = offender.refused
        timespec = "milliseconds" if self.grain < SECOND else "seconds"
        for entry in (found, *found["offenders"]):
            for name in ("first", "last"):
                entry[name] = self._time(entry[name]).isoformat(timespec=timespec)
        return found

    def summary(self) -> list[str]:
        """Return the lines below the table."""
        share = f" ({self.refused / self.requests:.1%})" if self.requests else ""
        more = "" if self.clients_exact else " or more"
        span = f", {self._shown(self.first)} to {self._shown(self.last)}" if self.requests else ""
        lines = [
            f"{self.log}: {self.format}{span}",
            f"{self.lines:,} lines, {self.requests:,} requests of {self.clients:,}{more} clients",
            f"{self.refused:,} refused{share} of {self.offending:,} clients",
            f"{self.throttled:,} throttled, {self.blocked:,} blocked in {self.blocks:,} blocks",
        ]
        if self.offending > len(self.offenders):
            lines.append(
                f"showing the {len(self.offenders):,} most refused of {self.offending:,} clients"
            )
        if self.nameless:
            lines.append(
                f"{self.nameless:,} refusals belong to clients that have no entry of their own"
            )
        if self.invalid:
            lines.append(f"{self.invalid:,} lines of invalid requests, which no limit counts")
        if self.late:
            lines.append(
                f"{self.late:,} requests ignored: too far out of order; give the oldest log first"
            )
        if self.first_unread is not None:
            lines.append(
                f"{self.unread:,} lines could not be read; the first is line "
                f"{self.first_unread.line:,}: {self.first_unread.text}"
            )
        return lines

    def table(self) -> Table:
        """Return the table of offenders."""
        table = Table("client", box=None, header_style="bold", pad_edge=False)
        for name in ("throttled", "blocked", "blocks", "blocked for", "first", "last"):
            table.add_column(name, justify="right")
        table.add_column(f"peak in {format_duration(self.limit.window)}", justify="right")
        for offender in self.offenders:
            table.add_row(
                Text(offender.key),
                f"{offender.throttled:,}",
                f"{offender.blocked:,}",
                f"{offender.blocks:,}",
                str(timedelta(seconds=offender.blocked_for)),
                self._shown(offender.first),
                self._shown(offender.last),
                f"{offender.peak:,}",
            )
        return table

    def show(self) -> None:
        """Print the table and the summary."""
        console = Console(soft_wrap=True, highlight=False)
        if not console.is_terminal:
            console.width = _UNBOUNDED
        if self.offenders:
            console.print(self.table(), soft_wrap=False)
            console.print()
        for line in self.summary():
            console.print(Text(line))

    def _time(self, now: int) -> datetime:
        """Return a time in the log's time zone, or a naive time if the log has none."""
        milliseconds = timedelta(milliseconds=now // MILLISECOND)
        if self.zone is None:
            return datetime.fromtimestamp(0, UTC).replace(tzinfo=None) + milliseconds
        return datetime.fromtimestamp(0, timezone(timedelta(seconds=self.zone))) + milliseconds

    def _shown(self, now: int) -> str:
        return f"{self._time(now):%Y-%m-%d %H:%M:%S}"


class Watch:
    """Shows the progress of reading a log on a terminal if it takes more than two seconds."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self) -> None:
        """Update the display."""
        if not self._console.is_terminal or time.monotonic() - self._started < _PATIENCE:
            return
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._progress = Progress(
                *columns, TimeRemainingColumn(), console=self._console, transient=True
            )
            self._progress.add_task("", total=self._log.size or None)
            self._progress.start()
        self._progress.update(
            self._progress.task_ids[0],
            completed=self._log.done,
            description=f"{self._log.lines:,} lines",
        )
