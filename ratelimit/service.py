"""Puts the parts together, runs them until a signal or a failure, and takes them down again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import resource
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import click
import structlog
import uvloop

from ratelimit import __version__, logs
from ratelimit.agent import Agent
from ratelimit.alerts import Alerts
from ratelimit.config import Config
from ratelimit.control import Control
from ratelimit.engine import compiled
from ratelimit.engine.constants import CLIENT_BYTES, SECOND
from ratelimit.exceptions import StartError
from ratelimit.handover import Predecessor, hand_over
from ratelimit.haproxy import HAProxy, confine, find, unprivileged
from ratelimit.limiter import Limiter, Sharing
from ratelimit.load import Load
from ratelimit.metrics import Metrics
from ratelimit.model import Address
from ratelimit.notation import format_duration
from ratelimit.ops.server import Server
from ratelimit.runtime import Prefixes, Runtime
from ratelimit.runtime.figures import AGENT_BACKEND
from ratelimit.store import MEMORY, Node, open_store
from ratelimit.supervisor import Task
from ratelimit.sync import Sync
from ratelimit.systemd import Manager, Sockets
from ratelimit.trust import Trusted
from ratelimit.webhooks import Webhooks

DRAIN_TIMEOUT = 0.8
"""Seconds from SIGTERM until connections that are still open are cut."""

_DEFAULT_LISTEN = Address("127.0.0.1", 8080)
_START_TIMEOUT = 5  # seconds for HAProxy to accept connections
_STOP_TIMEOUT = 2  # seconds for the demo application to end
_LONGEST_PAUSE = 1.0  # seconds, of tasks that others wait for

log = structlog.get_logger()


def serve(config: Config) -> int:
    """Run the agent until SIGTERM or SIGINT; return the exit code."""
    logs.configure()
    _warn_of_exposed_files(config)
    return uvloop.run(_serve(config))


def up(config: Config, listen: Address | None, backend: Address | None) -> int:
    """Run the agent and HAProxy until SIGTERM or SIGINT; return the exit code.

    ``listen`` is where HAProxy accepts clients, ``backend`` the application behind it; without one
    a demo application answers.
    """
    logs.configure()
    _warn_of_exposed_files(config)
    return uvloop.run(_up(config, listen or _DEFAULT_LISTEN, backend))


def _warn_of_exposed_files(config: Config) -> None:
    if files := config.exposed_files():
        log.warning("every user of this machine can read secrets", files=files)


async def _serve(config: Config) -> int:
    stop = _on_signal(signal.SIGTERM, signal.SIGINT)
    again = _on_signal(signal.SIGHUP)
    follow = _on_signal(signal.SIGUSR2)
    predecessor = Predecessor.of_environment()
    with contextlib.closing(Manager.of_environment()) as manager:
        async with _agent(config, manager, predecessor=predecessor) as running:
            tasks = running.control.tasks
            tasks.start("watchdog", manager.watch, _LONGEST_PAUSE)
            tasks.start("reload", lambda: _reload(running.control, manager, again))
            tasks.start("hand-over", lambda: _hand_over(running, manager, predecessor, follow))
            await _first(stop.wait(), running.handed_over.wait())
    return 0


async def _up(config: Config, listen: Address, application: Address | None) -> int:
    # Closing the terminal ends it too, and with it its children.
    stop = _on_signal(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    _on_signal(signal.SIGUSR2)  # is for an agent alone, and would end this one without HAProxy
    program = await find()
    account = unprivileged()
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ratelimit-"))
        stats = str(Path(folder) / "haproxy.sock")
        manager = stack.enter_context(contextlib.closing(Manager.of_environment()))
        running = await stack.enter_async_context(_agent(config, manager, stats))
        # A check over it costs both ends less than one over TCP.
        jail = Path(folder) / "jail"
        jail.mkdir(mode=0o755)
        spop = jail / "spop.sock"
        await running.control.agent.listen(Address(path=str(spop)))
        if application is None:
            application = await stack.enter_async_context(_demo())
        haproxy = await HAProxy.start(
            program,
            {
                **confine(spop, account),
                "RATELIMIT_LISTEN": _written(listen),
                "RATELIMIT_BACKEND": _written(application),
                "RATELIMIT_STATS_SOCKET": stats,
                "RATELIMIT_STATS_LEVEL": "admin",  # in a folder that nobody else can enter
                "RATELIMIT_IPV4_PREFIX": str(_prefixes(config).ipv4),
                "RATELIMIT_IPV6_PREFIX": str(_prefixes(config).ipv6),
            },
        )
        stack.push_async_callback(haproxy.stop)
        await _first(_failed(haproxy), _announce(config, listen, application, running.ops, stop))
        return 0


async def _announce(
    config: Config, listen: Address, application: Address, ops: Address, stop: asyncio.Event
) -> None:
    """Wait until HAProxy accepts clients, say what runs, and wait for the signal to stop."""
    limiter = _reachable(listen)
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            await _accepts(limiter)
    except TimeoutError:
        what = f"HAProxy does not accept connections on {_written(listen)}"
        raise StartError(f"{what} after {_START_TIMEOUT} s") from None
    url = f"http://{_written(limiter)}/"
    click.echo(f"limiter      {url}")
    click.echo(f"application  http://{_written(application)}/")
    click.echo(f"operators    http://{_written(_reachable(ops))}/")
    for limit in config.limits_in_force():
        click.echo(f"limit        {limit.name}: {limit.rate} in {format_duration(limit.window)}")
    click.echo("try          300 requests from one address, and what became of them:")
    click.echo(
        f"             curl -s -o /dev/null -w '%{{http_code}}\\n' '{url}[1-300]' | sort | uniq -c"
    )
    await stop.wait()


async def _accepts(address: Address) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


@dataclasses.dataclass(slots=True)
class _Running:
    """A node that listens on ``addresses``, its API on ``ops``, and what runs beside it.

    ``handed_over`` is set when a successor goes on with its sockets.
    """

    addresses: list[Address]
    ops: Address
    control: Control
    server: Server
    handed_over: asyncio.Event


@contextlib.asynccontextmanager
async def _agent(
    config: Config, manager: Manager, *stats: str, predecessor: Predecessor | None = None
) -> AsyncIterator[_Running]:
    """Run a node, and all that it does next to the answers; yield it.

    ``stats`` are sockets of HAProxy that the configuration can't name. A ``predecessor`` goes on
    answering until this node does, and then ends.
    """
    passed = Sockets.inherited(trusted=predecessor is not None)
    sockets = [passed.take(address) for address in config.agent.listen]
    ops_sockets = passed.take(config.ops.listen)
    passed.done()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limits, lists, node = config.limits_in_force(), config.read_lists(), secrets.token_hex(8)
    if config.store.url == MEMORY:
        sharing = Sharing.NONE
    else:
        sharing = Sharing.HOT if config.store.sync_interval else Sharing.ALL
    clients = config.agent.max_clients
    try:
        limiter = Limiter(limits, clients, node=node, sharing=sharing, lists=lists)
    except (OSError, MemoryError) as error:
        size = clients * CLIENT_BYTES >> 20
        raise config.wrong("agent.max_clients", f"there are no {size} MiB of memory") from error
    sync = Sync(limiter, config.store.sync_interval / SECOND, config.store.on_outage == "share")
    about = Node(node, __version__, int(time.time()))
    agent = Agent(limiter, sync, Trusted(config.agent.trusted))
    runtime = Runtime([*config.haproxy.sockets, *stats], prefixes=_prefixes(config))
    control = Control(config, agent, about, runtime)
    server = Server(control)
    store = open_store(
        config.store.url,
        prefix=config.store.prefix,
        state_dir=config.store.state_dir,
        tls_server_name=config.store.tls_server_name,
        replicas=config.store.replicas,
        events=control.follow(sync.events),
        node=about,
    )
    sync.attach(store, about)
    webhooks = Webhooks(config.receivers(), node)
    load = Load(config.load.high, config.load.low, config.load.hold / SECOND)
    servers = functools.partial(_servers_up, runtime)
    alerts = Alerts(limiter, store, node, webhooks, load, servers, control.bus.publish)
    control.bus.taps.append(alerts.hear)
    control.reloader.parts += [
        lambda new: functools.partial(setattr, runtime, "prefixes", _prefixes(new)),
        lambda new: functools.partial(webhooks.renew, new.receivers()),
        lambda new: functools.partial(
            load.change, new.load.high, new.load.low, new.load.hold / SECOND
        ),
    ]
    control.metrics = Metrics(control, webhooks).exposition
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.close)
        # First, so that who asks while the store is waited for is told that the node starts.
        ops = await server.start(ops_sockets)
        stack.push_async_callback(server.close)
        running = _Running([], ops, control, server, asyncio.Event())

        async def listen() -> None:
            # What the start made stays: the garbage collector, which stops all answers meanwhile,
            # need not walk through it each time.
            gc.collect()
            gc.freeze()
            for address, bound in zip(config.agent.listen, sockets, strict=True):
                try:
                    running.addresses.append(await agent.listen(address, bound))
                except StartError as error:
                    raise config.wrong("agent.listen", str(error)) from error

        if predecessor is not None and config.store.url == MEMORY:
            # Only one process can have its file open, and somebody has to answer meanwhile.
            await listen()
            await predecessor.replace()
        await store.start()
        if store.up:
            control.edges.compare()
        stack.push_async_callback(store.close)
        stack.push_async_callback(lambda: agent.close(DRAIN_TIMEOUT, running.handed_over.is_set()))
        if not running.addresses:
            await listen()
        log.info(
            "agent started",
            version=__version__,
            compiled=compiled(),
            listen=[str(address) for address in running.addresses],
            ops=_written(ops),
            table_bytes=agent.limiter.engine.table.size,
        )
        tasks = control.tasks
        stack.callback(webhooks.close)
        stack.push_async_callback(tasks.close)
        asyncio.get_running_loop().set_exception_handler(tasks.unhandled)
        tasks.start("tick", lambda: _tick(agent, tasks.task("tick")))
        # With sync_interval = "0" answers wait for it.
        tasks.start("sync", sync.run, _LONGEST_PAUSE)
        tasks.start("tidy", control.tidy, _LONGEST_PAUSE)
        tasks.start("edges", control.edges.run)
        tasks.start("edge tables", control.edges.compare_all)
        tasks.start("api", server.run)
        tasks.start("webhooks", webhooks.run)
        tasks.start("alerts", alerts.run)
        control.ready = True
        manager.tell("READY=1")
        yield running
        control.ready = False
        if not running.handed_over.is_set():
            manager.tell("STOPPING=1")
        log.info("agent stops", checks=agent.limiter.engine.checks, blocks=agent.limiter.blocks)


def _prefixes(config: Config) -> Prefixes:
    """Return what is a client at the edges: they remember the blocks of this limit alone."""
    limit = config.limits["default"]
    return Prefixes(limit.ipv4_prefix, limit.ipv6_prefix)


async def _servers_up(runtime: Runtime) -> int | None:
    """Return how many servers of the application are up, as the HAProxy sees it that has most."""
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


@contextlib.asynccontextmanager
async def _demo() -> AsyncIterator[Address]:
    """Run the demo application on a free port of loopback; yield where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ratelimit.demo",
            str(listener.fileno()),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        address = Address(*listener.getsockname())
    try:
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                process.kill()


