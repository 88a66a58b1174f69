"""What an operator may ask of this node and change on it.

HTTP, metrics, webhooks and signals all come through here. A change goes to the store, which tells
every node; each node then tells its own HAProxy processes, so that an edge never holds a client
that was lifted on another node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ratelimit.agent.server import Agent
from ratelimit.config import Config
from ratelimit.engine.layout import SECOND
from ratelimit.events.bus import Bus
from ratelimit.exceptions import RatelimitError
from ratelimit.haproxy.api import EdgeEntry, Fault, Runtime
from ratelimit.haproxy.edges import Edges
from ratelimit.limiter.forwarders import Forwarders
from ratelimit.limiter.keys import counted_key, wider_keys
from ratelimit.limiter.limiter import ClientState
from ratelimit.limiter.typed import Given
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.node.reload import Reloader, ReloadResult
from ratelimit.node.top import Busiest
from ratelimit.process.supervisor import Supervisor
from ratelimit.steps import Steps
from ratelimit.store import Node, Store
from ratelimit.turns import paced

# Work of a step.
_LISTED = 64  # entries of the blocklist that are looked at
_WIDER = 8  # networks of which all limits are asked

# A flood of blocks is told, and ``dataclasses.asdict()`` takes longer than to take a block.
_TOLD = [field.name for field in dataclasses.fields(Block) if field.name not in ("order", "text")]
_told_values = operator.attrgetter(*_TOLD)

log = structlog.get_logger()


class ListFullError(RatelimitError):
    """The blocklist has no room for another block: all of its entries are in force."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything known about a key.

    ``listed`` is of ``Limiter.listed()``; ``by_hand`` are the blocks by hand that it is under.
    """

    key: str
    listed: str
    limits: list[ClientState]
    by_hand: list[Block]
    edge: list[EdgeEntry]


class Control:
    """The node as its operators see it.

    Attributes:
        agent, limiter, sync, about: of this node.
        runtime: the HAProxy processes beside it.
        busiest: finds the busiest clients of this node.
        bus: what happens.
        tasks: what the node does next to the answers.
        started: epoch seconds.
        ready: the store has been tried and requests are answered; false again while draining.
        metrics: returns what Prometheus scrapes, and its type, for what an ``Accept`` header asks.
        reloader: what reads the configuration again.
        edges: tells HAProxy what the blocklist says.
        forwarders: peers that speak for many clients and are in no list of trusted proxies.
    """

    def __init__(
        self, config: Config, agent: Agent, about: Node, runtime: Runtime | None = None
    ) -> None:
        self.agent = agent
        self.limiter = agent.limiter
        self.sync = agent.sync
        self.about = about
        self.runtime = runtime or Runtime(())
        self.edges = Edges(self.limiter, self.runtime, config.haproxy.maps_dir)
        self.forwarders = Forwarders()
        self.busiest = Busiest(self.limiter, self.sync)
        self.bus = Bus()
        self.tasks = Supervisor()
        self.started = time.time()
        self.ready = False
        self.metrics: Callable[[str], tuple[bytes, str]] = lambda accept: (b"", "text/plain")
        self.reloader = Reloader(config, self.limiter, self.sync)
        self.limiter.on_block.append(self._blocked)
        self.limiter.on_gone.append(self._gone)
        self.limiter.on_fuse.append(self._fuse)
        self.sync.on_lost.append(self._lost)
        self.sync.on_back.append(self._back)

    @property
    def store(self) -> Store:
        """The store; there is one as soon as the node runs."""
        assert self.sync.store is not None  # noqa: S101 - service.py attaches it first
        return self.sync.store

    @property
    def config(self) -> Config:
        """What was taken at the start."""
        return self.reloader.config

    @property
    def reloaded(self) -> ReloadResult | None:
        """How the last reload went; None before the first."""
        return self.reloader.last

    def now(self) -> int:
        """Return the epoch second by the time that all nodes go by."""
        return self.sync.now() // SECOND

    # What is told to operators and to HAProxy.

    def _blocked(self, block: Block) -> None:
        self.bus.publish("block", **_told(block))
        # Of an automatic block HAProxy hears with its client's next request.
        if block.limit == EVERY_LIMIT and block.until > self.now():
            self.edges.tell(block.key)

    def _gone(self, block: Block, news: bool) -> None:
        # Though this node heard nothing at the time, no edge may go on refusing the client.
        self.edges.tell(block.key)
        if news:
            self.bus.publish("unblock", limit=block.limit, key=block.shown, by="", node="")

    def _lost(self) -> None:
        self.bus.publish("store.lost", problem=self.store.problem, node=self.about.id)

    def _back(self) -> None:
        # Much may have been lifted meanwhile.
        self.edges.compare()
        self.bus.publish("store.back", node=self.about.id)

    def _fuse(self, limit: Limit, blown: bool) -> None:
        if blown:
            log.error(
                "FUSE BLOWN: the limit refuses so many of all clients that it only throttles now",
                limit=limit.name,
                rate=limit.rate,
                fuse=limit.fuse,
            )
        else:
            log.warning("the fuse is whole again, the limit blocks", limit=limit.name)
        self.bus.publish("fuse", limit=limit.name, blown=blown, node=self.about.id)

    # Blocks.

    async def block(
        self, key: str, ttl: int, reason: str, by: str, text: str = ""
    ) -> tuple[Block, list[Fault]]:
        """Block a key for ``ttl`` seconds; return when the store has it for good.

        The key is as the blocklist has it, and ``text`` what is shown of a string.

        The block is in force at once on this node, and on the others as soon as the store has it.
        The edges beside this node that do not know it then are named; they are told later.

        Raises ListFullError, or StoreError that says ``unsent``, and nothing has happened; or
        StoreError if the store does not have it in time.
        """
        blocklist = self.limiter.blocklist
        now = -(-self.sync.now() // SECOND)
        if not blocklist.has_room(EVERY_LIMIT, key, now):
            raise ListFullError(f"all {len(blocklist)} entries of the blocklist are in force")
        block = Block(
            key=key,
            limit=EVERY_LIMIT,
            reason=reason,
            strikes=0,
            since=now,
            until=now + ttl,
            by=by,
            node=self.about.id,
            order=blocklist.next_order(EVERY_LIMIT, key, self.sync.now()),
            text=text,
        )
        saved = self.store.save(block)
        faults, block = await asyncio.gather(self.edges.told(key), saved)
        return block, faults

    def shown(self, given: Given) -> str:
        """Return what is shown of a string that somebody gave; empty for an address."""
        if not given.key.startswith("~"):
            return ""
        return given.shown(self.limiter.is_secret(EVERY_LIMIT))

    async def unblock(self, key: str, by: str) -> tuple[bool, list[Fault]]:
        """Lift every block of a key on every node; false if there was none.

        The key is as the blocklist has it. An address is also lifted as the network that a limit
        counts it in. Strikes are forgotten. The edges beside this node that may go on refusing are
        named; they are told later. Raises StoreError if the store does not confirm it in time; it
        is lifted on this node then, and on the others as soon as the store is back.
        """
        found = False
        lifts = []
        for limit, one in await paced(self._places(key)):
            known = self.limiter.blocklist.get(limit, one)
            lifts.append(self.limiter.lift_now(limit, one, self.sync.now()))
            if known is not None:
                found = True
                self.bus.publish("unblock", limit=limit, key=known.shown, by=by, node=self.about.id)
        faults, results = await asyncio.gather(
            self.edges.told(*dict.fromkeys(lift.key for lift in lifts)),
            asyncio.gather(*(self.store.lift(lift) for lift in lifts), return_exceptions=True),
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return found or any(results), faults

    async def blocks_of(self, key: str) -> list[Block]:
        """Return all entries of a key, those whose block has ended included."""
        places = await paced(self._places(key))
        found = [self.limiter.blocklist.get(*place) for place in places]
        return [block for block in found if block is not None]

    def _places(self, key: str) -> Steps[list[tuple[str, str]]]:
        """Return the limits and keys under which blocks of a key can be."""
        get = self.limiter.blocklist.get
        limits = [rule.limit for rule in self.limiter.engine.rules]
        places = [(EVERY_LIMIT, key), *((limit.name, key) for limit in limits)]
        places += [(limit.name, counted_key(key, limit)) for limit in limits]
        # A limit may have blocked it when it counted by another prefix.
        for number, wider in enumerate(wider_keys(key), 1):
            places += [(limit.name, wider) for limit in limits if get(limit.name, wider)]
            if number % _WIDER == 0:
                yield
        return list(dict.fromkeys(places))

    def page(
        self, after: tuple[str, str], count: int, q: str = "", ended: bool = False
    ) -> Steps[tuple[list[Block], bool]]:
        """Return up to ``count`` entries that follow a limit and key, and whether more may follow.

        Only those whose key, limit, reason or operator has ``q`` in it; without ``ended`` only
        those whose block has not ended.
        """
        found: list[Block] = []
        string = self.limiter.string_key(q.encode("utf-8", "surrogatepass"))
        q = q.lower()
        while True:
            entries = self.limiter.blocklist.after(*after, _LISTED)
            now = self.now()
            for block in entries:
                if len(found) == count:
                    return found, True
                after = (block.limit, block.key)
                texts = (block.shown, block.limit, block.reason, block.by)
                if (ended or block.until > now) and (
                    block.key == string or any(q in text.lower() for text in texts)
                ):
                    found.append(block)
            if len(entries) < _LISTED:
                return found, False
            yield

    # Clients.

    async def explain(self, key: str) -> Explanation:
        """Return everything known about a key, as the blocklist has it."""
        self.busiest.set_time()
        states = await paced(self.limiter.explain(key))
        get = self.limiter.blocklist.get
        by_hand = [get(EVERY_LIMIT, one) for one in (key, *wider_keys(key))]
        edge = await self.runtime.edge(key)
        listed = self.limiter.listed(key)
        blocks = [one for one in by_hand if one is not None]
        return Explanation(key, listed, states, blocks, list(edge))

    async def tidy(self) -> None:
        """Have the limiter drop what has ended, and see who forwards, until cancelled."""
        while True:
            await asyncio.sleep(1)
            await paced(self.limiter.tidy())
            engine = self.limiter.engine
            looking = self.forwarders.look(engine.seen, engine.sights, self.now())
            for peer in await paced(looking):
                log.warning(
                    "a peer in no list of trusted proxies speaks for many clients, which are "
                    "counted as one: is it a load balancer that lb.lst lacks?",
                    peer=peer.key,
                )

    # The node.

    async def nodes(self) -> list[Node]:
        """Return the live nodes of the fleet; StoreError if the store can't say."""
        return await self.store.nodes_list()

    def clear_fuse(self, limit: str) -> bool:
        """Let a limit block again; false if its fuse had not blown. KeyError without the limit."""
        if self.limiter.rule(limit) is None:
            raise KeyError(limit)
        return self.limiter.clear_fuse(limit)

    async def reload(self) -> ReloadResult:
        """Read the configuration again; nothing changes if anything in it is wrong."""
        result = await self.reloader.reload()
        if result.ok:
            self.edges.compare()
        self.bus.publish("reload", ok=result.ok, problems=list(result.problems))
        return result


def _told(block: Block) -> dict[str, object]:
    """Return what an event says about a block."""
    about: dict[str, object] = dict(zip(_TOLD, _told_values(block), strict=True))
    about["key"] = block.shown
    return about
