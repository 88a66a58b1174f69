"""Output of the commands: tables, once or refreshed; text from clients is escaped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ratelimit.exceptions import ApiError
from ratelimit.model import UNKNOWN, VERDICT_PREFIX, VERDICTS
from ratelimit.notation import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_SHOWN = 5  # names that a row lists
_INTERVAL = 1.0  # seconds between refreshes


def show(
    look: Callable[[], Any], table: Callable[[Any], RenderableType], as_json: bool, watch: bool
) -> None:
    """Print what ``look`` returns; with ``watch``, refresh until Ctrl-C."""
    if as_json:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                click.echo(json.dumps(look()))
                if not watch:
                    return
                time.sleep(_INTERVAL)
        return
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
            return f"ratelimit: {error}"  # the next request may succeed

    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            console.print(first)
            while True:
                console.print(again())
        with Live(first, console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(again(), refresh=True)


def new_table(*columns: str, rows: Iterable[Sequence[str]] = (), title: str = "") -> Table:
    """Return a table; a column whose name ends with ``#`` is right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        name = column.removesuffix("#")
        made.add_column(name, justify="right" if column != name else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def blocks_table(entries: list[dict[str, Any]], since: bool = False) -> RenderableType:
    """Return a table of blocks; ``since`` adds the time when each was made."""
    columns = ["key", "limit", "ends in#", "strikes#", "by", "reason", "node"]
    rows = (
        (
            printable(entry["key"]),
            printable(entry["limit"]) + (" (shadow)" if entry["shadow"] else ""),
            _left(entry["until"]),
            str(entry["strikes"]),
            printable(entry["by"]),
            printable(entry["reason"]),
            printable(entry["node"][:8]),
            *[time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["since"]))] * since,
        )
        for entry in entries
    )
    made = new_table(*columns, *["since"] * since, rows=rows)
    made.caption = f"{len(entries):,} entr{'y' if len(entries) == 1 else 'ies'}"
    return made


def clients_table(clients: list[dict[str, Any]]) -> RenderableType:
    """Return a table of clients, with what HAProxies in peers mode have counted themselves."""
    own = [
        (name, title)
        for name, title in (
            ("requests", "HAProxy's count#"),
            ("refused", "it refused#"),
            ("open", "open#"),
        )
        if any((one["haproxy"] or {}).get(name) is not None for one in clients)
    ]
    rows = (
        (
            printable(one["key"]),
            printable(one["limit"]),
            f"{one['rate']:,.1f}",
            f"{one['hits']:,}",
            _left(one["until"]) if one["until"] > time.time() else "",
            *(_figure((one["haproxy"] or {}).get(name)) for name, _ in own),
        )
        for one in clients
    )
    columns = ("client", "limit", "hits per second#", "hits in window#", "blocked for#")
    return new_table(*columns, *(title for _, title in own), rows=rows)


