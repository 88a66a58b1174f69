"""The peers of an agent: which tables are which limits, and which verdicts each HAProxy is told.

Every HAProxy is connected by one ``Link``. Counts come from the tables ``rl_NAME`` and change the
engine (``counts.py``); verdicts go to the tables ``rlv_NAME``: blocks from the blocklist
(``verdicts.py``), throttles from the counts.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.model import EVERY_LIMIT, TABLE_PREFIX, Limit
from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.constants import PLACE, DataType, KeyType, Status
from ratelimit.peers.counts import Counts
from ratelimit.peers.definition import Definition
from ratelimit.peers.leases import Leases
from ratelimit.peers.link import (
    CAP_VALUES,
    CAPS,
    LIMIT_VALUES,
    LIMITS,
    VERDICT_VALUES,
    Link,
    Taught,
)
from ratelimit.peers.session import Session
from ratelimit.peers.updates import UpdateReader
from ratelimit.peers.verdicts import NAT64, PREFIX, Kind, VerdictTable
from ratelimit.steps import Steps

MAX_BASELINES = 1_048_576
"""Entries of the tables of all HAProxies whose last counters are kept."""

MAX_TOLD = 65_536
"""Throttled clients whose verdicts are remembered."""

_GPT = PLACE[DataType.GPT]
_TOLD = 256  # verdicts per call
_SETS = 32  # sets of clients per call
_STEP = 16  # verdicts per step
_CONTEST = 10 * SECOND  # in which alternations are counted
_ALTERNATIONS = 3
_NOTED = 1_000  # different notes
_MAX_NETWORKS = 100  # that are looked for one by one

_BLOCKS = {int(Kind.BLOCK), int(Kind.DENYLIST), int(Kind.BLOCK_SHADOW)}


class _NoLimitError(ValueError):
    """A table is right, but of no limit of the configuration."""


class Hub(Counts):
    """The owner of all sessions; no I/O, and time is always an argument.

    Args:
        limiter: of this node.
        name: the name that HAProxy has for this agent.
        allowed: the names of the HAProxies that may connect; empty for all.
        maps: whether HAProxy has the lists in its maps.
        capacity: entries whose last counters are kept.

    ``links`` are the sessions, ``by_name`` those that are open, by the name of HAProxy. ``offset``
    is by how many milliseconds this machine's clock is ahead of the fleet's. ``removed`` are limits
    that a reload has removed. ``warn`` is called with what an operator should know, once for each
    problem and HAProxy. ``leases`` decide for which HAProxies this agent counts; ``on_ask`` is
    called when the store must be asked for them, ``on_end`` with the name of an HAProxy whose
    session has ended.
    """

    def __init__(
        self,
        limiter: Limiter,
        name: str,
        allowed: Iterable[str] = (),
        maps: bool = False,
        capacity: int = MAX_BASELINES,
    ) -> None:
        super().__init__(limiter.engine, capacity, min(capacity, MAX_TOLD))
        self.limiter = limiter
        self.name = name
        self.allowed = frozenset(allowed)
        self.maps = maps
        self.links: dict[Session, Link] = {}
        self.by_name: dict[str, Link] = {}
        self.verdicts: dict[str, VerdictTable] = {}
        self.now = 0
        self.offset = 0
        self.removed: set[str] = set()
        self.resyncs = 0
        self.refused_hellos = 0
        self.warn: Callable[[str, dict[str, str]], object] = lambda event, about: None
        self.on_stale: Callable[[], object] = lambda: None
        self.on_ask: Callable[[], object] = lambda: None
        self.on_end: Callable[[str], object] = lambda name: None
        self.leases = Leases(name)
        self._reloads = 0
        self._updates = 0  # of sessions that have ended
        self._stale: dict[VerdictTable, None] = {}
        self._translates = False
        self._networks: dict[str, None] = {}  # whose block has changed
        self._contests: dict[str, deque[tuple[int, str]]] = {}
        self._noted: dict[tuple[str, str], None] = {}
        self._limits = {rule.limit.name for rule in self.engine.rules}
        limiter.on_state.append(self._changed)
        limiter.on_fuse.append(self._fused)

    # ---- the owner of the sockets ----------------------------------------------------------

    def begin(self, session: Session, address: str, wake: Callable[[], None]) -> Link:
        """Add a session that has just begun; ``address`` is for people."""
        link = self.links[session] = Link(self, session, address, wake)
        return link

    def end(self, link: Link) -> None:
        """Remove a session."""
        if self.links.pop(link.session, None) is not None:
            self._updates += link.session.updates
        if link.origin is not None:
            self.disconnect(link.origin, link.number)
        if self.by_name.get(link.name) is link:
            del self.by_name[link.name]
            self._contests.pop(link.name, None)
            self.on_ask()
            self.on_end(link.name)

    @property
    def updates(self) -> int:
        """Updates of all sessions since the start."""
        return self._updates + sum(session.updates for session in self.links)

    def begin_read(self, now: int, since: int) -> None:
        """Set the time of the following read; see ``Counts.at()``."""
        # A read may have waited, and the engine would take an earlier time for a wrong clock.
        self.now = max(now, self.engine.now)
        self.at(self.now, since)

    def reads(self, link: Link, now: int) -> bool:
        """Return whether what HAProxy says may be read; if not, the link wakes its owner later."""
        if not self.ready:
            return False
        if link.lease is None or self.leases.reads(link.lease, now):
            return True
        self.on_ask()
        return False

    def changed(self) -> list[Link]:
        """Continue as the leases permit; return where this agent has begun or ceased to count."""
        found = []
        for link in self.by_name.values():
            if link.origin is not None and link.counts != link.origin.counting:
                link.counts = link.origin.counting
                link.tell_limits()
                found.append(link)
            link.wake()
        return found

    def restart(self) -> Steps[None]:
        """Forget the hits of all clients; blocks and last counters stay."""
        for begin in range(0, self.engine.table.sets, _SETS):
            self.engine.table.forget(begin, begin + _SETS)
            yield

    def tick(self, now: int, offset: int) -> None:
        """Begin a new second; ``offset`` as the attribute."""
        self.now = now
        self.offset = offset
        self.at(now, now)
        for table in self.verdicts.values():
            table.sweep()
        for link in self.by_name.values():
            if not link.clocked:
                link.offset = offset
            link.refresh()
            link.tell_limits()

    @property
    def ready(self) -> bool:
        """Whether the tables have all blocks; until then no verdict is told."""
        return not self._stale

    def rebuild(self) -> Steps[None]:
        """Compare the tables that have changed, or are new, with the blocklist."""
        while self._stale:
            table = next(iter(self._stale))
            reloads, known = self._reloads, table.ready
            changed = yield from table.rebuild()
            if known:
                yield from self._tell_all(table, changed)
            else:
                for link in self.by_name.values():
                    if table.name in link.announced:
                        link.teach()
            if reloads != self._reloads:
                continue  # a part was compared with what the reload has replaced
            self._stale.pop(table, None)
            if table.rule is None:
                self.verdicts.pop(table.limit, None)
        while self._networks:
            network = next(iter(self._networks))
            yield from self.limiter.cut()
            self._networks.pop(network, None)
            for table in list(self.verdicts.values()):
                changed = yield from table.renew_within(network)
                yield from self._tell_all(table, changed)
        for link in self.links.values():
            link.wake()

    def reload(self) -> None:
        """Apply new limits and lists; ``rebuild()`` is due afterwards."""
        now = {rule.limit.name for rule in self.engine.rules}
        self.removed = (self.removed | self._limits) - now
        self._limits = now
        self._reloads += 1
        # HAProxy announces a table once in a session: one that was no limit may be one now.
        for link in list(self.by_name.values()):
            link.refused.clear()
            link.unused.clear()
            for definition in link.announced.values():
                if not self._is_used(link, definition):
                    link.close()
                    break
        try:
            super().reload()
        except ValueError as error:
            self.note(str(error))
        self._stale.update(dict.fromkeys(self.verdicts.values()))
        self.on_stale()
        for link in self.by_name.values():
            link.tell_limits()

    def note(self, event: str, link: Link | None = None, **about: str) -> None:
        """Tell an operator once of a problem."""
        if link is not None:
            about |= {"haproxy": link.name, "peer": link.address}
        seen = event, about.get("haproxy", "") + about.get("table", "")
        if seen not in self._noted and len(self._noted) < _NOTED:
            self._noted[seen] = None
            self.warn(event, about)

    # ---- the sessions ----------------------------------------------------------------------

    def admits(self, session: Session) -> Status:
        link = self.links[session]
        link.name, link.pid = session.name, session.pid
        if self.allowed and link.name not in self.allowed:
            self.refused_hellos += 1
            self.note("connection refused: the name is not in agent.peers_allowed", link)
            return Status.REMOTE_NAME
        if self._contested(link, self.by_name.get(link.name)):
            self.refused_hellos += 1
            return Status.TRY_LATER
        return Status.SUCCESS if self._enter(link) else Status.TRY_LATER

    def on_open(self, session: Session) -> None:
        link = self.links[session]
        if not link.name:  # this agent has dialed; the process of HAProxy is not known
            link.name = session.name
            if not self._enter(link):
                link.close()

    def on_table(self, session: Session, definition: Definition) -> object:
        link = self.links[session]
        told = definition.name
        # A table that is declared in the section "peers" itself has the name "/rl_default".
        definition = dataclasses.replace(definition, name=told.removeprefix("/"))
        link.announce(definition, told)
        try:
            return self._owner(link, definition)
        except _NoLimitError as error:
            link.unused.add(definition.name)
            self.note("a table of HAProxy is not used", link, table=definition.name, why=str(error))
            return False
        except ValueError as error:
            self._refuse(link, definition.name, str(error))
            return False

    def on_entry(self, session: object, definition: object, update: UpdateReader) -> None:
        table = update.owner
        if not isinstance(table, VerdictTable):
            return
        link = self.links[cast(Session, session)]
        self.translated = self.translated or update.key().startswith(NAT64)
        end, kind = update.value(_GPT), update.value(_GPT + 2)
        now = (self.now // MILLISECOND + link.offset) // 1_000
        # A throttle ends soon; an older one may come from another agent.
        wrong = kind in _BLOCKS and end > now and not (table.ready and table.get(update.key()))
        # In an outage of the store, another agent may have blocked it.
        if wrong and link.lease is not None and link.lease.holder in ("", self.name):
            link.tell(table, update.key())

    def on_read(self, session: object) -> None:
        if self.translated and not self._translates:
            self._translate()
        while self.told.queued:
            for verdict in self.take(_TOLD):
                table = self.verdicts.get(verdict.limit)
                if table is not None:
                    key = _narrow(verdict.key, table)
                    table.learn(key)
                    # A list, or the block of a network, refuses a client once it is counted.
                    lists = not (self.engine.lists.empty and self.engine.barred.empty)
                    if lists or key.startswith(NAT64):
                        table.renew(key)
                    self._tell(table, key, verdict.until // MILLISECOND)
        link = self.links[cast(Session, session)]
        if self.clocked:
            self.clocked = False
            link.show_clock(self.clock, self.now)
        for source in link.sources:
            if source.wrong:
                link.sources.remove(source)
                self._refuse(link, source.name, "its keys have bits beyond the limit's prefix")
                break

    def on_sync_wanted(self, session: Session) -> None:
        self.links[session].teach(asked=True)

    def on_synced(self, session: Session, whole: bool) -> None:
        link = self.links[session]
        self.resyncs += 1
        if link.origin is not None:
            self.synced(link.origin, whole)
        link.teach()

    def on_refused(self, session: Session, name: str, why: str) -> None:
        self._refuse(self.links[session], name, why)

    def _enter(self, link: Link) -> bool:
        """Begin a session, in place of an older one; return false if there is no room."""
        try:
            link.origin = self.connect(link.name, link.pid)
        except ValueError as error:
            self.note(str(error), link)
            return False
        link.number = link.origin.number
        link.lease = self.leases.begin(link.origin, self.now)
        link.since = self.now // SECOND
        older = self.by_name.get(link.name)
        self.by_name[link.name] = link
        if older is not None:
            older.replaced = True
            older.close()
        return True

    # ---- tables ----------------------------------------------------------------------------

    def _owner(self, link: Link, definition: Definition) -> object:
        """Return the owner of a table's updates; raises ValueError if the table is wrong."""
        name = definition.name
        if name in (LIMITS, CAPS):
            _require(definition, LIMIT_VALUES if name == LIMITS else CAP_VALUES)
            if definition.key_type != KeyType.STRING:
                raise ValueError("the keys of this table must be of type string")
        elif name.startswith(PREFIX):
            return self._verdicts(link, definition)
        elif name.startswith(TABLE_PREFIX):
            return self._counts(link, definition)
        return False

    def _verdicts(self, link: Link, definition: Definition) -> VerdictTable:
        limit = definition.name.removeprefix(PREFIX)
        if self.limiter.rule(limit) is None:
            raise _NoLimitError(f"no limit has the name {limit}")
        _require(definition, VERDICT_VALUES)
        table = self.verdicts.get(limit)
        if table is None:
            table = VerdictTable(self.limiter, limit, definition, self.maps)
            table.told = link.told[definition.name]
            table.translates = self._translates
            if table.is_text:
                self.limiter.digests.add(limit)
            self.verdicts[limit] = table
            self._stale[table] = None
            self.on_stale()
        elif not table.fits(definition):
            raise ValueError("another HAProxy has this table with keys of another type or size")
        return table

    def _counts(self, link: Link, definition: Definition) -> object:
        fed = [
            rule.limit for rule in self.engine.rules if rule.limit.count_table == definition.name
        ]
        if not fed:
            raise _NoLimitError("no limit takes counts from this table")
        for limit in fed:
            if limit.strict:
                raise ValueError(f"limits.{limit.name} is strict, which needs SPOE")
        if self.limiter.sharing is Sharing.ALL:
            raise ValueError('store.sync_interval is "0", which needs SPOE')
        assert link.origin is not None  # noqa: S101 - see admits()
        source = self.source(link.origin, definition)
        link.feeding.add(definition.name)
        if source is not None:
            link.sources.append(source)
        return source or False

    def _is_used(self, link: Link, definition: Definition) -> bool:
        """Return whether a table has the use that it would have in a new session."""
        name = definition.name
        if name.startswith(PREFIX):
            limit = name.removeprefix(PREFIX)
            return limit in self.verdicts or self.limiter.rule(limit) is None
        wanted = any(rule.limit.count_table == name for rule in self.engine.rules)
        return not wanted or name in link.feeding

    def _refuse(self, link: Link, name: str, why: str) -> None:
        link.refused[name] = why
        self.note("a table of HAProxy can't be used", link, table=name, why=why)

    # ---- verdicts --------------------------------------------------------------------------

    def all_verdicts(self, link: Link, asked: bool) -> Iterator[Taught | None]:
        """Yield all verdicts for a link in steps; None is a step without one.

        An HAProxy that has ``asked`` may not have announced its tables yet.
        """
        for table in list(self.verdicts.values()):
            if not asked and table.name not in link.announced:
                continue
            for page in table.values.pages():
                for key in page:
                    yield table, key, 0
        # Throttles of an agent that HAProxy has lost for a moment are still in force.
        for begin in range(0, self.told.places, _TOLD):
            yield None
            for verdict in self.held(begin, begin + _TOLD):
                told = self.verdicts.get(verdict.limit)
                if told is not None and told.name in link.announced:
                    yield told, _narrow(verdict.key, told), verdict.until // MILLISECOND

    def _changed(self, limit: str, client: str) -> None:
        """The state of a client in the blocklist has changed."""
        # Clients behind NAT64 have keys of their own, also if the limit counts their network.
        behind = self._translates and "." in client and "/" in client
        if behind or (limit == EVERY_LIMIT and self.limiter.is_network(client)):
            self._part(client)
        for table in self._tables(limit):
            for key in table.update(client):
                self.forget(table.limit, _wide(key, table), table.is_text)
                self._tell(table, key)

    def _part(self, client: str) -> None:
        """Plan to renew the verdicts on clients in a network whose block has changed."""
        if self.verdicts:
            if len(self._networks) >= _MAX_NETWORKS:
                self._networks.clear()
                client = "::/0"  # all addresses, IPv4 ones too
            self._networks[client] = None
            self.on_stale()

    def unenforced(self, client: str) -> list[str]:
        """Return the limits for which HAProxy has no verdict although a client is blocked by hand.

        ``client`` is a key of the blocklist: not one client of the limit, or an unknown string.
        """
        return [name for name, table in self.verdicts.items() if not table.refuses(client)]

    def _translate(self) -> None:
        """Tell the blocks of IPv4 clients under the keys too that they have behind NAT64."""
        self._translates = True
        for table in self.verdicts.values():
            table.translates = True
            self._stale[table] = None
        self.on_stale()

    def _tables(self, limit: str) -> Iterable[VerdictTable]:
        if limit == EVERY_LIMIT:
            return self.verdicts.values()
        return (self.verdicts[limit],) if limit in self.verdicts else ()

    def _tell_all(self, table: VerdictTable, keys: Iterable[bytes]) -> Steps[None]:
        """Tell every HAProxy the verdicts on keys that have changed."""
        for number, key in enumerate(keys):
            if number % _STEP == 0:
                yield
            self.forget(table.limit, _wide(key, table), table.is_text)
            self._tell(table, key)

    def _tell(self, table: VerdictTable, key: bytes, throttle: int = 0) -> None:
        for link in list(self.by_name.values()):
            link.tell(table, key, throttle)

    def _fused(self, limit: Limit, blown: bool) -> None:
        for link in self.by_name.values():
            link.tell_limits()

    # ---- names -----------------------------------------------------------------------------

    def _contested(self, link: Link, older: Link | None) -> bool:
        """Return whether two processes or addresses alternate under one name."""
        here = f"process {link.pid} at {_host(link.address)}"
        history = self._contests.setdefault(link.name, deque(maxlen=_ALTERNATIONS + 1))
        while history and history[0][0] < self.now - _CONTEST:
            history.popleft()
        if not history or history[-1][1] != here:
            history.append((self.now, here))
        alternating = [one for _, one in history]
        if older is None or len(alternating) <= _ALTERNATIONS or len(set(alternating)) != 2:
            return False
        # As long as the later one tries again, it is refused.
        history.pop()
        self.note(
            "two HAProxies have one name; the later one is refused, give each its own localpeer",
            link,
            first=alternating[-2],
            later=here,
        )
        return True


def _require(definition: Definition, values: int) -> None:
    """Raise ValueError if a table lacks an array of so many tags."""
    if definition.sizes.get(DataType.GPT, 0) < values:
        raise ValueError(f"the table must store gpt({values})")


def _narrow(key: bytes, table: VerdictTable) -> bytes:
    """Return the key of a verdict in the size of a table: an IPv4 address has 4 bytes in one."""
    return key[12:] if table.key_type == KeyType.IPV4 else key


def _wide(key: bytes, table: VerdictTable) -> bytes:
    """Return the key of a table with the 16 bytes that ``Counts`` has for an IPv4 address."""
    return b"\0" * 10 + b"\xff\xff" + key if table.key_type == KeyType.IPV4 else key


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address
