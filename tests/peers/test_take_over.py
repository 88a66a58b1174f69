"""Two agents of one HAProxy, with leases in a model of the store: no hit is counted by both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.notation import DAY, MILLISECOND, SECOND
from ratelimit.peers.constants import Status
from ratelimit.peers.counts import Counts
from ratelimit.peers.definition import Definition
from ratelimit.peers.leases import LIFE, Lease, Leases
from ratelimit.peers.session import Session
from tests.helpers.asking import START
from tests.helpers.peers_wire import FINISHED, define, update
from tests.helpers.sticktable import EXPIRE, StickTable, ipv6

GPC0, CONN_CUR, HTTP_REQ_CNT = 2, 6, 9
CLIENTS = ["192.0.2.1", "192.0.2.2"]
NAMES = ["agent", "agent2"]
LIMIT = Limit(rate=10_000_000, window=DAY, block=(), strict=True)

WHAT = st.sampled_from(["link", "stop", "kill", "hang", "store"])
"""What may happen to an agent."""

SILENCE = 5
"""Seconds after which HAProxy ends the session with an agent that hangs."""


class Store:
    """What ``lease.lua`` keeps of one HAProxy; times are in nanoseconds."""

    def __init__(self) -> None:
        self.holder = ""
        self.until = 0

    def lease(self, agent: str, now: int, life: int) -> tuple[str, str]:
        before = self.holder
        if before == agent or (life and self.until <= now):
            self.holder, self.until = agent, now + life
        return before, self.holder


class Agent(Counts):
    """The least that an owner of sessions does; the machine plays the sockets and the store."""

    def __init__(self, name: str, reached: bool) -> None:
        limiter = Limiter([LIMIT], 1000, secret=bytes(range(64)))
        super().__init__(limiter.engine, 1000, 64)
        self.name = name
        self.leases = Leases(name)
        self.leases.shared = True
        self.reached = reached
        self.hung = False
        self.session: Session | None = None
        self.lease: Lease | None = None
        self.pending: dict[str, float] = {}  # clients whose change is not told, and since when
        self.reading = 0

    def admits(self, session: Session) -> Status:
        self.origin = self.connect(session.name, session.pid)
        self.lease = self.leases.begin(self.origin, self.reading)
        return Status.SUCCESS

    def on_table(self, session: Session, definition: Definition) -> object:
        return self.source(self.origin, definition)

    def on_synced(self, session: Session, whole: bool) -> None:
        self.synced(self.origin, whole)

    def hits(self, client: str) -> int:
        engine = self.engine
        return engine.hits(engine.rules[0], engine.slot(engine.rules[0], client.encode()))

    def restart(self) -> None:
        self.engine.table.forget(0, self.engine.table.sets)

    def reads(self, now: int) -> bool:
        return not self.hung and (self.lease is None or self.leases.reads(self.lease, now))


class Machine(RuleBasedStateMachine):
    """An HAProxy with one table and two agents."""

    def __init__(self) -> None:
        super().__init__()
        self.table = StickTable()
        self.store = Store()
        self.numbers = itertools.count(1)
        self.truth = dict.fromkeys(CLIENTS, 0)
        self.gone = dict.fromkeys(CLIENTS, 0)  # hits of agents that have ended

    @property
    def now(self) -> int:
        return START + round(self.table.now * SECOND)

    @initialize(up=st.booleans())
    def start(self, up: bool) -> None:
        self.agents = [Agent(name, up) for name in NAMES]
        for agent in self.agents:
            if up:
                agent.leases.back(self.now - LIFE)
            self.connects(agent)

    # ---- HAProxy and its agents ----------------------------------------------------------------

    def say(self, client: str, taught: bool = False) -> bytes:
        entry = self.table.entries[client]
        left = max(round((entry.used + EXPIRE - self.table.now) * 1000), 0) if taught else None
        values = 0, entry.held, entry.counter
        return update(next(self.numbers), ipv6(client), *values, expire=left)

    def send(self, agent: Agent, data: bytes) -> None:
        """Have an agent read; all that was sent before has been read."""
        assert agent.session is not None
        agent.reading = self.now
        agent.at(self.now, self.now - MILLISECOND)
        agent.session.receive_data(data, self.now)
        assert agent.session.error is None

    def tell(self, agent: Agent, clients: Sequence[str] = CLIENTS) -> None:
        """Tell an agent what has changed, if it reads."""
        if agent.session is not None and agent.reads(self.now):
            for client in clients:
                if agent.pending.pop(client, None) is not None and client in self.table.entries:
                    self.send(agent, self.say(client))

    def connects(self, agent: Agent) -> None:
        agent.session = Session(agent, agent.name, self.now)
        self.send(agent, b"HAProxyS 2.1\n%s\nedge %d 1\n" % (agent.name.encode(), self.table.pid))
        if not agent.reads(self.now):
            self.asks(agent)
        self.send(agent, define(bits=(GPC0, CONN_CUR, HTTP_REQ_CNT), expire=EXPIRE * 1000))
        for client in self.table.entries:
            self.send(agent, self.say(client, taught=True))
        self.send(agent, FINISHED)
        agent.pending.clear()

    def asks(self, agent: Agent) -> None:
        """A turn of ``agent.leasing``."""
        connected = {"edge"} if agent.session is not None else set[str]()
        forget = False
        if agent.reached:
            for name in agent.leases.wanted(connected, self.now):
                before, holder = self.store.lease(agent.name, self.now, LIFE)
                found = agent.leases.answered(name, before, holder, self.now, self.now)
                forget = found or forget
        if forget:
            agent.restart()
        agent.leases.start(self.now)
        self.gives_back(agent, connected)

    def gives_back(self, agent: Agent, connected: set[str]) -> None:
        if agent.reached and agent.leases.unwanted(connected):
            self.store.lease(agent.name, self.now, 0)

    # ---- what happens ------------------------------------------------------------------------

    @rule(
        client=st.sampled_from(CLIENTS),
        hits=st.integers(1, 20),
        told=st.sampled_from([(0, 1), (0, 1), (0,), (1,), ()]),
    )
    def requests(self, client: str, hits: int, told: Sequence[int]) -> None:
        self.table.touch(client, hits)
        self.truth[client] += hits
        for agent in self.agents:
            if agent.session is not None:
                agent.pending.setdefault(client, self.table.now)
        for number in told:
            self.tell(self.agents[number], [client])

    @rule(first=st.sampled_from([1, -1]))
    def leases_end(self, first: int) -> None:
        """So much time passes that an agent takes over from one that does not ask."""
        for seconds in (LIFE / SECOND, 0.2):
            self.waits(seconds, True, first)

    @rule(
        seconds=st.sampled_from([0.2, 1, EXPIRE + 1]),
        ask=st.booleans(),
        first=st.sampled_from([1, -1]),
    )
    def waits(self, seconds: float, ask: bool, first: int) -> None:
        """Time passes; agents that run have read all, and may have asked the store."""
        for agent in self.agents:
            self.tell(agent)
        self.table.now += seconds
        self.table.expire()
        for agent in self.agents[::first]:
            late = [at for at in agent.pending.values() if self.table.now - at > SILENCE]
            if agent.session is not None and late:
                self.disconnects(agent)
            if ask and not agent.hung:
                self.asks(agent)
            self.tell(agent)

    def disconnects(self, agent: Agent) -> None:
        agent.disconnect(agent.origin, agent.origin.number)
        agent.session = None
        agent.pending.clear()

    @rule(holder=st.booleans(), what=WHAT)
    def breaks(self, holder: bool, what: str) -> None:
        """Something happens to the agent that has the lease, or to the other one."""
        number = NAMES.index(self.store.holder) if self.store.holder else 0
        number = number if holder else 1 - number
        agent = self.agents[number]
        if what == "hang":
            agent.hung = True
        elif what == "store" and not agent.hung:
            agent.reached = False
            agent.leases.lost()
        elif what in ("link", "stop") and agent.session is not None and not agent.hung:
            self.disconnects(agent)
            self.gives_back(agent, set())
        if what == "kill" or (what == "stop" and not agent.hung):
            self.replaces(number)

    @rule(what=WHAT, client=st.sampled_from(CLIENTS), first=st.sampled_from([1, -1]))
    def fails_for_a_while(self, what: str, client: str, first: int) -> None:
        """The agent that has the lease is back after another one may have taken over."""
        number = NAMES.index(self.store.holder) if self.store.holder else 0
        self.breaks(True, what)
        self.requests(client, 3, (0, 1))
        self.leases_end(first)
        self.requests(client, 5, (1 - number,))
        self.recovers(number)

    @rule(client=st.sampled_from(CLIENTS))
    def takes_over_after_a_gap(self, client: str) -> None:
        """An agent comes back that has not heard what the one that has the lease has counted."""
        number = NAMES.index(self.store.holder) if self.store.holder else 0
        self.breaks(False, "link")
        self.requests(client, 3, (number,))
        self.breaks(True, "stop")
        self.recovers(1 - number)

    def replaces(self, number: int) -> None:
        """An agent ends, with its hits; another process takes its name."""
        old = self.agents[number]
        if not self.alone():
            for client in CLIENTS:
                self.gone[client] += old.hits(client)
        agent = self.agents[number] = Agent(old.name, old.reached)
        if agent.reached:
            agent.leases.back(self.now - LIFE)

    @rule(number=st.integers(0, 1))
    def recovers(self, number: int) -> None:
        """An agent goes on, finds the store again, and HAProxy connects to it."""
        agent = self.agents[number]
        if agent.hung:
            agent.hung = False
            self.tell(agent)
        if not agent.reached:
            agent.reached = True
            agent.leases.back(self.now)
            self.asks(agent)  # before counts are exchanged
        if agent.session is None:
            self.table.now += 0.01
            self.connects(agent)

    @precondition(lambda self: self.table.entries)
    @rule()
    def haproxy_restarts(self) -> None:
        self.table.restart()
        for agent in self.agents:
            if agent.session is not None:
                self.disconnects(agent)

    @invariant()
    def none_twice_and_none_invented(self) -> None:
        for client in CLIENTS:
            counted = [agent.hits(client) for agent in self.agents]
            assert max(counted) <= self.truth[client], client
            if not self.alone():
                assert sum(counted) + self.gone[client] <= self.truth[client], client

    def alone(self) -> bool:
        """Return whether an agent has counted without the store, and not found it again."""
        return any(lease.alone for one in self.agents for lease in one.leases.by_name.values())


Machine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestHistories = Machine.TestCase
