"""The commands that ask a running node: ``blocks``, ``top``, ``explain``, ``status`` and others."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ratelimit.client import DEFAULT_URL, Client, path_of, read_token
from ratelimit.exceptions import ApiError

if TYPE_CHECKING:
    from rich.console import RenderableType

_PAGE = 1000
_INTERVAL = 1.0  # seconds between two looks

_Command = Callable[..., None]


def asks(function: _Command) -> _Command:
    """Give a command the options that say where the API is, and its client."""

    @click.option(
        "--url",
        envvar="RATELIMIT_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="Where the API is; also RATELIMIT_URL.",
    )
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A file with the token; also RATELIMIT_TOKEN, which holds the token itself.",
    )
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    @click.pass_context
    def command(
        context: click.Context, /, url: str, token_file: Path | None, **arguments: Any
    ) -> None:
        token = read_token(token_file) if token_file else os.environ.get("RATELIMIT_TOKEN", "")
        try:
            function(Client(url, token), **arguments)
        except ApiError as error:
            click.echo(f"ratelimit: {error}", err=True)
            context.exit(2 if error.status in (400, 422) else 1)

    return functools.update_wrapper(command, function)


@click.command()
@click.argument("action", type=click.Choice(["list", "add", "remove"]), default="list")
@click.argument("key", required=False)
@click.option("--ttl", metavar="DURATION", help="add: how long, such as 10m; 1s to 30d.")
@click.option("--reason", default="", metavar="TEXT", help="add: why.")
@click.option("--q", default="", metavar="TEXT", help="list: only entries with this in them.")
@click.option("-n", "count", default=1000, help="list: entries of the table.", show_default=True)
@click.option("--ended", is_flag=True, help="list: also those that ended, for their strikes.")
@click.option("--watch", is_flag=True, help="list: until Ctrl-C.")
@asks
def blocks(
    client: Client,
    action: str,
    key: str | None,
    ttl: str | None,
    reason: str,
    q: str,
    count: int,
    ended: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """Show the blocklist, block a KEY, or lift its blocks on every node."""
    if (key is None) != (action == "list"):
        raise click.UsageError(f"{action} takes {'no key' if key else 'a key'}")
    if action == "add":
        made = client.post(
            "/v1/blocks", {"key": key, "ttl": _number(ttl or "10m"), "reason": reason}
        )
        if as_json:
            click.echo(json.dumps(made))
            return
        if made["note"]:
            click.echo(printable(made["note"]), err=True)
        click.echo(
            f"{printable(made['key'])} is blocked for {_duration(made['until'] - made['since'])}"
        )
    elif action == "remove":
        client.delete(path_of("/v1/blocks", key or ""))
        click.echo(json.dumps({"lifted": key}) if as_json else f"{printable(key or '')} is lifted")
    elif as_json and not watch:
        # As it comes, for there may be many.
        before = "["
        for entry in _entries(client, q, ended):
            click.echo(before + json.dumps(entry), nl=False)
            before = ",\n "
        click.echo("[]" if before == "[" else "]")
    else:
        show(lambda: _blocks_now(client, q, count, ended), _blocks_table, as_json, watch)


@click.command()
@click.option("-n", "count", default=20, show_default=True, help="How many.")
@click.option(
    "--sort",
    type=click.Choice(["rate", "share", "blocked"]),
    default="rate",
    show_default=True,
    help="By hits a second, by hits to the limit, or those blocked.",
)
@click.option("--once", is_flag=True, help="One look also where it could be live.")
@asks
def top(client: Client, count: int, sort: str, once: bool, as_json: bool) -> None:
    """Show the busiest clients of a node, live on a terminal."""
    live = sys.stdout.isatty() and not once and not as_json
    show(
        lambda: client.get("/v1/clients", n=count, sort=sort)["clients"],
        _clients_table,
        as_json,
        live,
    )


@click.command()
@click.argument("key")
@asks
def explain(client: Client, key: str, as_json: bool) -> None:
    """Show everything known about a KEY."""
    known = client.get(path_of("/v1/clients", key))
    show(lambda: known, _explanation, as_json, watch=False)


@click.command()
@asks
def status(client: Client, as_json: bool) -> None:
    """Show a node, its store, the fleet and HAProxy."""
    state = client.get("/v1/status")
    with contextlib.suppress(ApiError):  # the store's part; the rest is known without it
        state["fleet"] = client.get("/v1/nodes")["nodes"]
    show(lambda: state, _status, as_json, watch=False)


@click.command()
@asks
def reload(client: Client, as_json: bool) -> None:
    """Have a node read its configuration again."""
    result = client.post("/v1/reload", {})
    click.echo(json.dumps(result) if as_json else "reloaded")


COMMANDS = (blocks, top, explain, status, reload)


def _entries(client: Client, q: str, ended: bool) -> Iterator[dict[str, Any]]:
    """Yield the blocklist, page by page."""
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


def show(
    look: Callable[[], Any], table: Callable[[Any], RenderableType], as_json: bool, watch: bool
) -> None:
    """Print what ``look`` returns, again and again with ``watch`` until Ctrl-C."""
    if as_json:
        while True:
            click.echo(json.dumps(look()))
            if not watch:
                return
            time.sleep(_INTERVAL)
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    first = table(look())
    if not watch:
        console.print(first)
        return

    def again() -> RenderableType:
        time.sleep(_INTERVAL)
        try:
            return table(look())
        except ApiError as error:
            if error.status:
                raise
            return f"ratelimit: {error}"  # it may come back

    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            console.print(first)
            while True:
                console.print(again())
        with Live(first, console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(again(), refresh=True)


def new_table(*columns: str, title: str = "") -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        name = column.removesuffix("#")
        made.add_column(name, justify="right" if column != name else "left", overflow="fold")
    return made


def _blocks_table(entries: list[dict[str, Any]]) -> RenderableType:
    made = new_table("key", "limit", "left#", "strikes#", "by", "reason", "node")
    for entry in entries:
        made.add_row(
            printable(entry["key"]),
            printable(entry["limit"]),
            _left(entry["until"]),
            str(entry["strikes"]),
            printable(entry["by"]),
            printable(entry["reason"]),
            printable(entry["node"][:8]),
        )
    made.caption = f"{len(entries)} entries"
    return made  # type: ignore[no-any-return]


def _clients_table(clients: list[dict[str, Any]]) -> RenderableType:
    made = new_table("client", "limit", "hits a second#", "in the window#", "blocked for#")
    for one in clients:
        made.add_row(
            f"#{one['key']}" if one["hashed"] else one["key"],
            printable(one["limit"]),
            f"{one['rate']:,.1f}",
            f"{one['hits']:,}",
            _left(one["until"]) if one["until"] > time.time() else "",
        )
    return made  # type: ignore[no-any-return]


def _explanation(known: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    title = f"{printable(known['key'])}{' is listed: ' + known['lists'] if known['lists'] else ''}"
    limits = new_table(
        "limit", "counts", "hits#", "of#", "in", "left#", "strikes#", "blocked for#", title=title
    )
    for one in known["limits"]:
        limits.add_row(
            printable(one["limit"]),
            printable(one["key"]),
            f"{one['hits']:,}",
            f"{one['rate']:,}",
            one["window"],
            f"{one['remaining']:,}",
            str(one["strikes"]),
            _left(one["until"]) if one["until"] > time.time() else "",
        )
    parts: list[RenderableType] = [limits]
    entries = [one["block"] for one in known["limits"] if one["block"]] + known["by_hand"]
    if entries:
        parts.append(_blocks_table(entries))
    if known["edge"]:
        parts.append(_records("HAProxy's edge", known["edge"]))
    if known["note"]:
        parts.append(printable(known["note"]))
    return Group(*parts)


def _status(state: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    store, table = state["store"], state["table"]
    node = new_table("node", state["node"])
    health = "degraded: own counts only" if state["degraded"] else "ready"
    away = f"away: {printable(store['problem'])}"
    rows = {
        "state": health if state["ready"] else "starting or draining",
        "version": f"{state['version']} ({'compiled' if state['compiled'] else 'pure'})",
        "up for": _duration(state["uptime"]),
        "checks": f"{state['checks']:,}",
        "HAProxy connections": f"{state['connections']:,}",
        "protocol errors": f"{state['protocol_errors']:,}",
        "clients": f"{table['entries']:,} of {table['capacity']:,}; {table['evictions']:,} evicted",
        "blocklist": f"{state['blocklist']['entries']:,} entries",
        "store": f"{store['kind']}, {'up' if store['up'] else away}; {store['outages']} outages",
        "nodes": str(state["nodes"]),
    }
    if state["reload"] and not state["reload"]["ok"]:
        rows["last reload"] = "; ".join(printable(one) for one in state["reload"]["problems"])
    for name, value in rows.items():
        node.add_row(name, value)
    limits = new_table("limit", "allowed#", "throttled#", "blocked#")
    for one in state["limits"]:
        limits.add_row(
            printable(one["name"]), *(f"{one[k]:,}" for k in ("allowed", "throttled", "blocked"))
        )
    parts: list[RenderableType] = [node, limits]
    for name, records in (("fleet", state.get("fleet", [])), ("HAProxy", state["haproxy"])):
        if records:
            parts.append(_records(name, records))
    return Group(*parts)


def _records(title: str, records: list[dict[str, Any]]) -> RenderableType:
    """Return a table of objects that have the same fields."""
    plain = [name for name, value in records[0].items() if not isinstance(value, (list, dict))]
    made = new_table(*plain, title=title)
    for record in records:
        made.add_row(*(printable(str(record.get(name, ""))) for name in plain))
    return made  # type: ignore[no-any-return]


def printable(text: str) -> str:
    """Return a client's text so that a terminal only shows it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _left(until: int) -> str:
    seconds = until - time.time()
    return _duration(seconds) if seconds > 0 else "ended"


def _duration(seconds: float) -> str:
    """Return the two greatest units of a duration, such as ``2h 5m``."""
    left, parts = int(seconds), []
    for name, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{name}")
            left %= size
    return " ".join(parts[:2]) or "0s"


def _number(ttl: str) -> str | int:
    """Return a bare number as seconds."""
    return int(ttl) if ttl.isascii() and ttl.isdigit() and len(ttl) < 12 else ttl
