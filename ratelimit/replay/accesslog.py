"""Reads access logs: HAProxy's HTTP log and the common and combined formats.

HAProxy's format is that of ``option httplog`` (configuration manual, section 8.2.3). Anything may
follow the request, so that the log of the shipped haproxy.cfg and ``option httpslog`` are read too.
The common format (Apache's mod_log_config) is also the start of the combined format, of nginx's log
and of HAProxy's ``option httplog clf``. A syslog header (RFC 3164, RFC 5424) is skipped.

HAProxy's times have milliseconds and no time zone; they are taken as UTC. Times of the other
formats are whole seconds: HAProxy's clf has a field for milliseconds, but on a kept-alive
connection the field belongs to the previous request.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import zlib
from calendar import timegm
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import IO, TYPE_CHECKING, Self, cast

from ratelimit.exceptions import RatelimitError
from ratelimit.notation import MILLISECOND, SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

STDIN = "-"

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_LONGEST = 1 << 16  # bytes of a line that are parsed
_SNIFFED = 1000  # lines used to detect the format
_SHOWN = 200  # characters shown of an unreadable line
_SECONDS_KNOWN = 4096

# Headers of HAProxy's log targets (section 4.2, "log"), of syslog and of "docker compose logs".
_HEADER = rb"""
    (?: [\w.-]+ [ ]+ \| [ ] )?
    (?: <\d{1,3}> )?
    (?: 1 [ ] (?: [^ ]+ [ ] ){5} (?: - | \[ [^]]* \] ) [ ]
      | (?: [A-Z][a-z]{2} [ ] [ \d]\d [ ] \d\d:\d\d:\d\d | \d{4}-\d\d-\d\dT [^ ]+ ) [ ]
        (?: (?: [^ ]+ [ ] )? [^ :\[]+ (?: \[ \d+ \] )? : [ ] )?
    )?
