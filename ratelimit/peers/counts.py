"""Counts what HAProxies tell of their stick tables, and finds the verdicts to tell them.

HAProxy tells the counters of an entry, not increments. What an update adds depends on what is known
of the entry (``baselines.py``):

- An unknown entry is new in HAProxy, and all of its hits count, if HAProxy has told all its entries
  before. Otherwise it may be old: its counters are a baseline, and only the hits that its rates
  show count, if the table has rates.
- A known entry adds the difference to its last counters. HAProxy tells a change at once, so its
  hits are from the time since the previous read; after an interruption, they are from the time
  since the last update of the entry, evenly. Hits older than the window are dropped.
- A known entry that HAProxy no longer had when it last told all, or that has expired, is new. As
  long as an entry has open requests, it does not expire.
- A counter that is lower than before was made again: HAProxy had purged the entry, or an operator
  had cleared it. A counter that has passed 2^32 looks the same. But in the first hour of a process
  it adds nothing: the process may have taken over from another one, which still ends its requests
  and overwrites the counters of its successor with its own. So a counter that comes back to the
  value that it fell from adds only what is above.

- A former process that this agent has never heard of, or another former one, tells counters that
  are no hits either. They are higher than the rate of the entry (``http_req_rate``) shows: then a
  new entry is taken for an old one, and an increment for no hits.

Where a rule can't know better, it loses hits rather than invent any. Not covered are tables without
``http_req_rate``, if a former process runs that the agent has not heard of, or two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import ADDRESS, FETCHED, M32, TEXT
from ratelimit.engine.outcome import Outcome
from ratelimit.engine.reported import Reported
from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.baselines import BYTES_IN, FORMER, OPEN, REQUESTS, Baselines
from ratelimit.peers.constants import PLACE, Class, DataType, KeyType, Message
from ratelimit.peers.definition import Definition
from ratelimit.peers.listener import Listener
from ratelimit.peers.sources import COUNTERS, Feed, Origin, Source
from ratelimit.peers.told import MAX_KEY, Told
from ratelimit.peers.updates import UpdateReader

# Of C's int type when compiled.
_TABLE = int(Class.TABLE)
_UPDATE = int(Message.UPDATE)
_INCREMENTAL = int(Message.INCREMENTAL)
_TIMED = int(Message.TIMED)
_INCREMENTAL_TIMED = int(Message.INCREMENTAL_TIMED)
_IPV4 = int(KeyType.IPV4)
_IPV6 = int(KeyType.IPV6)

_COUNTERS = 6
_REQUESTS = 0  # indices of counters
_ERRORS = 1
_REFUSALS = 3
_BYTES = 4  # from this one on, counters have 64 bits
_OPEN = PLACE[DataType.CONN_CUR]
_CLOCK = PLACE[DataType.GPT]

_ONE_BYTE = 240  # lengths below take one byte
_SHORTEST = 3 + 8 + 16  # bytes to look at: header, number and expiry, key

_MILLISECOND = MILLISECOND  # of C's int type when compiled
_PAST = 1 << 31  # milliseconds; a difference beyond it is negative
_GRACE = 5_000  # milliseconds by which HAProxy may tell a change late
_PROMPT = 20  # milliseconds in which an entry may be told twice as new
_OVERLAP = 3600 * SECOND  # how long a former process may end its requests
_HOLD = 5 * SECOND
"""Nanoseconds for which a client with too many open requests is refused, if it is not lifted."""
_DENIED = 3600 * SECOND
"""Nanoseconds after which a client on the deny list is told again, if HAProxy lets it through."""
_LEAST = 10 * MILLISECOND
_PART = 8
"""A later end is told if it is later by this part of the window, and by so many nanoseconds."""
_MOST = 1 << 27  # hits of an update that are counted; more than any rate
_MAX_NUMBER = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict to tell every HAProxy: refuse the requests of a client for a while.

    Attributes:
        limit: name of the limit.
        key: of the client in HAProxy's table; an address has 16 bytes.
        until: epoch nanosecond of the end; 0 to refuse no longer.
    """

    limit: str
    key: bytes
    until: int


