"""``ratelimit haproxy``: show and change the servers to which HAProxy balances the load."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ratelimit.api.client import Client, path_of
from ratelimit.cli.node import asks
from ratelimit.cli.tables import new_table, show
from ratelimit.notation import printable

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.group()
def haproxy() -> None:
    """Show HAProxy's servers; drain a server, make it ready, or change its weight."""


@haproxy.command()
@asks
def servers(client: Client, as_json: bool) -> None:
    """Show the servers of each HAProxy of the node."""
    reports = client.get("/v1/haproxy")["haproxy"]
    show(lambda: reports, _servers_table, as_json, watch=False)
    _tell(reports)


@haproxy.command()
@click.argument("server")
@asks
def drain(client: Client, server: str, as_json: bool) -> None:
    """Send no new requests to SERVER, given as BACKEND/SERVER or SERVER."""
    _change(client, server, {"state": "drain"}, as_json)


@haproxy.command()
@click.argument("server")
@asks
def ready(client: Client, server: str, as_json: bool) -> None:
    """End the drain or maintenance of SERVER."""
    _change(client, server, {"state": "ready"}, as_json)


@haproxy.command()
@click.argument("server")
@click.argument("weight", metavar="N", type=click.IntRange(0, 256))
@asks
def weight(client: Client, server: str, weight: int, as_json: bool) -> None:
    """Set the weight of SERVER in its backend, 0 to 256."""
    _change(client, server, {"weight": weight}, as_json)


def _change(client: Client, server: str, change: dict[str, object], as_json: bool) -> None:
    backend, _, name = _full_name(client, server).partition("/")
    path = path_of(path_of("/v1/haproxy/servers", backend), name)
    results = client.post(path, change)["haproxy"]
    if as_json:
        click.echo(json.dumps(results))
    else:
        for result in results:
            if not result["problem"]:
                found = result["server"]
                state = f"{found['status']}, weight {found['weight']}"
                click.echo(f"{result['socket']}: {backend}/{name}: {printable(state)}")
    _tell(results)


def _full_name(client: Client, server: str) -> str:
    """Return BACKEND/SERVER for a server given with or without its backend."""
    if "/" in server:
        return server
    reports = client.get("/v1/haproxy")["haproxy"]
    known = {f"{one['backend']}/{one['name']}" for _, one in _servers(reports)}
    found = sorted(name for name in known if name.partition("/")[2] == server)
    if len(found) != 1:
        choices = f"ambiguous; give one of {', '.join(found)}"
        problem = choices if found else "no HAProxy has such a server"
        raise click.BadParameter(problem, param_hint="SERVER")
    return found[0]


def _servers(reports: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the servers, each with the socket of its HAProxy."""
    return [
        (report["socket"], server)
        for report in reports
        for backend in report["backends"]
        for server in backend["servers"]
    ]


def _servers_table(reports: list[dict[str, Any]]) -> RenderableType:
    several = ["HAProxy"] if len(reports) > 1 else []
    made = new_table("server", "address", "state", "weight#", "sessions#", "check", *several)
    for socket, server in _servers(reports):
        row = [
            f"{server['backend']}/{server['name']}",
            printable(server["address"]),
            printable(server["status"]),
            str(server["weight"]),
            f"{server['sessions']:,}",
            printable(server["check"]),
        ]
        made.add_row(*row, *([printable(socket)] if several else []))
    return made


def _tell(results: list[dict[str, Any]]) -> None:
    """Print the HAProxy processes that failed; exit with status 1 if there are any."""
    problems = [one for one in results if one["problem"]]
    for one in problems:
        click.echo(f"ratelimit: {printable(one['socket'])}: {printable(one['problem'])}", err=True)
    if problems:
        sys.exit(1)
