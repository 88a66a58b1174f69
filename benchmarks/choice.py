"""The table that compares the modes: which one to take when, from published results."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.report import Record


@dataclass(frozen=True)
class Place:
    """Where a figure is: in the record of a benchmark."""

    benchmark: str
    table: str
    row: str
    column: str

    def text(self, records: dict[str, Record]) -> str:
        """Return the figure; a dash if the benchmark, or this part of it, has no results.

        Raises KeyError if the table has no such column.
        """
        record = records.get(self.benchmark)
        tables = {table.title: table for table in record.report.tables} if record else {}
        if self.table not in tables:
            return "-"
        table = tables[self.table]
        number = {column.name: n for n, column in enumerate(table.columns)}[self.column]
        cells = {row.name: row.cells[number] for row in table.rows}
        cell = cells.get(self.row)
        return cell.text(table.columns[number].digits) if cell else "-"


Value = str | Place
"""A word, or the place of a figure."""


@dataclass(frozen=True)
class Choice:
    """A line: a criterion; its values by SPOE, by peers and for HAProxy's own stick table; what to
    take.
    """

    criterion: str
    values: tuple[Value, Value, Value]
    take: str


HEAD = ["what counts", "SPOE", "peers", "stick table alone", "take"]

_SPOE, _PEERS, _STICK, _EITHER = "SPOE", "peers", "stick table", "either mode"


def _ratio(version: str) -> Choice:
    def place(kind: str) -> Place:
        return Place("end_to_end", "ratios", f"{version}, {kind} : alone", "a second")

    title = f"requests a second, as a part of those of HAProxy alone, HAProxy {version}"
    return Choice(title, (place(_SPOE), place(_PEERS), place(_STICK)), take=_PEERS)


def _cost(version: str) -> Choice:
    def place(kind: str) -> Place:
        return Place("end_to_end", "allowed traffic", f"{version}, {kind}", "agent, CPU us")

    title = f"CPU us of the agent a request, HAProxy {version}"
    return Choice(title, (place(_SPOE), place(_PEERS), "-"), take=_PEERS)


def _latency(percentile: str) -> Choice:
    def place(kind: str) -> Place:
        return Place("admission", "us added", f"{kind}, 50 % load", percentile)

    title = f"us added to a request at half load, {percentile}"
    return Choice(title, (place(f"{_SPOE}, unix socket"), place(_PEERS), place(_STICK)), _PEERS)


def _admitted(title: str, table: str, row: str) -> Choice:
    def place(mode: str) -> Place:
        return Place("admitted", table, row, mode)

    return Choice(title, (place("spoe"), place("peers"), "-"), take=_SPOE)


def _bursts(load: str) -> Choice:
    def place(counter: str) -> Place:
        return Place("accuracy", "counter", f"{load}: {counter}", "refused, %")

    title = f"% refused wrongly, limit of 100 a second, {load}"
    return Choice(title, (place("engine"), place("peers"), place("two buckets")), take=_EITHER)


CHOICES = (
    _ratio("2.6"),
    _ratio("3.4"),
    _cost("2.6"),
    _cost("3.4"),
    _latency("p50"),
    _latency("p99"),
    _bursts("bursts of 1000/s for 80 ms"),
    _admitted(
        "most admitted in a second, limit of 100, one client at 3,000 a second",
        "within a second",
        "one HAProxy, 3,000 a second",
    ),
    _admitted(
        "the same, spread over four HAProxies and two agents",
        "within a second",
        "four HAProxies, two agents, 3,000 a second",
    ),
    _admitted(
        "admitted before the block, limit of 100, one client at 60,000 a second",
        "in a flood",
        "nbthread 4, 60,000 a second",
    ),
    Choice('exact before the answer: `strict`, `sync_interval = "0"`', ("yes", "no", "no"), _SPOE),
    Choice("weights of requests: `hits`", ("yes", "no", "no"), _SPOE),
    Choice("errors, bytes, open requests: `counts`, `open`", ("no", "yes", "yes"), _PEERS),
    Choice("one count for all HAProxies, ladder, blocklist", ("yes", "yes", "no"), _EITHER),
)


def lines(records: dict[str, Record]) -> list[list[str]]:
    """Return the table, its head first."""
    found = [HEAD]
    for choice in CHOICES:
        texts = [v if isinstance(v, str) else v.text(records) for v in choice.values]
        found.append([choice.criterion, *texts, choice.take])
    return found
