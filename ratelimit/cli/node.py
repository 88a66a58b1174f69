"""The commands that query a running node: ``blocks``, ``top``, ``explain``, ``status`` and
``reload``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ratelimit.api.client import DEFAULT_URL, Client, path_of, read_token
from ratelimit.cli.tables import (
    blocks_table,
    clients_table,
    duration,
    explanation,
    show,
    status_tables,
)
from ratelimit.exceptions import ApiError
from ratelimit.limiter.keys import key_network
from ratelimit.notation import printable

_PAGE = 1000

_Command = Callable[..., None]


def asks(function: _Command) -> _Command:
    """Add the API options to a command and pass an API client to it."""

    @click.option(
        "--url",
        envvar="RATELIMIT_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="URL of the API; also RATELIMIT_URL.",
    )
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the API token; RATELIMIT_TOKEN may hold the token itself.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def command(url: str, token_file: Path | None, **arguments: Any) -> None:
        token = read_token(token_file) if token_file else os.environ.get("RATELIMIT_TOKEN", "")
        try:
            function(Client(url, token), **{name: _text(one) for name, one in arguments.items()})
        except KeyError as error:
            text = f"{url}: the answer has no {error}; is this the API of ratelimit?"
            raise ApiError(text) from error

    return functools.update_wrapper(command, function)


@click.command()
@click.argument("action", type=click.Choice(["list", "add", "remove"]), default="list")
@click.argument("key", required=False)
@click.option(
    "--ttl", metavar="DURATION", help="add: duration of the block, 1s to 30d; 10m by default."
)
@click.option("--reason", default="", metavar="TEXT", help="add: reason, shown with the block.")
@click.option("--force", is_flag=True, help="add: accept any string or a very wide network.")
@click.option("--q", default="", metavar="TEXT", help="list: only entries that contain TEXT.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="list: maximum number of entries.",
)
@click.option("--ended", is_flag=True, help="list: also ended blocks whose strikes still count.")
@click.option("--watch", is_flag=True, help="list: refresh every second until Ctrl-C.")
@asks
def blocks(
    client: Client,
    action: str,
    key: str | None,
    ttl: str | None,
    reason: str,
    force: bool,
    q: str,
    count: int,
    ended: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """List blocks, block a KEY, or unblock a KEY on every node.

    KEY is an address, a network, a string that a limit counts, or a key as this command shows it; -
    reads the key from standard input, which keeps a secret key out of the process list.
    """
    if (key is None) != (action == "list"):
        raise click.UsageError(f"{action} takes {'no KEY' if key else 'a KEY'}")
    key = _read_key(key or "")
    if action == "add":
        body: dict[str, object] = {"key": key, "ttl": _number(ttl or "10m"), "reason": reason}
        made = client.post("/v1/blocks", body | ({"force": True} if force else {}))
        if as_json:
            click.echo(json.dumps(made))
            return
        if made["note"]:
            click.echo(printable(made["note"]), err=True)
        click.echo(
            f"{printable(made['key'])} is blocked for {duration(made['until'] - made['since'])}"
        )
        if made["unenforced"]:
            click.echo(printable(made["unenforced"]), err=True)
        for socket, problem in _missed(made):
            click.echo(f"HAProxy at {socket} will ask the agent about it: {problem}", err=True)
    elif action == "remove":
        key = _shown_key(client, key)
        answer = client.delete(path_of("/v1/blocks", key))
        lifted = {"lifted": key, "edges": answer.get("edges", [])}
        click.echo(json.dumps(lifted) if as_json else f"{printable(key)} is unblocked")
        for socket, problem in _missed(lifted):
            click.echo(f"HAProxy at {socket} may still block it: {problem}", err=True)
        if _missed(lifted):
            raise click.exceptions.Exit(1)
    elif as_json and not watch:
        # Print all or nothing: a later page can fail, and half a list is not valid JSON. The lines
        # are kept in memory, because a container may have no writable file system.
        lines = [json.dumps(entry) for entry in _entries(client, q, ended)]
        before = "["
        for line in lines:
            click.echo(before + line, nl=False)
            before = ",\n "
        click.echo("[]" if before == "[" else "]")
    else:
        show(lambda: _blocks_now(client, q, count, ended), blocks_table, as_json, watch)


@click.command()
@click.option("-n", "count", default=20, show_default=True, help="Maximum number of clients.")
@click.option(
    "--sort",
    type=click.Choice(["rate", "share", "blocked"]),
    default="rate",
    show_default=True,
    help="rate: hits per second; share: hits relative to the limit; blocked: only blocked clients.",
)
@click.option("--once", is_flag=True, help="Print once, also on a terminal.")
@asks
def top(client: Client, count: int, sort: str, once: bool, as_json: bool) -> None:
    """Show the busiest clients of a node; on a terminal, refresh every second."""
    live = sys.stdout.isatty() and not once and not as_json
    show(
        lambda: client.get("/v1/clients", n=count, sort=sort, counted="true")["clients"],
        clients_table,
        as_json,
        live,
    )


@click.command()
@click.argument("key")
@asks
def explain(client: Client, key: str, as_json: bool) -> None:
    """Show everything known about KEY; - reads it from standard input."""
    known = client.get(path_of("/v1/clients", _shown_key(client, _read_key(key))))
    show(lambda: known, explanation, as_json, watch=False)


@click.command()
@asks
def status(client: Client, as_json: bool) -> None:
    """Show the state of a node, its store, the other nodes and HAProxy."""
    state = client.get("/v1/status")
    with contextlib.suppress(ApiError):  # without the store, the rest is still shown
        state["fleet"] = client.get("/v1/nodes")["nodes"]
    show(lambda: state, status_tables, as_json, watch=False)


@click.command()
@asks
def reload(client: Client, as_json: bool) -> None:
    """Make a node read its configuration again."""
    result = client.post("/v1/reload", {})
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo("reloaded")
    if result["restart"]:
        click.echo(f"changes that need a restart: {', '.join(result['restart'])}", err=True)


COMMANDS = (blocks, top, explain, status, reload)


def _missed(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the sockets of the HAProxy processes that did not apply a change, and why."""
    missed = [edge for edge in answer["edges"] if not edge["ok"]]
    return [(printable(edge["socket"]), printable(edge["problem"])) for edge in missed]


