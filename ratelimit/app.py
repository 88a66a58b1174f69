"""Assembles, starts and stops a node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import structlog

from ratelimit import __version__
from ratelimit.agent.dialing import Dialing
from ratelimit.agent.peers import Peers
from ratelimit.agent.server import Agent
from ratelimit.agent.trust import Trusted
from ratelimit.api.server import ApiServer
from ratelimit.config import Config
from ratelimit.engine import compiled
from ratelimit.engine.layout import CLIENT_BYTES
from ratelimit.events.fleet_events import Alerts
from ratelimit.events.load import Load
from ratelimit.events.webhooks import Webhooks
from ratelimit.exceptions import StartError
from ratelimit.haproxy.api import Runtime
from ratelimit.haproxy.commands import Prefixes
from ratelimit.haproxy.stats import AGENT_BACKEND
from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.model import Address, Entry
from ratelimit.node.metrics import Metrics
from ratelimit.node.operations import Control
from ratelimit.node.reload import Reloader
from ratelimit.notation import SECOND
from ratelimit.peers.hub import MAX_BASELINES, Hub
from ratelimit.process.garbage import short_pauses
from ratelimit.process.handover import RELEASE_TIMEOUT, Predecessor, Successor, hand_over
from ratelimit.process.supervisor import Task
from ratelimit.process.systemd import Manager, Sockets
from ratelimit.steps import Steps
from ratelimit.store import MEMORY, Node, open_store
from ratelimit.store.entries import entry_from_json, entry_to_json
from ratelimit.store.sync import Sync
from ratelimit.turns import paced

DRAIN_TIMEOUT = 0.8
"""Seconds from SIGTERM until open connections are closed."""

SOON = 1.0
"""Longest pause in seconds before the restart of a task on which others depend."""

log = structlog.get_logger()


@dataclass(slots=True)
class Running:
    """A node that listens on ``addresses``, with its API on ``ops``.

    ``peers`` are the addresses for HAProxy's peers. ``handed_over`` is set when a ``successor`` has
    taken over the sockets.
    """

    addresses: list[Address]
    ops: Address
    control: Control
    server: ApiServer
    handed_over: asyncio.Event
    dialing: Dialing
    successor: Successor | None = None
    peers: list[Address] = field(default_factory=list)

    async def hand_over(self) -> None:
        """Start a successor if possible; a failure is logged."""
        store = self.control.store
        # The successor connects to HAProxy at once, which then ends its session with this process.
        self.dialing.pause(True)
        self.successor = await hand_over(
            [*self.control.agent.sockets, *self.control.peers.sockets, *self.server.sockets],
            functools.partial(store.release, RELEASE_TIMEOUT),
            store.reopen,
        )
        if self.successor is not None:
            self.handed_over.set()
        else:
            self.dialing.pause(False)

    async def take(self, lines: list[bytes]) -> None:
        """Apply the last changes of the predecessor."""
        await self.control.sync.take(await paced(_entries(lines)))

    async def stop_answering(self) -> None:
        """Close all connections; send the successor the last changes."""
        agent, peers, successor = self.control.agent, self.control.peers, self.successor
        if successor is None:
            await asyncio.gather(peers.close(DRAIN_TIMEOUT), agent.close(DRAIN_TIMEOUT))
            return
        # Close the API first: later changes through it would be lost.
        await self.server.close()
        await asyncio.gather(
            peers.close(DRAIN_TIMEOUT, handed_over=True),
            agent.close(DRAIN_TIMEOUT, handed_over=True),
        )
        entries = self.control.store.outbox.entries()
        await successor.leave(entry_to_json(entry).encode() for entry in entries)


def _entries(lines: Iterable[bytes]) -> Steps[list[Entry]]:
    """Return the changes in these lines, and log those that can't be read."""
    entries = []
    for line in lines:
        try:
            entries.append(entry_from_json(line))
        except ValueError as error:
            log.warning("a change of the previous process can't be read", why=str(error))
        yield
    return entries


