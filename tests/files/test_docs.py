"""The documentation says what the program does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import yaml
from click import Context

from ratelimit.cli.main import main
from ratelimit.config import Config, _Section

DOCS = Path(__file__).parent.parent.parent / "docs"


REQUIRED = object()


def documented() -> dict[str, dict[str, Any]]:
    """Return the default of each field of docs/configuration.md, by section."""
    found: dict[str, dict[str, Any]] = {}
    text = (DOCS / "configuration.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        name = re.fullmatch(r"\[\[?(\w+)(?:\.NAME)?\]\]?", title)
        if name is None:
            continue
        fields = found.setdefault(name[1], {})
        for entry in re.split(r"^### ", body, flags=re.MULTILINE)[1:]:
            field, _, rest = entry.partition("\n")
            assert field not in fields, f"{title} {field} is there twice"
            default = re.search(r"^(?:Default: `(.*)`|(Required))\.$", rest, re.MULTILINE)
            assert default, f"{title} {field} tells no default"
            fields[field] = (
                REQUIRED if default[2] else tomllib.loads(f"value = {default[1]}")["value"]
            )
    return found


def models() -> dict[str, type[_Section]]:
    """Return the model of each section."""
    found = {}
    for name, field in Config.model_fields.items():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, _Section):
                found[name] = part
    return found


def test_every_field_is_documented_with_its_default() -> None:
    """None is missing, none too many, and a file of all the defaults changes nothing."""
    found = documented()
    expected = models()
    assert set(found) == {
        name for name, model in expected.items() if model.model_fields.keys() - model.later
    }
    for name, fields in found.items():
        assert set(fields) == expected[name].model_fields.keys() - expected[name].later, name
        for field, default in fields.items():
            assert expected[name].model_fields[field].is_required() == (default is REQUIRED)
    found["limits"] = {"default": found["limits"]}
    whole: dict[str, Any] = {
        name: fields for name, fields in found.items() if REQUIRED not in fields.values()
    }
    assert Config(**whole).model_dump() == Config().model_dump()


def test_every_command_is_in_the_readme() -> None:
    text = (DOCS.parent / "README.md").read_text()
    told = set(re.findall(r"^\| `ratelimit ([\w-]+)[^`]*` \|", text, re.MULTILINE))
    assert told == set(main.list_commands(Context(main)))


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((DOCS.parent / "monitoring" / "alerts.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    _, _, listed = (DOCS / "operations.md").read_text().partition("\n## Alerts\n")
    sections = re.findall(r"(?m)^### (\w+)\n(\S.*)$", listed)
    assert [name for name, _ in sections] == alerts
    for group in rules["groups"]:
        for rule in group["rules"]:
            page = f"operations.md#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.runbooks }}/" + page
