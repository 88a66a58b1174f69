"""Tables of the commands; ``test_node`` has them with a node."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ratelimit.cli.tables import duration, new_table


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