"""
_SECOND = rb"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d"
_HAPROXY = rb"""
    ([^ ]{1,255}) : \d+ [ ] \[ (%b) \. (\d{3}) \] [ ]
    [^ ]+ [ ] [^ /]+ / [^ ]+ [ ] -?\d+ (?: / [+]? -?\d+ ){4} [ ] -?\d+ [ ] [^"]* " (<BADREQ>)?
"""
# A user name may contain spaces.
_COMMON = rb"""
    ([^ ]{1,255}) [ ] [^ ]+ [ ] .*? [ ]? \[ (%b [ ] [+-]\d{4}) \] [ ] " () ()
"""
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
_MONTH = {name: number for number, name in enumerate(_MONTHS.split(), 1)}
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Format:
    """A log format; ``grain`` is its unit of time in nanoseconds.

    ``pattern`` matches the client, the second, the milliseconds, and a mark of invalid requests.
    """

    name: str
    pattern: re.Pattern[bytes]
    grain: int


def _format(name: str, line: bytes, grain: int) -> Format:
    return Format(name, re.compile(_HEADER + line % _SECOND, re.VERBOSE), grain)


FORMATS = (
    _format("HAProxy HTTP log", _HAPROXY, MILLISECOND),
    _format("common or combined", _COMMON, SECOND),
)


@dataclass(frozen=True, slots=True)
class Unread:
    """An unreadable line: its number, from 1, and the start of its text."""

    line: int
    text: str


class AccessLog:
    """An open log; iterating yields lists of requests as (nanoseconds, client), unsorted.

    Args:
        path: of the file, plain or gzip; ``-`` is standard input.

    Raises RatelimitError if it can't be read, is empty, or has an unknown format. ``lines`` counts
    the lines read so far, ``unread`` those that do not match the format, and ``invalid`` requests
    that HAProxy logged as invalid, which no limit counts. ``zone`` is the offset from UTC of the
    first line in seconds, or None. ``done`` and ``size`` are bytes of the file; ``size`` is 0 if
    unknown.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == STDIN else path
        self.lines = 0
        self.unread = 0
        self.first_unread: Unread | None = None
        self.invalid = 0
        self.zone: int | None = None
        self._raw = self._open(path)
        self.size = self._raw.seek(0, io.SEEK_END) if self._raw.seekable() else 0
        if self.size:
            self._raw.seek(0)
        try:
            self._batches = self._lines()
            self._head = self._sniffable()
            self.format = self._sniff()
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raw.close()

    @property
    def done(self) -> int:
        return self._raw.tell() if self.size else 0

    def __iter__(self) -> Iterator[list[tuple[int, bytes]]]:
        for lines in chain(self._head, self._batches):
            yield self._read(lines)

    def _open(self, path: str) -> IO[bytes]:
        if path == STDIN:
            if sys.stdin is None:
                raise RatelimitError(f"{self.name}: closed")
            # A separate file object: closing it does not close the interpreter's.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        try:
            return open(path, "rb")
        except OSError as error:
            raise RatelimitError(f"{path}: {error.strerror}") from error

    def _lines(self) -> Iterator[list[bytes]]:
        """Yield lists of lines without line ends; a line that is too long is cut."""
        raw = cast("io.BufferedReader", self._raw)
        rest = b""
        try:
            packed = raw.peek(2)[:2] == _GZIP
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            while chunk := file.read(_CHUNK):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()[:_LONGEST]
                yield lines
        except EOFError as error:
            raise RatelimitError(f"{self.name}: the gzip file is truncated") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise RatelimitError(f"{self.name}: invalid gzip file: {error}") from error
        except OSError as error:
            raise RatelimitError(f"{self.name}: {error.strerror}") from error
        if rest:
            yield [rest]

    def _sniffable(self) -> list[list[bytes]]:
        """Return enough lines to detect the format."""
        head: list[list[bytes]] = []
        for lines in self._batches:
            head.append(lines)
            if sum(map(len, head)) >= _SNIFFED:
                break
        return head

    def _sniff(self) -> Format:
        lines = [line for line in chain.from_iterable(self._head) if line.strip()][:_SNIFFED]
        if not lines:
            raise RatelimitError(f"{self.name}: empty")
        read = [sum(map(bool, map(form.pattern.match, lines))) for form in FORMATS]
        if not any(read):
            raise RatelimitError(
                f"{self.name}: unknown format; HAProxy's HTTP log and the common and combined "
                f"formats are supported. First line: {_shown(lines[0])}"
            )
        return FORMATS[read.index(max(read))]

    def _read(self, lines: list[bytes]) -> list[tuple[int, bytes]]:
        match = self.format.pattern.match
        fine = self.format.grain < SECOND
        requests: list[tuple[int, bytes]] = []
        add = requests.append
        for number, line in enumerate(lines, self.lines + 1):
            found = match(line)
            try:
                client, second, milliseconds, invalid = found.groups()  # type: ignore[union-attr]
                now = _second(second)
            except (AttributeError, ValueError):
                if line.strip():
                    self.unread += 1
                    self.first_unread = self.first_unread or Unread(number, _shown(line))
                continue
            if invalid:
                self.invalid += 1
            elif fine:
                add((now + int(milliseconds) * MILLISECOND, client))
            else:
                if self.zone is None:
                    self.zone = _offset(second)
                add((now, client))
        self.lines += len(lines)
        return requests


@lru_cache(_SECONDS_KNOWN)
def _second(text: bytes) -> int:
    """Return the epoch nanoseconds of ``24/Nov/2026:09:10:03``, with an optional `` +0100``.

    Raises ValueError for an invalid time or a year outside 1971 to 2099.
    """
    day, month, year = int(text[:2]), _MONTH.get(text[3:6], 0), int(text[7:11])
    hour, minute, second = int(text[12:14]), int(text[15:17]), int(text[18:20])
    if not (month and 1 <= day <= _DAYS[month - 1] and 1971 <= year <= 2099):
        raise ValueError("no such day")
    if not (hour < 24 and minute < 60 and second <= 60):
        raise ValueError("no such time")
    return (timegm((year, month, day, hour, minute, second)) - _offset(text)) * SECOND


def _offset(text: bytes) -> int:
    """Return the offset from UTC of a time, in seconds."""
    zone = text[20:].strip()
    if not zone:
        return 0
    seconds = int(zone[1:3]) * 3600 + int(zone[3:5]) * 60
    if seconds >= 86_400:
        raise ValueError("no such time zone")
    return -seconds if zone[:1] == b"-" else seconds


def _shown(line: bytes) -> str:
    """Return the start of a line, escaped for a terminal."""
    return printable(line[: _SHOWN + 1])[:_SHOWN]


def printable(text: bytes) -> str:
    """Return bytes of a log as printable ASCII, other bytes as ``\\xNN``."""
    return ascii(text.decode("ascii", "backslashreplace"))[1:-1].replace("\\\\x", "\\x")
