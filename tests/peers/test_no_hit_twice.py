"""A model of HAProxy's stick tables, told through the protocol: no hit twice, none invented."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.notation import DAY, SECOND
from ratelimit.peers.constants import Status
from ratelimit.peers.counts import Counts
from ratelimit.peers.definition import Definition
from ratelimit.peers.session import Session
from tests.helpers.asking import START
from tests.helpers.peers_wire import ASK, CONFIRMED, FINISHED, PARTIAL, define, update
from tests.helpers.sticktable import EXPIRE, Entry, ipv6

GPC0, CONN_CUR, HTTP_REQ_CNT = 2, 6, 9
CLIENTS = ["192.0.2.1", "192.0.2.2"]
CROWD = [f"198.51.100.{n}" for n in range(8)]
"""Clients that fill all baselines, if there is room for eight only."""

LAG = 4
"""Seconds within which HAProxy tells a change, at the latest."""

LIMIT = Limit(rate=10_000_000, window=DAY, block=(), strict=True)


class Agent(Counts):
    """The least that an owner of sessions does."""

    def __init__(self, capacity: int) -> None:
        limiter = Limiter([LIMIT], 1000, secret=bytes(range(64)))
        super().__init__(limiter.engine, capacity, 64)

    def admits(self, session: Session) -> Status:
        self.origin = self.connect(session.name, session.pid)
        return Status.SUCCESS

    def on_table(self, session: Session, definition: Definition) -> object:
        return self.source(self.origin, definition)

    def on_synced(self, session: Session, whole: bool) -> None:
        self.synced(self.origin, whole)

    def hits(self, client: str) -> int:
        """Return all hits of a client; the window is longer than any test."""
        rule = self.engine.rules[0]
        return self.engine.hits(rule, self.engine.slot(rule, client.encode()))


class Machine(RuleBasedStateMachine):
    """An HAProxy with one table, which is told to an agent."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pid = 1
        self.entries: dict[str, Entry] = {}
        self.former: dict[str, Entry] = {}
        self.born = 0.0
        self.pending: dict[str, float] = {}  # clients whose change is not told, and since when
        self.numbers = itertools.count(1)
        self.session: Session | None = None
        self.truth = dict.fromkeys([*CLIENTS, *CROWD], 0)
        self.lossy: set[str] = set()
        self.seen: dict[str, float] = {}  # when the agent heard of a client

    # ---- HAProxy -----------------------------------------------------------------------------

    def touch(self, client: str, hits: int) -> Entry:
        entry = self.entries.get(client)
        if entry is None:
            entry = self.entries[client] = Entry(0, self.now, made=self.now)
            if client in self.seen and not (
                self.session
                and self.now - self.born >= 3600
                and self.now - self.seen[client] > EXPIRE + 2 * LAG
            ):
                # The agent can't tell it from the former one if it has as many hits.
                self.lossy.add(client)
        if entry.counter + hits >= 1 << 32:
            self.lossy.add(client)
        entry.counter = (entry.counter + hits) & 0xFFFFFFFF
        entry.used = self.now
        self.truth[client] += hits
        self.pending.setdefault(client, self.now)
        return entry

    def expire(self) -> None:
        for client, entry in list(self.entries.items()):
            if entry.held == 0 and self.now - entry.used >= EXPIRE:
                del self.entries[client]
                if self.pending.pop(client, None) is not None:
                    self.lossy.add(client)  # gone before it was told

    def say(self, client: str, taught: bool = False) -> bytes:
        entry = self.entries[client]
        self.seen[client] = self.now
        left = max(round((entry.used + EXPIRE - self.now) * 1000), 0) if taught else None
        number = next(self.numbers)
        values = 0, entry.held, entry.counter
        return update(number, ipv6(client), *values, expire=left)

    def send(self, data: bytes) -> bytes:
        """Have the agent read; all that was sent before has been read."""
        assert self.session is not None
        now = START + round(self.now * SECOND)
        self.agent.at(now, now - 1_000_000)
        answer = self.session.receive_data(data, now)
        assert self.session.error is None
        return answer

    def tell(self, clients: list[str]) -> None:
        self.send(b"".join(self.say(client) for client in clients))

    # ---- what happens ------------------------------------------------------------------------

    @initialize(
        capacity=st.sampled_from([8, 1000]),
        old=st.dictionaries(st.sampled_from(CLIENTS), st.sampled_from([0, 7, 5000, (1 << 32) - 3])),
        settled=st.booleans(),
    )
    def start(self, capacity: int, old: dict[str, int], settled: bool) -> None:
        """The agent starts; HAProxy may have counted for long, or be known for long."""
        self.capacity = capacity
        self.agent = Agent(capacity)
        if settled:
            self.connects()
            self.now += 4000
        self.entries |= {client: Entry(counter, self.now) for client, counter in old.items()}
        self.connects()

    @rule(client=st.sampled_from(CLIENTS), hits=st.integers(1, 20), told=st.booleans())
    def requests(self, client: str, hits: int, told: bool) -> None:
        self.touch(client, hits)
        if told and self.session is not None:
            self.tells()

    @rule(client=st.sampled_from(CLIENTS), opens=st.booleans())
    def stays_open(self, client: str, opens: bool) -> None:
        """A request begins or ends that is open for long."""
        if opens:
            self.touch(client, 1).held += 1
        elif client in self.entries and self.entries[client].held > 0:
            self.entries[client].held -= 1
            self.touch(client, 0)
        if self.session is not None:
            self.tells()

    @rule()
    def crowd_comes(self) -> None:
        for client in CROWD:
            self.touch(client, 1)
        if self.session is not None:
            self.tells()

    @rule(seconds=st.sampled_from([3, EXPIRE - 1, 3 * EXPIRE]))
    def waits(self, seconds: float) -> None:
        if self.session is not None and self.pending and seconds > LAG:
            self.tells()
        self.now += seconds
        self.expire()

    @precondition(lambda self: self.session is not None and self.pending)
    @rule(acknowledged=st.booleans())
    def tells(self, acknowledged: bool = True) -> None:
        self.tell(list(self.pending))
        if acknowledged:
            self.pending.clear()

    @rule(whole=st.booleans(), early=st.booleans(), cut=st.sampled_from([None, None, 0, 1, 5]))
    def connects(self, whole: bool = True, early: bool = False, cut: int | None = None) -> None:
        """HAProxy connects and teaches; perhaps until it is interrupted."""
        self.now += 0.01
        self.session = Session(self.agent, "agent", START + round(self.now * SECOND))
        answer = self.send(b"HAProxyS 2.1\nagent\nedge %d 1\n" % self.pid)
        assert answer == b"200\n" + ASK
        bits = (GPC0, CONN_CUR, HTTP_REQ_CNT)
        self.send(define(bits=bits, expire=EXPIRE * 1000))
        # What the agent sees for the first time before it knows all is a baseline.
        self.lossy |= set(self.entries) - set(self.seen)
        # An entry that was made again is one that has continued.
        self.lossy |= {c for c in self.pending if self.entries[c].made > self.seen.get(c, 0)}
        if early:
            self.tell(list(self.pending))
        for client in list(self.entries)[:cut]:
            self.send(self.say(client, taught=True))
        if cut is not None:
            self.session = None
            return
        assert self.send(FINISHED if whole else PARTIAL) == CONFIRMED
        self.pending.clear()
        if not whole:
            # What the agent does not know now may be old.
            self.lossy |= set(self.truth) - set(self.entries)

    @rule(what=st.sampled_from(["disconnect", "reload", "late reload", "restart", "agent"]))
    def is_interrupted(self, what: str) -> None:
        if what == "disconnect":
            self.session = None
        elif what == "restart":
            self.restarts()
        elif what == "agent":
            self.agent_restarts()
        else:
            self.reloads(learnt=what == "reload")

    def reloads(self, learnt: bool) -> None:
        """A new process takes over the table, before or after the agent asks for it."""
        self.pid += 1
        self.born = self.now
        self.former = self.entries
        taken_over = {c: replace(entry, held=0) for c, entry in self.entries.items()}
        pending = self.pending
        if learnt:
            self.entries = taken_over
            self.connects()
        else:
            self.entries, self.pending = {}, {}
            self.connects(whole=False)
            self.entries = taken_over
            # Until their next request, the agent is not told what it missed.
            self.lossy |= set(pending)

    @precondition(lambda self: self.former and self.now - self.born < 3600)
    @rule(client=st.sampled_from(CLIENTS), hits=st.integers(0, 3))
    def former_process_ends_requests(self, client: str, hits: int) -> None:
        """The former process tells its successor an entry, which overwrites it."""
        former = self.former.get(client)
        if former is None or client not in self.seen:
            return
        if self.now - former.used >= EXPIRE and (former.held == 0 or self.capacity == 8):
            return  # expired there, or lost here
        former.held = 0
        former.used = self.now
        former.counter = (former.counter + hits) & 0xFFFFFFFF
        self.truth[client] += hits
        held = self.entries[client].held if client in self.entries else 0
        self.entries[client] = Entry(former.counter, self.now, held)
        self.pending.pop(client, None)
        self.lossy.add(client)
        self.requests(client, 1, True)

    def restarts(self) -> None:
        """HAProxy is killed, and a new one starts with empty tables."""
        self.pid += 1
        self.born = self.now
        self.lossy |= set(self.pending)
        self.entries, self.former, self.pending = {}, {}, {}
        self.connects()

    def agent_restarts(self) -> None:
        self.agent = Agent(self.capacity)
        self.born = self.now  # as far as the agent knows
        self.session = None
        self.truth = dict.fromkeys([*CLIENTS, *CROWD], 0)
        self.lossy.clear()
        self.seen.clear()
        self.former = {}  # the agent has forgotten what it was told of them
        # What it was not told yet is part of its baseline.
        self.lossy |= set(self.pending) | set(self.entries)

    @invariant()
    def none_twice_and_none_invented(self) -> None:
        for client in CLIENTS:
            hits = self.agent.hits(client)
            assert hits <= self.truth[client], client
            exact = self.capacity > 8 and client not in self.lossy | set(self.pending)
            if exact and self.session is not None:
                assert hits == self.truth[client], client


Machine.TestCase.settings = settings(max_examples=500, stateful_step_count=50, deadline=None)
TestHistories = Machine.TestCase
