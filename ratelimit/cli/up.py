"""``ratelimit up``: the agent, an HAProxy in front of it, and a demo application."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import click

from ratelimit.app import prefixes, run_node, written
from ratelimit.config import Config
from ratelimit.exceptions import StartError
from ratelimit.haproxy.process import HAProxy, confine, find, unprivileged
from ratelimit.model import Address, Limit
from ratelimit.notation import SECOND, format_duration
from ratelimit.peers.constants import DataType
from ratelimit.peers.hub import Hub
from ratelimit.peers.sources import COUNTERS
from ratelimit.process import log as logs
from ratelimit.process.hold_signals import let_through
from ratelimit.process.systemd import Manager
from ratelimit.serve import on_signal, run

_DEFAULT_LISTEN = Address("127.0.0.1", 8080)
_PEER = "agent"  # the agent's name in peers.cfg
_COUNTED = ("default", "unknown", "login", "api_key")  # limits whose tables peers.cfg has
_START_TIMEOUT = 5  # seconds for HAProxy to accept connections
_LOOK = 0.02  # seconds between looks whether it does
_END_TIMEOUT = 2  # seconds for the demo application to end
_STOP_TIMEOUT = 15.0  # seconds for everything to end; HAProxy is signalled three times


def up(config: Config, listen: Address | None, backend: Address | None, peers: bool = False) -> int:
    """Run the agent and HAProxy until SIGTERM or SIGINT; return the exit status.

    ``listen`` is the address on which HAProxy accepts clients, ``backend`` the application. Without
    ``backend``, a demo application answers. With ``peers``, HAProxy has the agent as its peer.
    """
    if peers and config.agent.peer_name != _PEER:
        raise config.wrong("agent.peer_name", f"must be {_PEER!r}, as HAProxy's peers.cfg has it")
    logs.begin("stdout")
    service = functools.partial(_up, config, listen or _DEFAULT_LISTEN, backend, peers)
    # SIGHUP: closing the terminal ends the agent and its children.
    return run(config, service, _STOP_TIMEOUT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def _up(config: Config, listen: Address, application: Address | None, peers: bool) -> None:
    on_signal(signal.SIGUSR2)  # for a separate agent only; here it would leave HAProxy running
    let_through()
    program = await find()
    account = unprivileged()
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ratelimit-"))
        stats = str(Path(folder) / "haproxy.sock")
        manager = stack.enter_context(contextlib.closing(Manager.of_environment()))
        running = await stack.enter_async_context(run_node(config, manager, stats, peering=peers))
        control = running.control
        # A unix socket costs both ends less CPU than TCP.
        jail = Path(folder) / "jail"
        jail.mkdir(mode=0o755)
        if peers:
            agent = jail / "peers.sock"
            await control.peers.listen(Address(path=str(agent)))
            settings = {
                **confine("RATELIMIT_PEERS", agent, account),
                "RATELIMIT_PEERS_LISTEN": f"unix@{folder}/local.sock",
                **_tables(config),
            }
        else:
            agent = jail / "spop.sock"
            await control.agent.listen(Address(path=str(agent)))
            settings = confine("RATELIMIT_SPOP", agent, account)
        if application is None:
            application = await stack.enter_async_context(_demo())
        haproxy = await HAProxy.start(
            program,
            "peers.cfg" if peers else "haproxy.cfg",
            {
                **settings,
                "RATELIMIT_LISTEN": written(listen),
                "RATELIMIT_BACKEND": written(application),
                "RATELIMIT_STATS_SOCKET": stats,
                "RATELIMIT_STATS_LEVEL": "admin",  # in a directory that only this user can enter
                "RATELIMIT_IPV4_PREFIX": str(prefixes(config).ipv4),
                "RATELIMIT_IPV6_PREFIX": str(prefixes(config).ipv6),
            },
        )
        stack.push_async_callback(haproxy.stop)
        hub = control.peers.hub if peers else None
        await _first(_failed(haproxy), _announce(config, listen, application, running.ops, hub))


def _tables(config: Config) -> dict[str, str]:
    """Return the settings of HAProxy's tables: windows and prefix lengths, counters, limits."""
    settings = {}
    for name, limit in config.limits.items():
        if name not in _COUNTED:
            continue
        variable = "" if name == "default" else f"{name.upper()}_"
        if limit.window % SECOND == 0:
            settings[f"RATELIMIT_{variable}WINDOW"] = str(limit.window // SECOND)
        settings[f"RATELIMIT_{variable}IPV4_PREFIX"] = str(limit.ipv4_prefix)
        settings[f"RATELIMIT_{variable}IPV6_PREFIX"] = str(limit.ipv6_prefix)
    fed = [one for one in config.limits_in_force() if one.count_table == Limit().count_table]
    counters = {COUNTERS[one.counts].name.lower() for one in fed if one.counts != "requests"}
    counters |= {DataType.CONN_CUR.name.lower() for one in fed if one.open}
    if counters:
        settings["RATELIMIT_COUNTERS"] = ",".join(sorted(counters))
    more = [one.name for one in fed if one.name != "default"]
    settings |= {f"RATELIMIT_LIMIT{n}": name for n, name in zip((2, 3), more, strict=False)}
    return settings


async def _announce(
    config: Config, listen: Address, application: Address, ops: Address, hub: Hub | None
) -> None:
    """Wait until HAProxy accepts clients, print the addresses, and wait until cancelled.

    With a ``hub``, wait also until HAProxy knows the limits.
    """
    limiter = _reachable(listen)
    what = f"HAProxy does not accept connections on {written(listen)}"
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            await _accepts(limiter)
            what = "HAProxy does not connect to the agent as to its peer"
            while hub is not None and not any(link.complete for link in hub.by_name.values()):
                await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise StartError(f"{what} after {_START_TIMEOUT} s") from None
    url = f"http://{written(limiter)}/"
    click.echo(f"limiter      {url}")
    click.echo(f"application  http://{written(application)}/")
    click.echo(f"operators    http://{written(_reachable(ops))}/")
    for limit in config.limits_in_force():
        click.echo(f"limit        {limit.name}: {limit.rate} in {format_duration(limit.window)}")
    click.echo("try          300 requests from one address, and their status codes:")
    click.echo(
        f"             curl -s -o /dev/null -w '%{{http_code}}\\n' '{url}[1-300]' | sort | uniq -c"
    )
    await asyncio.Event().wait()


async def _accepts(address: Address) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            await asyncio.sleep(_LOOK)
        else:
            writer.close()
            return


@contextlib.asynccontextmanager
async def _demo() -> AsyncIterator[Address]:
    """Run the demo application on a free port of loopback; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ratelimit.cli.demo",
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
                await asyncio.wait_for(process.wait(), _END_TIMEOUT)
            except TimeoutError:
                process.kill()


async def _failed(haproxy: HAProxy) -> None:
    code = await haproxy.wait()
    raise StartError(f"HAProxy ended with code {code}; see its messages above")


async def _first(*parts: Awaitable[object]) -> None:
    """Run all parts until the first ends; cancel the others and raise its error, if any."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _reachable(address: Address) -> Address:
    """Return an address for connecting to a wildcard listener."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return dataclasses.replace(address, host=host)
