"""What one HAProxy is told: limits, verdicts, and the order in which they are sent.

The owner of the socket calls ``fill()``, sends what the session has written, and calls again while
there is more. Verdicts are looked up when they are sent, so that a verdict that changes twice is
sent once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ratelimit.model import Limit
from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.session import Session
from ratelimit.peers.verdicts import NEVER_ENDS, PREFIX, Kind, VerdictTable, end_of, kind_of

if TYPE_CHECKING:
    from ratelimit.peers.hub import Hub
    from ratelimit.peers.leases import Lease
    from ratelimit.peers.sources import Origin, Source

LIMITS = "rlc_limits"
"""The table of the limits: rate, mode, marker, and window in seconds."""

CAPS = "rlc_caps"
"""The table of the caps that are in force while an agent is connected; its entries expire soon."""

LIMIT_VALUES = 4
CAP_VALUES = 1
VERDICT_VALUES = 3

MAX_WAITING = 200_000
"""Verdicts that wait to be sent to one HAProxy; one that reads more slowly is disconnected."""

DIFFERENT = 100
"""Milliseconds by which the clock of HAProxy may differ; beyond it, ends are whole seconds."""

_SHOWN = 16  # clocks that are remembered
_HALF = 1 << 31
_STEP = 128  # entries per call, half a millisecond of work
_EXPIRE = 3_600_000  # milliseconds of an unknown table
_UNCAPPED = 2**32 - 1  # requests of a period
_AFTER = 1_000  # milliseconds that an entry stays in HAProxy's table after its end


Taught = tuple[VerdictTable, bytes, int]
"""A table, a key, and the end of a throttle in epoch milliseconds, 0 for none."""


class Mode:
    """What HAProxy does above the cap of a limit; it is told by numbers."""

    ENFORCE = 1
    SHADOW = 2
    FUSED = 3
    UNCAPPED = 4
    """The rate that HAProxy counts in this table is not that of the limit."""


class Link:
    """A session with a HAProxy, and what has to be told.

    Args:
        hub: the owner.
        session: the session.
        address: of the peer, for people.
        wake: called when there is something to send.

    Attributes:
        name, pid: of HAProxy, after its hello.
        origin: what HAProxy has counted before.
        lease: who counts for HAProxy; ``counts`` whether this agent did when it looked last.
        offset: milliseconds by which the clock of HAProxy is ahead of the fleet's.
        complete: HAProxy has all verdicts.
        refused: tables of HAProxy that can't be used, and why.
        unused: tables of HAProxy that no limit has.
        replaced: a newer session has taken the place of this one.
        since: epoch second of the handshake.
        announced: the tables of HAProxy, by name; ``feeding`` those that feed limits, and
            ``told`` their names in the session.
        sources: the tables in ``feeding`` whose updates count.
        clocked: whether HAProxy has shown its clock; else ``offset`` is this machine's.
    """

    def __init__(self, hub: Hub, session: Session, address: str, wake: Callable[[], None]) -> None:
        self.hub = hub
        self.session = session
        self.address = address
        self.wake = wake
        self.name = ""
        self.pid = 0
        self.since = 0
        self.number = 0
        self.origin: Origin | None = None
        self.lease: Lease | None = None
        self.counts = False
        self.offset = hub.offset
        self.complete = False
        self.replaced = False
        self.refused: dict[str, str] = {}
        self.unused: set[str] = set()
        self.announced: dict[str, Definition] = {}
        self.told: dict[str, str] = {}
        self.feeding: set[str] = set()
        self.sources: list[Source] = []
        self.clocked = False
        self._shown = deque[int](maxlen=_SHOWN)
        self._definitions: dict[str, Definition] = {}
        self._limits: Definition | None = None
        self._caps: Definition | None = None
        self._limits_due = False
        self._refreshed = 0  # start of the last teaching
        self._asked = False
        self._teaching: Iterator[Taught | None] | None = None
        self._next: Taught | None = None
        # A dict would search from its start again for each entry that is taken from there.
        self._waiting: OrderedDict[tuple[VerdictTable, bytes], int] = OrderedDict()

    def announce(self, definition: Definition, told: str) -> None:
        """Note a table of HAProxy; ``told`` is its name in the session."""
        self.announced[definition.name] = definition
        self.told[definition.name] = told
        if definition.name == LIMITS:
            self._limits = _named(1, told, definition, LIMIT_VALUES)
            self.tell_limits()
        elif definition.name == CAPS:
            self._caps = _named(2, told, definition, CAP_VALUES)
            self.tell_limits()

    def tell(self, table: VerdictTable, key: bytes, throttle: int = 0) -> None:
        """Tell the verdict on a client: its block, or else ``throttle``, the end of a throttle.

        The end is in epoch milliseconds; 0 is none.
        """
        if table.name not in self.announced:
            return
        self._waiting[table, key] = throttle
        if len(self._waiting) > MAX_WAITING:
            self.hub.note("HAProxy does not read the verdicts", self)
            self.close()
        self.wake()

    def tell_limits(self) -> None:
        """Tell rate and mode of all limits, and that an agent counts, unless another one does."""
        counts = self.origin is not None and self.origin.counting
        self._limits_due = counts and self._limits is not None
        self.wake()

    def teach(self, asked: bool = False) -> None:
        """Tell all verdicts; ``asked`` if HAProxy waits for the end of it."""
        self._asked = self._asked or asked
        self._refreshed = self.hub.now
        self._teaching = self.hub.all_verdicts(self, asked)
        self._next = None
        self.wake()

    def show_clock(self, clock: int, now: int) -> None:
        """HAProxy's clock was ``clock``, in milliseconds modulo 2^32, shortly before ``now``.

        The message took some time, so the least late of the latest ones is the best.
        """
        ahead = (clock - now // MILLISECOND + _HALF) % (2 * _HALF) - _HALF
        self._shown.append(ahead)
        self.offset = max(self._shown)
        self.clocked = True

    def refresh(self) -> None:
        """Teach all verdicts again when half of the shortest ``expire`` has passed."""
        told = [one for name, one in self.announced.items() if name.startswith(PREFIX)]
        if not self.complete or not told:
            return
        half = min(one.expire for one in told) // 2 * MILLISECOND
        if self.hub.now - self._refreshed >= half and self._teaching is None:
            self.teach()

    def close(self) -> None:
        """End the session."""
        self.session.close(0)
        self.wake()

    def fill(self) -> bool:
        """Write what is due, as much as a slice permits; return true if there is more.

        Without room in the session, the result is true too: send, and call again.
        """
        if self.session.closed or not self.session.opened or not self.hub.ready:
            return False
        left = _STEP
        if self._limits_due:
            if not self._write_limits():
                return True
            self._limits_due = False
        while self._waiting and left > 0:
            (table, key), throttle = next(iter(self._waiting.items()))
            if not self._write(table, key, throttle):
                return True
            del self._waiting[table, key]
            left -= 1
        while self._teaching is not None and left > 0:
            try:
                self._next = self._next or next(self._teaching)
            except StopIteration:
                self._taught()
                break
            if self._next is not None and not self._write(*self._next, teaching=True):
                return True
            self._next = None
            left -= 1
        return bool(self._waiting or self._limits_due or self._teaching is not None)

    @property
    def waiting(self) -> int:
        """Verdicts that wait to be sent, without those of a teaching."""
        return len(self._waiting)

    def _taught(self) -> None:
        self._teaching = None
        if self._asked:
            self._asked = False
            self.session.finished()
        if self.session.synced and not self.complete:
            self.complete = True
            self.tell_limits()

    def _write_limits(self) -> bool:
        for name in self.hub.removed:
            if not self._write_value(self._limits, name, (0, 0, 0, 0)):
                return False
        marker = (self.hub.now // MILLISECOND + self.offset) // 1_000 if self.complete else 0
        for rule in self.hub.engine.rules:
            name, window = rule.limit.name, rule.limit.window
            mode = self._mode(rule.limit, rule.fused)
            seconds = 0 if window % SECOND else window // SECOND
            if not self._write_value(self._limits, name, (rule.rate, mode, marker, seconds)):
                return False
            cap = _UNCAPPED if mode == Mode.UNCAPPED else min(2 * rule.rate, _UNCAPPED)
            if self.complete and not self._write_value(self._caps, name, (cap,)):
                return False
        return True

    def _write_value(self, table: Definition | None, name: str, values: tuple[int, ...]) -> bool:
        """Write an entry of a table of limits, if HAProxy has the table; false without room."""
        key = name.encode()
        if table is None or len(key) >= table.key_size:
            return True
        return self.session.update(table, key, values)

    def _mode(self, limit: Limit, fused: bool) -> int:
        if limit.shadow:
            return Mode.SHADOW
        counted = self.announced.get(limit.count_table)
        period = limit.window // MILLISECOND
        if limit.counts != "requests" or (
            counted is not None and counted.periods.get(DataType.HTTP_REQ_RATE, 0) != period
        ):
            return Mode.UNCAPPED
        return Mode.FUSED if fused else Mode.ENFORCE

    def _write(
        self, table: VerdictTable, key: bytes, throttle: int, teaching: bool = False
    ) -> bool:
        """Write a verdict; return false without room."""
        definition = self._definition(table)
        now = self.hub.now // MILLISECOND
        value = table.get(key)
        end, kind = end_of(value), kind_of(value)
        if end <= now:
            end, kind = 0, int(Kind.NONE)
        if throttle > now and kind in (Kind.NONE, Kind.BLOCK_SHADOW):
            shadow = table.rule is not None and table.rule.limit.shadow
            end, kind = throttle, int(Kind.THROTTLE_SHADOW if shadow else Kind.THROTTLE)
        if not kind:
            return teaching or self.session.update(definition, key, (0, 0, 0), _AFTER)
        expire = min(definition.expire, end - now + _AFTER)
        if kind == Kind.DENYLIST:
            return self.session.update(definition, key, (NEVER_ENDS, 0, kind), expire)
        end += self.offset
        seconds = -(-end // 1_000)
        # Ends of blocks are whole seconds of the fleet's clock.
        exact = abs(self.offset) <= DIFFERENT and kind in (Kind.THROTTLE, Kind.THROTTLE_SHADOW)
        early = seconds * 1_000 - end if exact else 0
        return self.session.update(definition, key, (seconds, early, kind), expire)

    def _definition(self, table: VerdictTable) -> Definition:
        """Return our definition of a table; ids are counted from 3."""
        known = self._definitions.get(table.limit)
        if known is None:
            announced = self.announced.get(table.name)
            expire = announced.expire if announced else _EXPIRE
            name = self.told.get(table.name, table.told)
            known = table.definition(len(self._definitions) + 3, name, expire)
            self._definitions[table.limit] = known
        return known


def _named(number: int, told: str, definition: Definition, values: int) -> Definition:
    """Return our definition of a table of HAProxy whose keys are the names of limits."""
    return Definition(
        number,
        told,
        KeyType.STRING,
        definition.key_size,
        (DataType.GPT,),
        sizes={DataType.GPT: values},
        expire=definition.expire,
    )