@contextlib.asynccontextmanager
async def run_node(
    config: Config,
    manager: Manager,
    *stats: str,
    predecessor: Predecessor | None = None,
    peering: bool = False,
) -> AsyncIterator[Running]:
    """Run a node and its background tasks; yield it.

    ``stats`` are HAProxy sockets in addition to those of the configuration. A ``predecessor``
    continues to answer until this node does, and then ends. ``peering`` tells that the caller
    will listen for HAProxies as peers, in addition to the configured addresses.
    """
    passed = Sockets.inherited(trusted=predecessor is not None)
    sockets = [passed.take(address) for address in config.agent.listen]
    peer_sockets = [passed.take(address) for address in config.agent.peers]
    ops_sockets = passed.take(config.ops.listen)
    passed.done()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # In a thread: a disk may hang, and the process must react to signals.
    lists = await asyncio.to_thread(config.read_lists)
    limits, node = config.limits_in_force(), secrets.token_hex(8)
    if config.store.url == MEMORY:
        sharing = Sharing.NONE
    else:
        sharing = Sharing.HOT if config.store.sync_interval else Sharing.ALL
    clients = config.agent.max_clients
    try:
        limiter = Limiter(
            limits,
            clients,
            node=node,
            sharing=sharing,
            lists=lists,
            keyed=False,
            shared_clients=config.store.shared_clients,
        )
    except (OSError, MemoryError) as error:
        size = clients * CLIENT_BYTES >> 20
        raise config.wrong("agent.max_clients", f"not enough memory: {size} MiB needed") from error
    sync = Sync(limiter, config.store.sync_interval / SECOND, config.store.on_outage == "share")
    about = Node(node, __version__, int(time.time()))
    trusted = Trusted(config.agent.trusted)
    agent = Agent(limiter, sync, trusted)
    runtime = Runtime([*config.haproxy.sockets, *stats], prefixes=prefixes(config))
    hub = Hub(
        limiter,
        config.agent.peer_name,
        config.agent.peers_allowed,
        maps=bool(runtime.sockets),
        capacity=MAX_BASELINES if config.agent.peers or peering else 8,
    )
    peers = Peers(hub, sync, trusted, config.peers_tls())
    dialing = Dialing(peers, config.haproxy.peer_sockets, config.peers_tls(dials=True))
    control = Control(config, agent, about, runtime, peers)
    server = ApiServer(control)
    store = open_store(
        config.store.url,
        prefix=config.store.prefix,
        state_dir=config.store.state_dir,
        tls_server_name=config.store.tls_server_name,
        secret=config.fleet_secret(),
        replicas=config.store.replicas,
        events=sync.events,
        node=about,
    )
    if store.kept.secret:
        limiter.rekey(store.kept.secret)
    sync.attach(store, about)
    webhooks = Webhooks(config.receivers(), node)
    load = Load(config.load.high, config.load.low, config.load.hold / SECOND)
    servers = functools.partial(_servers_up, runtime)
    alerts = Alerts(limiter, store, node, webhooks, load, servers, control.bus.publish)
    control.bus.taps.append(alerts.hear)
    own(control.reloader, runtime, webhooks, load)
    control.metrics = Metrics(control, webhooks).exposition
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.close)
        stack.push_async_callback(server.close)
        if predecessor is None:
            # First, so that the API answers "starting" while the node waits for the store.
            ops = await server.start(ops_sockets)
        elif config.store.url == MEMORY:
            await predecessor.release()  # only one process can have the file open
        await store.start()
        if predecessor is not None:
            ops = await server.start(ops_sockets)  # until now the predecessor has answered
        running = Running([], ops, control, server, asyncio.Event(), dialing)
        if store.up:
            control.edges.compare()
        if not limiter.keyed:
            log.warning(
                "clients with string keys are throttled, not blocked, until the store was reached"
            )
        stack.push_async_callback(store.close)
        stack.push_async_callback(running.stop_answering)
        stack.enter_context(short_pauses())
        for address, bound in zip(config.agent.listen, sockets, strict=True):
            try:
                running.addresses.append(await agent.listen(address, bound))
            except StartError as error:
                raise config.wrong("agent.listen", str(error)) from error
        for address, bound in zip(config.agent.peers, peer_sockets, strict=True):
            try:
                running.peers.append(await peers.listen(address, bound))
            except StartError as error:
                raise config.wrong("agent.peers", str(error)) from error
        log.info(
            "agent started",
            version=__version__,
            compiled=compiled(),
            listen=[str(address) for address in running.addresses],
            peers=[str(address) for address in running.peers],
            ops=written(ops),
            table_bytes=agent.limiter.engine.table.size,
        )
        tasks = control.tasks
        stack.callback(webhooks.close)
        stack.push_async_callback(tasks.close)
        asyncio.get_running_loop().set_exception_handler(tasks.unhandled)
        tasks.start("tick", lambda: _tick(agent, peers, tasks.task("tick")))
        # With sync_interval = "0" answers wait for it.
        tasks.start("sync", sync.run, SOON)
        tasks.start("tidy", control.tidy, SOON)
        tasks.start("peers", peers.run, SOON)
        tasks.start("peers' verdicts", peers.rebuild, SOON)
        tasks.start("peers' leases", peers.leasing.run, SOON)
        tasks.start("connections to peers", dialing.run, SOON)
        tasks.start("edges", control.edges.run)
        tasks.start("edge tables", control.edges.compare_all)
        tasks.start("map files", control.edges.files.run)
        tasks.start("api", server.run)
        tasks.start("webhooks", webhooks.run)
        tasks.start("alerts", alerts.run)
        control.ready = True
        manager.tell("READY=1")
        try:
            yield running
        finally:
            control.ready = False
            if not running.handed_over.is_set():
                manager.tell("STOPPING=1")
            engine = agent.limiter.engine
            log.info("agent stops", checks=engine.checks, blocks=agent.limiter.blocks)


def own(reloader: Reloader, runtime: Runtime, webhooks: Webhooks, load: Load) -> None:
    """Have a reload change what these take of the configuration."""
    change = functools.partial
    reloader.own(lambda new: change(setattr, runtime, "prefixes", prefixes(new)))
    reloader.own(lambda new: change(webhooks.renew, new.receivers()), "webhooks")
    reloader.own(
        lambda new: change(load.change, new.load.high, new.load.low, new.load.hold / SECOND),
        "load",
    )


def prefixes(config: Config) -> Prefixes:
    """Return the prefix lengths of the edge tables, which store blocks of this limit only."""
    limit = config.limits["default"]
    return Prefixes(limit.ipv4_prefix, limit.ipv6_prefix)


async def _servers_up(runtime: Runtime) -> int | None:
    """Return how many servers of the application are up, according to the HAProxy with the most."""
    up = [
        sum(
            server.status.startswith("UP")
            for backend in report.backends
            for server in backend.servers
            if backend.name != AGENT_BACKEND
        )
        for report in await runtime.report()
        if not report.problem
    ]
    return max(up, default=None)


async def _tick(agent: Agent, peers: Peers, task: Task) -> None:
    while True:
        await asyncio.sleep(1)
        agent.tick(task.attempt)
        peers.tick(task.attempt)


def written(address: Address) -> str:
    """Return an address as in HAProxy's ``bind`` and ``server`` lines and in URLs."""
    return f"unix@{address.path}" if address.path else address.host_port