async def _tick(agent: Agent, task: Task) -> None:
    while True:
        await asyncio.sleep(1)
        agent.tick(task.attempt)


async def _failed(haproxy: HAProxy) -> None:
    code = await haproxy.wait()
    raise StartError(f"HAProxy ended with code {code}; its own words are above")


async def _first(*parts: Awaitable[object]) -> None:
    """Run all parts until the first ends, well or not; end the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _reload(control: Control, manager: Manager, again: asyncio.Event) -> None:
    while True:
        await again.wait()
        again.clear()
        manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await control.reload()
        finally:
            manager.tell("READY=1")


async def _hand_over(
    running: _Running, manager: Manager, predecessor: Predecessor | None, follow: asyncio.Event
) -> None:
    """Have the predecessor end; then, at the signal, go on until a successor has taken over."""
    if predecessor is not None:
        await predecessor.replace()
    while True:
        await follow.wait()
        follow.clear()
        passed = [*running.control.agent.sockets, *running.server.sockets]
        pid = await hand_over(passed)
        if pid is not None:
            manager.tell(f"MAINPID={pid}")
            running.handed_over.set()
            return


def _on_signal(*numbers: signal.Signals) -> asyncio.Event:
    event = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def _reachable(address: Address) -> Address:
    """Return how to reach what listens on every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return dataclasses.replace(address, host=host)


def _written(address: Address) -> str:
    """Return an address as HAProxy's ``bind`` and ``server`` lines, and URLs, have it."""
    if address.path:
        return f"unix@{address.path}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
