"""SECURITY.md names tests and alerts that there are, and leaves no alert of a weaker moment out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)

NOT_OPEN = {
    "RatelimitManyBlocks",
    "RatelimitLogStuck",
    "RatelimitUnsignedEntries",
    "RatelimitWebhookFails",
    "RatelimitVersionsDiffer",
    "RatelimitPeerResyncs",
    # Of HAProxy and the application.
    "RatelimitHaproxyDown",
    "RatelimitEdgeRefuses",
    "RatelimitUnknownRefused",
    "RatelimitServersDown",
    "RatelimitNoServer",
    "RatelimitApplicationSlow",
}
"""Alerts of something in which no less is limited than at other times."""


def rows(section: str) -> list[list[str]]:
    """Return the cells of the tables of a section, without their heads."""
    _, _, found = TEXT.partition(f"\n## {section}\n")
    lines = found.partition("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return [row for row in cells if row[1:] and not set("".join(row)) <= set("-: ")]


@pytest.mark.parametrize("place", sorted(set(TESTS)), ids="::".join)
def test_each_test_is_there(place: tuple[str, str]) -> None:
    path, name = place
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_defence_has_a_test() -> None:
    defences = [row for row in rows("Trust boundaries") if row[0] != "defence"]
    assert len(defences) > 30
    for defence, *tests in defences:
        assert re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+`\s*)+", " ".join(tests)), defence


def test_each_moment_has_an_alert_and_each_alert_is_there() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    moments = [row for row in rows("When less is limited") if row[0] != "moment"]
    assert len(moments) > 15
    for moment, _, told in moments:
        assert re.fullmatch(r"(`Ratelimit\w+`\s*)+|none: .+", told), moment
    named = set(re.findall(r"Ratelimit\w+", " ".join(row[2] for row in moments)))
    assert named == alerts - NOT_OPEN