def _entries(client: Client, q: str, ended: bool) -> Iterator[dict[str, Any]]:
    """Yield the entries of the blocklist, page by page."""
    cursor = ""
    while True:
        page = client.get("/v1/blocks", limit=_PAGE, cursor=cursor, q=q, ended=str(ended).lower())
        yield from page["blocks"]
        cursor = page["next"]
        if not cursor:
            return


def _blocks_now(client: Client, q: str, count: int, ended: bool) -> list[dict[str, Any]]:
    found = []
    for entry in _entries(client, q, ended):
        found.append(entry)
        if len(found) == count:
            break
    return found


def _read_key(key: str) -> str:
    """Return the key of an argument, or from standard input for ``-``."""
    if key != "-":
        return key
    if sys.stdin.isatty():
        return str(click.prompt("key", hide_input=True))
    return str(_text(sys.stdin.readline().rstrip("\r\n")))


def _shown_key(client: Client, key: str) -> str:
    """Return a key as the API shows it: a path may be logged on its way, a request body is not."""
    if key_network(key) is not None:
        return key
    return str(client.post("/v1/keys", {"key": key})["key"])


def _text(argument: Any) -> Any:
    """Return an argument; raise BadParameter if it is not valid UTF-8."""
    if isinstance(argument, str) and not argument.isascii():
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("an argument is not UTF-8") from None
    return argument


def _number(ttl: str) -> str | int:
    """Return a number without a unit as an integer, which means seconds."""
    return int(ttl) if ttl.isascii() and ttl.isdigit() and len(ttl) < 12 else ttl