class Counts(Listener):
    """The counts of all HAProxies that are peers; a subclass owns the sessions.

    Args:
        engine: counts the hits.
        capacity: entries of all tables of all HAProxies whose last counters are kept.
        told: clients whose verdicts are remembered.

    ``clocked`` is set with each entry that shows its HAProxy's clock: ``clock`` is the time of its
    first request, in milliseconds modulo 2^32, which HAProxy has put into the first tag.
    ``translated`` is set once a client behind NAT64 was counted.
    """

    def __init__(self, engine: Engine, capacity: int, told: int = 65_536) -> None:
        self.engine = engine
        self.baselines = Baselines(capacity, engine.table)
        self.told = Told(told, engine.table)
        self.origins: dict[str, Origin] = {}
        self.tables: dict[str, tuple[int, list[Source]]] = {}
        self.reported = Reported(engine)
        self.outcome = Outcome(engine.rules[0])
        self.since = 0
        self.millisecond = 0
        self.kind = 0
        self.hi = 0
        self.lo = 0
        self.clock = 0
        self.clocked = False
        self.translated = False
        # Plain Python spends its time on objects, not on the tables.
        self.fetching = not __file__.endswith(".py")
        self.fetched = b""
        self.fetched_to = 0
        # What an update adds to each counter.
        self.gains = memoryview(bytearray(8 * _COUNTERS)).cast("Q")

    def connect(self, name: str, pid: int) -> Origin:
        """Begin a session with an HAProxy, in place of an older one of the same name.

        Raises ValueError if there were too many names.
        """
        origin = self.origins.get(name)
        if origin is None:
            if len(self.origins) >= _MAX_NUMBER:
                raise ValueError("too many names of HAProxies since the start; restart")
            origin = self.origins[name] = Origin(name, len(self.origins) + 1)
        if origin.pid != pid:
            origin.pid = pid
            origin.settled = self.engine.now + _OVERLAP
        origin.number += 1
        origin.connected = True
        origin.synced = False
        origin.whole = False
        origin.asked = self.millisecond
        return origin

    def disconnect(self, origin: Origin, number: int) -> None:
        """End the session ``number`` with an HAProxy, as ``origin.number`` was in ``connect()``."""
        if origin.number == number:
            origin.connected = False

    def synced(self, origin: Origin, whole: bool) -> None:
        """HAProxy has told all entries that it has; ``whole`` if it learns of no older ones."""
        origin.synced = True
        if whole:
            origin.whole = True
            origin.cleared = True
            origin.cleared_at = origin.asked

    def source(self, origin: Origin, definition: Definition) -> Source | None:
        """Return the owner for the updates of a table; None if the table feeds no limit.

        Raises ValueError if a limit can't be fed by it.
        """
        feeds = self.feeds(definition)
        if not feeds:
            return None
        if definition.key_type in (KeyType.INTEGER, KeyType.STRING):
            raise ValueError(
                f"a table of type {definition.key_type.name.lower()} can't be a limit;"
                " use type ip or ipv6, or type binary len 32 with sha2(256) of the value"
            )
        if definition.key_type == KeyType.BINARY and definition.key_size > MAX_KEY:
            raise ValueError(
                f"keys of {definition.key_size} bytes; a limit's have at most {MAX_KEY}"
            )
        if definition.name not in self.tables and len(self.tables) >= _MAX_NUMBER:
            raise ValueError("too many names of tables since the start; restart")
        index, sources = self.tables.setdefault(definition.name, (len(self.tables) + 1, []))
        source = Source(origin, definition, origin.index << 16 | index, sources)
        source.feed(feeds)
        sources[:] = [one for one in sources if one.origin is not origin]
        sources.append(source)
        self.baselines.expire = max(self.baselines.expire, definition.expire)
        return source

    def reload(self) -> None:
        """Feed the limits that the engine has now; ValueError names a table that lacks a type."""
        for _, sources in self.tables.values():
            for source in sources:
                source.feed(self.feeds(source.definition))

    def feeds(self, definition: Definition) -> list[Feed]:
        """Return what the limits take of a table; ValueError if the table lacks a data type."""
        feeds = []
        for rule in self.engine.rules:
            if rule.limit.count_table == definition.name:
                needed = [COUNTERS[rule.limit.counts], DataType.HTTP_REQ_CNT]
                needed += [DataType.CONN_CUR] if rule.limit.open else []
                needed += [] if rule.limit.count_refused else [DataType.GPC0]
                for kind in needed:
                    if kind not in definition.types:
                        raise ValueError(
                            f"limits.{rule.limit.name} needs {kind.name.lower()} in the table"
                        )
                feeds.append(Feed(rule))
        return feeds

    def take(self, most: int) -> list[Verdict]:
        """Return up to ``most`` of the ``told.queued`` verdicts to tell every HAProxy."""
        return self.named(self.told.take(most))

    def held(self, begin: int, stop: int) -> list[Verdict]:
        """Return the verdicts in force in some of ``told.places``, for an HAProxy that knows none.

        Those in the queue are among them.
        """
        return self.named(self.told.held(begin, stop, self.engine.now))

    def named(self, verdicts: list[tuple[int, bytes, int]]) -> list[Verdict]:
        names = {rule.index: rule.limit.name for rule in self.engine.rules}
        return [
            Verdict(names[index], key, until) for index, key, until in verdicts if index in names
        ]

    def forget(self, limit: str, key: bytes, is_text: bool) -> None:
        """Forget a told verdict, because the caller tells HAProxy another one."""
        hi = int.from_bytes(key[:8], "big")
        lo = int.from_bytes(key[8:16], "big")
        kind = ADDRESS
        if is_text:
            self.engine.key.binary(key, 0, len(key))
            hi, lo, kind = self.engine.key.hi, self.engine.key.lo, TEXT
        for rule in self.engine.rules:
            if rule.limit.name == limit:
                self.told.forget(hi, lo, kind << 16 | rule.index)

    def at(self, now: int, since: int) -> None:
        """Set the time for the following updates, in epoch nanoseconds.

        ``since`` is the latest time at which every change was read that HAProxy had told by then:
        that of the previous read, or of a later look at the socket that found nothing to read.
        """
        self.engine.at(now)
        self.since = since
        self.millisecond = self.engine.now // _MILLISECOND & M32

    def on_update(self, session: object, definition: object, update: UpdateReader) -> None:
        owner = update.owner
        if type(owner) is Source:
            self.count(owner, update)
        else:
            self.on_entry(session, definition, update)

    def on_entry(self, session: object, definition: object, update: UpdateReader) -> None:
        """An update of a table that is no source."""

    def count(self, source: Source, update: UpdateReader) -> None:
        """Count what an update adds."""
        origin = source.origin
        if source.number != origin.number:
            return  # a newer session has replaced this one
        ahead = update.data is self.fetched and update.key_start < self.fetched_to
        if self.fetching and source.fetches and not ahead:
            self.fetch(source, update)
        base = self.baselines
        now = self.engine.now
        self.find(source, update)
        slot = base.visit(self.hi, self.lo, source.ident, self.millisecond)
        known = base.known
        stamp = base.stamp
        if known:
            fresh = self.gone(source, stamp, base.halves[2 * slot + OPEN])
            idle = self.millisecond - stamp & M32
            begin = now - idle * _MILLISECOND
            if origin.synced and begin < self.since:
                begin = self.since
        else:
            fresh = origin.whole and base.since_loss >= base.expire + self.lateness()
            begin = self.since
        if fresh and now < origin.settled:
            fresh = self.is_new(source, update)
        if source.clocks and origin.synced and update.values[source.places[_REQUESTS]] == 1:
            # Before HAProxy sets the tag, it is 0; the end of the request may tell it late.
            first = not known or base.halves[2 * slot + REQUESTS] != 1 or idle <= _PROMPT
            if first and update.values[_CLOCK] > 0:
                self.clock = update.values[_CLOCK]
                self.clocked = True
        self.gain(source, update, slot, fresh, known)
        if source.opens:
            base.halves[2 * slot + OPEN] = update.values[_OPEN]
        if origin.counting:
            for feed in source.feeds:
                if fresh or known:
                    self.add(source, feed, update, begin)
                else:
                    self.seed(source, feed, update)
                if feed.open > 0:
                    self.limit_open(source, feed, update)

    def fetch(self, source: Source, update: UpdateReader) -> None:
        """Prefetch what this update and those that follow it in the same read will need.

        Both tables are larger than any cache; see ``spop.respond``. Only plain updates with
        addresses are found; a wrong guess costs time and nothing else.
        """
        p = update.data
        size = len(update.data)
        table = self.engine.table
        feed = source.feeds[0]
        ident = ADDRESS << 16 | feed.rule.index
        key = update.key_start
        end = update.end
        count = 0
        while True:
            hi = 0
            lo = 0
            for i in range(8):
                hi = hi << 8 | p[key + i]
                lo = lo << 8 | p[key + 8 + i]
            self.baselines.expect(hi, lo, source.ident)
            table.aim(hi, lo, ident)
            table.expect(table.base, table.tag)
            count += 1
            if count == FETCHED or size - end < _SHORTEST or p[end] != _TABLE:
                break
            key = end + 3
            if p[end + 1] == _UPDATE or p[end + 1] == _INCREMENTAL_TIMED:
                key += 4
            elif p[end + 1] == _TIMED:
                key += 8
            elif p[end + 1] != _INCREMENTAL:
                break
            if p[end + 2] >= _ONE_BYTE:
                break
            end += 3 + p[end + 2]
        self.fetched = update.data
        self.fetched_to = end
        self.baselines.fetch()
        table.fetch()

    def find(self, source: Source, update: UpdateReader) -> None:
        """Set the key: ``hi`` and ``lo`` as HAProxy has it, and the engine's for the client."""
        key = self.engine.key
        p = update.data
        if source.key_type == _IPV6:
            hi = 0
            lo = 0
            for i in range(8):
                hi = hi << 8 | p[update.key_start + i]
                lo = lo << 8 | p[update.key_start + 8 + i]
            self.hi = hi
            self.lo = lo
            key.take(hi, lo)
            if key.hi != hi:
                self.translated = True
        elif source.key_type == _IPV4:
            key.ipv4(update.data, update.key_start)
            self.hi = key.hi
            self.lo = key.lo
        else:
            key.binary(update.data, update.key_start, update.key_size)
            self.hi = key.hi
            self.lo = key.lo
        self.kind = key.kind

    def gone(self, source: Source, stamp: int, held: int) -> bool:
        """Return whether HAProxy has lost an entry with ``held`` open requests since its last
        update.
        """
        origin = source.origin
        if origin.cleared and stamp - origin.cleared_at & M32 >= _PAST:
            return True
        if not origin.synced or held > 0 or not source.opens:
            return False
        if self.engine.now < origin.settled:
            return False  # the former process may have it, with open requests
        idle = self.millisecond - stamp & M32
        return idle >= source.expire + self.lateness()

    def is_new(self, source: Source, update: UpdateReader) -> bool:
        """Return whether the rate of an entry shows all its requests, if there is a rate.

        Otherwise the entry may be one of a former process that this agent has never heard of.
        """
        place = source.rates[_REQUESTS]
        if place < 0:
            return True
        shown = update.values[place + 1] + update.values[place + 2]
        return shown >= update.values[source.places[_REQUESTS]]

    def is_recent(self, source: Source, update: UpdateReader) -> bool:
        """Return whether the rate of an entry, if there is one, shows the requests it adds."""
        place = source.rates[_REQUESTS]
        if place < 0:
            return True
        return update.values[place + 1] + update.values[place + 2] >= self.gains[_REQUESTS]

    def lateness(self) -> int:
        """Return by how many milliseconds a change may be told late."""
        if self.engine.now < self.since:
            return _GRACE
        return _GRACE + (self.engine.now - self.since) // _MILLISECOND

    def gain(
        self, source: Source, update: UpdateReader, slot: int, fresh: bool, known: bool
    ) -> None:
        """Compute what an update adds to each counter, and keep the counters."""
        base = self.baselines
        overwritten = False
        for i in range(_COUNTERS):
            place = source.places[i]
            if place < 0:
                continue
            new = update.values[place]
            if i < _BYTES:
                at = 2 * slot + REQUESTS + i
                old = base.halves[at]
                base.halves[at] = new
            else:
                at = slot + BYTES_IN + i - _BYTES
                old = base.words[at]
                base.words[at] = new
            if fresh:
                self.gains[i] = new
            elif not known:
                self.gains[i] = 0
            elif new >= old:
                self.gains[i] = new - old
            else:
                self.gains[i] = 0 if self.engine.now < source.origin.settled else new
            if i == _REQUESTS and self.engine.now < source.origin.settled:
                former = base.halves[2 * slot + FORMER]
                if fresh:
                    base.halves[2 * slot + FORMER] = 0
                elif new < old:
                    base.halves[2 * slot + FORMER] = max(old, former)
                elif old < former <= new:
                    # Perhaps not by requests: the former process may have told its counters again.
                    base.halves[2 * slot + FORMER] = 0
                    self.gains[i] = new - former
                    overwritten = True
                elif former > 0 and not self.is_recent(source, update):
                    # Another former process may have told its counters.
                    self.gains[i] = 0
                    overwritten = True
            elif overwritten:
                self.gains[i] = 0

    def aim(self, source: Source, feed: Feed, update: UpdateReader) -> bool:
        """Aim the query of a feed; return false if the key is not a client of the limit."""
        key = self.engine.key
        query = feed.query
        query.kind = key.kind
        query.hi = key.hi
        query.lo = key.lo
        query.data = update.data
        query.text = update.key_start
        query.text_size = update.key_size if key.kind == TEXT else 0
        self.engine.aim(query)
        if query.client_hi == query.hi and query.client_lo == query.lo:
            return True
        if self.hi != key.hi:
            return True  # HAProxy does not mask the addresses of NAT64
        source.wrong = True
        return False

    def add(self, source: Source, feed: Feed, update: UpdateReader, begin: int) -> None:
        """Count the gain of a known or new entry, which happened between ``begin`` and now."""
        hits = self.gains[feed.counter]
        refused = 0
        # HAProxy counts its refusals as errors too.
        if feed.counter <= _ERRORS and source.places[_REFUSALS] >= 0:
            refused = min(self.gains[_REFUSALS], hits)
        if hits == 0 or not self.aim(source, feed, update):
            return
        query = feed.query
        query.hits = min(hits - refused if feed.subtract else hits, _MOST)
        if query.hits > 0:
            self.reported.spread(query, begin, self.engine.now)
        self.judge(feed, update, hits - refused, refused)

    def seed(self, source: Source, feed: Feed, update: UpdateReader) -> None:
        """Count what the rate of an entry that may be old shows: the present and last period."""
        place = source.rates[feed.counter]
        if place < 0 or update.values[place + 1] + update.values[place + 2] == 0:
            return
        if feed.rule.nodes > 1:
            return  # other nodes may have them from the agent that has counted them
        if not self.aim(source, feed, update):
            return
        query = feed.query
        now = self.engine.now
        period = source.periods[feed.counter]
        age = update.values[place] * _MILLISECOND
        start = now - age
        query.hits = min(update.values[place + 2], _MOST)
        if query.hits > 0:
            self.reported.spread(query, start - period, start)
        last = query.hits
        query.hits = min(update.values[place + 1], _MOST)
        if query.hits > 0:
            # An old entry's present period is over, but HAProxy has not counted a new one.
            self.reported.spread(query, start, start + min(age, period))
        query.hits += last
        self.judge(feed, update, 0, 0)

    def judge(self, feed: Feed, update: UpdateReader, passed: int, refused: int) -> None:
        """Judge an aimed query, and tell until when the client is refused.

        ``passed`` and ``refused`` are the verdicts that HAProxy has given.
        """
        rule = feed.rule
        query = feed.query
        allowed = rule.allowed
        throttled = rule.throttled
        blocked = rule.blocked
        denied = rule.denied
        end = self.reported.judge(query, self.outcome)
        if feed.counter == _REQUESTS and rule.allowed + rule.throttled > allowed + throttled:
            rule.allowed = allowed + passed
            rule.throttled = throttled + refused
        if end > 0 and (feed.at_rate or rule.throttled > throttled):
            self.tell(feed, update, end, max(rule.sub_window * 16 // _PART, _LEAST))
        elif rule.denied > denied:
            self.tell(feed, update, self.engine.now + _DENIED, _DENIED // 2)
        elif rule.blocked > blocked and self.outcome.until > 0:
            # It takes the place of an earlier verdict, which may have had a later end.
            ident = self.kind << 16 | rule.index
            end = self.outcome.until * SECOND
            if self.told.end(self.hi, self.lo, ident) != end:
                self.send(ident, update, end)

    def tell(self, feed: Feed, update: UpdateReader, end: int, slack: int) -> None:
        """Tell the end of a verdict, unless HAProxy knows one that is nearly as late."""
        ident = self.kind << 16 | feed.rule.index
        told = self.told.end(self.hi, self.lo, ident)
        if told <= self.engine.now or end > told + slack:
            self.send(ident, update, end)

    def send(self, ident: int, update: UpdateReader, end: int) -> None:
        size = update.key_size if self.kind == TEXT else 0
        self.told.tell(self.hi, self.lo, ident, end, update.data, update.key_start, size)

    def limit_open(self, source: Source, feed: Feed, update: UpdateReader) -> None:
        """Throttle a client as long as it has as many open requests as the limit allows."""
        now = self.engine.now
        if self.open(source, update.values[_OPEN]) >= feed.open:
            self.tell(feed, update, now + _HOLD, _HOLD // 2)
            return
        ident = self.kind << 16 | feed.rule.index
        told = self.told.end(self.hi, self.lo, ident)
        if told <= now or not self.aim(source, feed, update):
            return
        # Its rate may still be too high, but not for as long.
        query = feed.query
        client = query.kind << 16 | feed.rule.index
        slot = self.engine.table.search(
            query.client_hi, query.client_lo, client, query.base, query.tag
        )
        end = self.reported.free(feed.rule, slot) if slot >= 0 else 0
        if end + _LEAST < told:
            self.send(ident, update, end)

    def open(self, source: Source, own: int) -> int:
        """Return the open requests of a client at all connected HAProxies."""
        base = self.baselines
        total = own
        for other in source.siblings:
            if other is not source and other.origin.connected:
                slot = base.peek(self.hi, self.lo, other.ident)
                if slot >= 0:
                    held = base.halves[2 * slot + OPEN]
                    if held > 0 and not self.gone(other, base.stamp, held):
                        total += held
        return total
