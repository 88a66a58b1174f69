"""Tables of the commands; ``test_node`` has them with a node."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from ratelimit.cli.tables import clients_table, duration, explanation, new_table

if TYPE_CHECKING:
    from rich.console import RenderableType


def shown(table: RenderableType) -> list[str]:
    """Return the lines of a table with single spaces."""
    written = io.StringIO()
    Console(file=written, width=200, markup=False).print(table)
    return [" ".join(line.split()) for line in written.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.9, "59s"), (3661, "1h 1m"), (3600, "1h"), (90_061, "1d 1h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_figures_are_at_the_right_and_long_keys_are_folded_not_cut() -> None:
    written = io.StringIO()
    table = new_table("key", "hits#", rows=[["[red]a[/red]", "7"], ["k" * 50, "1234"]])
    Console(file=written, width=40, markup=False).print(table)
    lines = written.getvalue().splitlines()
    assert "[red]a[/red]" in lines[3] and lines[3].rstrip().endswith("   7")
    assert written.getvalue().count("k") == 50 + 1


BUSY = {"key": "192.0.2.7", "limit": "default", "rate": 3.0, "hits": 3, "until": 0}


def test_clients_have_what_haproxies_have_counted_themselves_if_they_have() -> None:
    asked = shown(clients_table([BUSY | {"haproxy": None}]))
    assert "192.0.2.7 default 3.0 3" in asked and "HAProxy" not in " ".join(asked)
    own = {"requests": 1_300, "refused": 7, "open": None}
    lines = shown(clients_table([BUSY | {"haproxy": own}, BUSY | {"haproxy": None}]))
    assert "192.0.2.7 default 3.0 3 1,300 7" in lines and "192.0.2.7 default 3.0 3" in lines
    assert "HAProxy's count it refused" in lines[1] and "open" not in lines[1]


@pytest.mark.parametrize(
    ("kind", "end", "text"),
    [
        (1, 600, "throttle, 9m 59s"),
        (2, 600, "block, 9m 59s"),
        (5, 600, "block (shadow), 9m 59s"),
        (9, 600, "kind 9, 9m 59s"),
        (2, -5, "block, ended"),
        (0, 0, "no verdict"),
    ],
)
def test_an_explanation_has_the_entries_of_haproxys_own_tables(
    kind: int, end: int, text: str
) -> None:
    counts = {"http_req_cnt": 30, "http_req_rate": 3, "gpc0": 2, "gpt0": 5}
    entries: list[dict[str, Any]] = [
        {"table": "rl_default", "values": counts, "periods": {"http_req_rate": 10_000}},
        {
            "table": "rlv_default",
            "values": {"gpt0": end and time.time() + end, "gpt1": 0, "gpt2": kind},
            "periods": {},
        },
    ]
    known = {
        "key": "192.0.2.7",
        "lists": "",
        "limits": [],
        "by_hand": [],
        "edge": [],
        "counted": [entry | {"socket": "/s", "key": "192.0.2.7"} for entry in entries],
        "note": "",
    }
    lines = shown(explanation(known))
    assert "/s rl_default 192.0.2.7 http_req_cnt 30, http_req_rate 3 in 10s, gpc0 2" in lines
    assert f"/s rlv_default 192.0.2.7 {text}" in lines