def _figure(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def explanation(known: dict[str, Any]) -> RenderableType:
    """Return tables of everything known about a key."""
    from rich.console import Group

    listed = f" is on the {known['lists']} list" if known["lists"] else ""
    limits = new_table(
        "limit", "counted as", "hits#", "of#", "window", "remaining#", "strikes#", "blocked for#",
        title=printable(known["key"]) + listed,
    )  # fmt: skip
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
        parts.append(blocks_table(entries, since=True))
    if known["edge"]:
        parts.append(_edges(known["edge"]))
    if known["counted"]:
        parts.append(_counted(known["counted"]))
    if known["note"]:
        parts.append(printable(known["note"]))
    return Group(*parts)


def status_tables(state: dict[str, Any]) -> RenderableType:
    """Return tables of the state of a node, and of the other nodes if present."""
    from rich.console import Group

    store, table = state["store"], state["table"]
    health = "degraded: only local counts" if state["degraded"] else "ready"
    away = f"down: {printable(store['problem'])}"
    rows = {
        "state": health if state["ready"] else "starting or draining",
        "version": f"{state['version']} ({'compiled' if state['compiled'] else 'pure'})",
        "uptime": duration(state["uptime"]),
        "checks": f"{state['checks']:,}",
        "HAProxy connections": f"{state['connections']:,}",
        "protocol errors": f"{state['protocol_errors']:,}",
        "untrusted connections": f"{state['connections_untrusted']:,}",
        "clients": f"{table['entries']:,} of {table['capacity']:,}; {table['evictions']:,} evicted",
        "blocklist": f"{state['blocklist']['entries']:,} entries",
        "store": f"{store['kind']}, {'up' if store['up'] else away}; {store['outages']} outages",
        "nodes": str(state["nodes"]),
    }
    if store["journal_problem"] and store["up"]:
        rows["journal"] = printable(store["journal_problem"])
    unknown = next((one for one in state["limits"] if one["name"] == UNKNOWN), None)
    if unknown and (asked := sum(unknown[verdict] for verdict in VERDICTS)):
        refused = asked - unknown["allowed"]
        rows["unknown clients"] = f"{asked:,} requests; {refused:,} refused"
    if forwarders := [printable(one["key"]) for one in state["forwarders"]]:
        more = f" and {len(forwarders) - _SHOWN} more" if len(forwarders) > _SHOWN else ""
        rows["possible proxies"] = f"{', '.join(forwarders[:_SHOWN])}{more}: not in lb.lst?"
    if state["reload"] and not state["reload"]["ok"]:
        rows["last reload"] = "; ".join(printable(one) for one in state["reload"]["problems"])
    failing = [f"{task['name']}: {task['problem']}" for task in state["tasks"] if task["problem"]]
    if state["log"]["problem"]:
        failing.append(f"log: {state['log']['problem']}")
    if failing:
        rows["failing"] = "\n".join(map(printable, failing))
    verdicts = (
        (
            printable(one["name"]),
            *(f"{one[verdict]:,}" for verdict in VERDICTS),
            "BLOWN: throttles only" if one["fuse_blown"] else "",
        )
        for one in state["limits"]
    )
    node = new_table("node", state["node"], rows=rows.items())
    limits = new_table("limit", *(f"{verdict}#" for verdict in VERDICTS), "fuse", rows=verdicts)
    parts: list[RenderableType] = [node, limits]
    if state.get("fleet"):
        parts.append(_fleet(state["fleet"]))
    if state["peers"]:
        parts.append(_peers(state["peers"]))
    if state["haproxy"]:
        parts.append(_haproxies(state["haproxy"]))
    return Group(*parts)


def _fleet(nodes: list[dict[str, Any]]) -> RenderableType:
    rows = (
        (
            printable(node["id"]),
            printable(node["version"]),
            f"{node['checks']:,.0f}",
            duration(max(0, time.time() - node["since"])),
            "this node" if node["here"] else "",
        )
        for node in nodes
    )
    columns = ("node", "version", "checks per second#", "uptime#", "")
    return new_table(*columns, rows=rows, title="fleet")


def _peers(peers: list[dict[str, Any]]) -> RenderableType:
    """Return a table of the HAProxies that count themselves (peers mode)."""
    rows = (
        (
            printable(one["name"]),
            printable(one["address"]),
            duration(max(0, time.time() - one["since"])),
            f"{one['updates']:,}",
            "this agent" if one["counting"] else printable(one["counted_by"]) or "no agent",
            "all" if one["taught"] else "not all",
            f"{one['waiting']:,}",
            "" if one["clock_offset"] is None else f"{one['clock_offset']:+.3f} s",
        )
        for one in peers
    )
    columns = ("name", "address", "uptime#", "updates#", "counted by", "verdicts", "waiting#")
    made = new_table(*columns, "clock#", rows=rows, title="HAProxies that are peers")
    refused = [
        f"{one['name']}: table {name}: {why}"
        for one in peers
        for name, why in one["refused"].items()
    ]
    made.caption = "\n".join(map(printable, refused)) or None
    return made


def _haproxies(reports: list[dict[str, Any]]) -> RenderableType:
    made = new_table(
        "socket", "version", "uptime#", "requests per second#", "denied#", "agent", "edge#",
        title="HAProxy",
    )  # fmt: skip
    for one in reports:
        if one["problem"]:
            made.add_row(printable(one["socket"]), "unreachable")
            continue
        made.add_row(
            printable(one["socket"]),
            printable(one["version"]),
            duration(one["uptime"]),
            *(
                f"{sum(front[name] for front in one['frontends']):,}"
                for name in ("request_rate", "denied_requests")
            ),
            printable(one["agent"]) or ("peer" if _verdicts(one) else "no backend"),
            _edge(one),
        )
    problems = [f"{one['socket']}: {one['problem']}" for one in reports if one["problem"]]
    made.caption = "\n".join(map(printable, problems)) or None
    return made


def _edge(report: dict[str, Any]) -> str:
    """Return the number of blocks and verdicts that an HAProxy has."""
    if report["edge"]:
        return f"{report['edge']['used']:,}"
    verdicts = _verdicts(report)
    return f"{sum(verdicts):,}" if verdicts else "no table"


def _verdicts(report: dict[str, Any]) -> list[int]:
    """Return the entries of each table in which an agent writes verdicts as HAProxy's peer."""
    names = ((one["name"].rpartition("/")[2], one["used"]) for one in report["tables"])
    return [used for name, used in names if name.startswith(VERDICT_PREFIX)]


def _edges(entries: list[dict[str, Any]]) -> RenderableType:
    rows = ((printable(e["socket"]), printable(e["key"]), _left(e["until"])) for e in entries)
    return new_table("socket", "key", "ends in#", rows=rows, title="HAProxy's edge table")


_VERDICTS = ("", "throttle", "block", "denylist", "throttle (shadow)", "block (shadow)")
"""What ``gpt2`` of a verdict means (haproxy/README.md, "Peers mode")."""


def _counted(entries: list[dict[str, Any]]) -> RenderableType:
    """Return a table of what HAProxies in peers mode have in their own tables."""
    rows = (
        (
            printable(entry["socket"]),
            printable(entry["table"]),
            printable(entry["key"]),
            printable(_told(entry)),
        )
        for entry in entries
    )
    return new_table("socket", "table", "key", "values", rows=rows, title="HAProxy's own tables")


def _told(entry: dict[str, Any]) -> str:
    values = entry["values"]
    if entry["table"].startswith(VERDICT_PREFIX):
        kind, end = values.get("gpt2", 0), values.get("gpt0", 0)
        shown = _VERDICTS[kind] if kind < len(_VERDICTS) else f"kind {kind}"
        return f"{shown}, {_left(end)}" if kind and end else "no verdict"
    periods = entry["periods"]
    return ", ".join(
        f"{name} {number:,}" + (f" in {duration(periods[name] / 1000)}" if name in periods else "")
        for name, number in values.items()
        if not name.startswith("gpt")
    )


def _left(until: int) -> str:
    seconds = until - time.time()
    return duration(seconds) if seconds > 0 else "ended"


def duration(seconds: float) -> str:
    """Return the two largest units of a duration in seconds, such as ``2h 5m``."""
    left, parts = int(seconds), []
    for name, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{name}")
            left %= size
    return " ".join(parts[:2]) or "0s"
