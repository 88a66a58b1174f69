"""The operations on a node: everything that an operator can read or change.

The HTTP API, metrics, webhooks and signals use it. A change goes to the store, which notifies every
node; each node then updates its own HAProxy processes, so that no edge table keeps a client that
was unblocked on another node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog

from ratelimit.agent.peers import Peers
from ratelimit.agent.server import Agent
from ratelimit.config import Config
from ratelimit.events.bus import Bus
from ratelimit.exceptions import RatelimitError
from ratelimit.haproxy.api import EdgeEntry, Fault, Runtime
from ratelimit.haproxy.counted import Counted
from ratelimit.haproxy.push import Edges
from ratelimit.limiter.forwarders import Forwarders
from ratelimit.limiter.key_input import Given
from ratelimit.limiter.keys import Network, counted_key, key_network, wider_keys
from ratelimit.limiter.limiter import ClientState
from ratelimit.limiter.string_keys import wire_for
from ratelimit.model import EVERY_LIMIT, VERDICT_PREFIX, Block, Limit
from ratelimit.node.reload import Reloader, ReloadResult
from ratelimit.node.top import Busiest
from ratelimit.notation import SECOND
from ratelimit.peers.hub import Hub
from ratelimit.process.supervisor import Supervisor
from ratelimit.steps import Steps
from ratelimit.store import Node, Store
from ratelimit.turns import paced

# Work per step.
_LISTED = 64  # entries of the blocklist
_WIDER = 8  # networks that are looked up in all limits

_KEPT = ("order", "text", "wire")  # fields of a block that are not told
# Faster than ``dataclasses.asdict()``, which takes longer than adding the block.
_TOLD = [field.name for field in dataclasses.fields(Block) if field.name not in _KEPT]
_told_values = operator.attrgetter(*_TOLD)

log = structlog.get_logger()


class ListFullError(RatelimitError):
    """The blocklist is full of active blocks."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything known about a key.

    ``listed`` comes from ``Limiter.listed()``; ``by_hand`` are the blocks by hand of the key or of
    networks around it. ``edge`` and ``counted`` are what the HAProxy processes of the node have.
    """

    listed: str
    limits: list[ClientState]
    by_hand: list[Block]
    edge: list[EdgeEntry]
    counted: list[Counted]


class Control:
    """The operations and the parts of a node.

    Attributes:
        agent, limiter, sync, about: of this node.
        runtime: the HAProxy processes of this node.
        peers: the sessions of HAProxies as peers.
        busiest: finds the busiest clients of this node.
        bus: the events.
        tasks: the background tasks.
        started: epoch seconds.
        ready: true while requests are accepted; false while starting and draining.
        metrics: returns the metrics and their content type for an ``Accept`` header.
        reloader: reloads the configuration.
        edges: sends the blocklist to HAProxy.
        forwarders: peers in no list of trusted proxies that send requests of many clients.
    """

    def __init__(
        self,
        config: Config,
        agent: Agent,
        about: Node,
        runtime: Runtime | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.agent = agent
        self.peers = peers or Peers(Hub(agent.limiter, "agent", capacity=8), agent.sync)
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
        self.limiter.on_ended.append(lambda block: self.edges.ended(block.key))
        self.limiter.on_fuse.append(self._fuse)
        self.sync.on_lost.append(self._lost)
        self.sync.on_back.append(self._back)

    @property
    def store(self) -> Store:
        """The store of the running node."""
        assert self.sync.store is not None  # noqa: S101 - service.py attaches it first
        return self.sync.store

    @property
    def config(self) -> Config:
        """The configuration of the start."""
        return self.reloader.config

    @property
    def reloaded(self) -> ReloadResult | None:
        """The last reload; None before the first."""
        return self.reloader.last

    def now(self) -> int:
        """Return the epoch second of the fleet's common clock."""
        return self.sync.now() // SECOND

    # Events for operators and changes for HAProxy.

    def _blocked(self, block: Block) -> None:
        self.bus.publish("block", **block_data(block))
        # HAProxy learns a block by a limit from the client's next request.
        if block.limit == EVERY_LIMIT and block.until > self.now():
            self.edges.tell(block.key)

    def _gone(self, block: Block, news: bool) -> None:
        # Even if this node missed the block, its HAProxy may have stored it.
        self.edges.tell(block.key)
        if news:
            self.bus.publish("unblock", limit=block.limit, key=block.shown, by="", node="")

    def _lost(self) -> None:
        self.bus.publish("store.lost", problem=self.store.problem, node=self.about.id)

    def _back(self) -> None:
        # Many clients may have been unblocked meanwhile.
        self.edges.compare()
        self.bus.publish("store.back", node=self.about.id)

    def _fuse(self, limit: Limit, blown: bool) -> None:
        if blown:
            log.error(
                "FUSE BLOWN: the limit refuses too many of all clients and only throttles now",
                limit=limit.name,
                rate=limit.rate,
                fuse=limit.fuse,
            )
        else:
            log.warning("the fuse was reset, the limit blocks again", limit=limit.name)
        self.bus.publish("fuse", limit=limit.name, blown=blown, node=self.about.id)

    # Blocks.

    async def block(
        self, key: str, ttl: int, reason: str, by: str, text: str = "", wire: str = ""
    ) -> tuple[Block, list[Fault]]:
        """Block a key for ``ttl`` seconds; return when the store has written the block.

        The key must be in the form of the blocklist; ``text`` and ``wire`` are those of a string.
        The block takes effect at once on this node, and on the others when the store has it. The
        result has the HAProxy processes that failed to store it; they are updated later.

        Raises ListFullError, or StoreError with ``unsent``, if nothing was done; other StoreErrors
        mean that the store did not confirm in time.
        """
        blocklist = self.limiter.blocklist
        now = -(-self.sync.now() // SECOND)
        if not blocklist.has_room(EVERY_LIMIT, key, now):
            raise ListFullError(f"all {len(blocklist)} entries of the blocklist are active")
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
            wire=wire,
        )
        saved = self.store.save(block)
        faults, block = await asyncio.gather(self.edges.told(key), saved)
        return block, faults

    def shown(self, given: Given) -> str:
        """Return what to show for a string as key; empty for an address."""
        if not given.key.startswith("~"):
            return ""
        return given.shown(self.limiter.is_secret(EVERY_LIMIT))

    def wire(self, given: Given) -> str:
        """Return the key of a string in HAProxy's tables; empty for an address, or if unknown."""
        if given.string:
            return wire_for(given.string, given.key, self.limiter.string_key)
        names = (EVERY_LIMIT, *(rule.limit.name for rule in self.limiter.engine.rules))
        known = (self.limiter.blocklist.get(name, given.key) for name in names)
        return next((block.wire for block in known if block is not None and block.wire), "")

    def unenforced(self, key: str) -> str:
        """Return why HAProxies that are peers do not enforce the block of a key, or nothing."""
        limits = self.peers.hub.unenforced(key)
        network = key_network(key)
        if not limits or (network is not None and self.runtime.sockets):
            return ""  # HAProxy's maps have networks
        names = f"limit{'s' if len(limits) > 1 else ''} {', '.join(limits)}"
        what = f"HAProxy does not enforce this block by itself ({names})"
        if network is None:
            return f"{what}: it gets the verdict with the next request of this client"
        return (
            f"{what}: the key is not one client of the limit, or a list has a part of it; set "
            "`[haproxy] sockets`, so that the agent can write it to HAProxy's maps"
        )

    async def unblock(self, key: str, by: str) -> tuple[bool, list[Fault]]:
        """Remove every block of a key on every node; return false if there was none.

        The key must be in the form of the blocklist. An address is also removed under the network
        as which a limit counts it. Strikes are forgotten. The result has the HAProxy processes that
        may still block the key; they are updated later. Raises StoreError if the store does not
        confirm in time; then the key is unblocked on this node, and on the others when the store is
        up again.
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
        """Return all entries of a key, including ended blocks."""
        places = await paced(self._places(key))
        found = [self.limiter.blocklist.get(*place) for place in places]
        return [block for block in found if block is not None]

    def _places(self, key: str) -> Steps[list[tuple[str, str]]]:
        """Return the limits and keys under which a key may have blocks."""
        get = self.limiter.blocklist.get
        limits = [rule.limit for rule in self.limiter.engine.rules]
        places = [(EVERY_LIMIT, key), *((limit.name, key) for limit in limits)]
        places += [(limit.name, counted_key(key, limit)) for limit in limits]
        # A limit may have blocked it under an earlier prefix length.
        for number, wider in enumerate(wider_keys(key), 1):
            places += [(limit.name, wider) for limit in limits if get(limit.name, wider)]
            if number % _WIDER == 0:
                yield
        return list(dict.fromkeys(places))

    def page(
        self, after: tuple[str, str], count: int, q: str = "", ended: bool = False
    ) -> Steps[tuple[list[Block], bool]]:
        """Return up to ``count`` entries after a limit and key, and whether more may follow.

        Only entries with ``q`` in their key, limit, reason or operator; without ``ended`` only
        active ones.
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
        """Return everything known about a key in the form of the blocklist."""
        self.busiest.set_time()
        states = await paced(self.limiter.explain(key))
        get = self.limiter.blocklist.get
        by_hand = [get(EVERY_LIMIT, one) for one in (key, *wider_keys(key))]
        clients = [(state.limit, state.key) for state in states]
        edge, counted = await asyncio.gather(self.runtime.edge(key), self.counted(clients))
        listed = self.limiter.listed(key)
        blocks = [one for one in by_hand if one is not None]
        return Explanation(listed, states, blocks, edge, counted)

    async def counted(self, clients: Iterable[tuple[Limit, str]]) -> list[Counted]:
        """Return what the HAProxy processes have counted of clients of limits themselves."""
        wanted: dict[str, set[Network]] = {}
        for limit, key in clients:
            network = key_network(key)
            if network is not None:
                for table in (limit.count_table, VERDICT_PREFIX + limit.name):
                    wanted.setdefault(table, set()).add(network)
        return await self.runtime.counted(wanted) if wanted else []

    async def tidy(self) -> None:
        """Remove ended entries and detect unlisted proxies, until cancelled."""
        while True:
            await asyncio.sleep(1)
            await paced(self.limiter.tidy())
            engine = self.limiter.engine
            looking = self.forwarders.look(engine.seen, engine.sights, self.now())
            for peer in await paced(looking):
                log.warning(
                    "a peer in no list of trusted proxies sends requests of many clients, which "
                    "are counted as one: is a load balancer missing in lb.lst?",
                    peer=peer.key,
                )

    # The node.

    async def reload(self) -> ReloadResult:
        """Reload the configuration; nothing changes if it is invalid."""
        result = await self.reloader.reload()
        if result.ok:
            self.edges.compare()
            self.peers.hub.reload()
        self.bus.publish("reload", ok=result.ok, problems=list(result.problems))
        return result


def block_data(block: Block) -> dict[str, Any]:
    """Return what an event and the API tell about a block."""
    about: dict[str, Any] = dict(zip(_TOLD, _told_values(block), strict=True))
    about["key"] = block.shown
    return about
