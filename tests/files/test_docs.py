"""The documentation says what the program does."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from click import Argument, Command, Context, Group, Option

from ratelimit.cli.main import main
from ratelimit.config import Config
from ratelimit.config.sections import Section

DOCS = Path(__file__).parent.parent.parent / "docs"
SPOP = DOCS.parent / "ratelimit" / "spop"


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


def models() -> dict[str, type[Section]]:
    """Return the model of each section."""
    found = {}
    for name, field in Config.model_fields.items():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                found[name] = part
    return found


def test_every_field_is_documented_with_its_default() -> None:
    """None is missing, none too many, and a file of all the defaults changes nothing."""
    found = documented()
    expected = models()
    assert set(found) == set(expected)
    reserved = re.findall(
        r"`(\w+)` of `\[(\w+)\]` is reserved", (DOCS / "configuration.md").read_text()
    )
    for name, fields in found.items():
        later = {field for field, section in reserved if section == name}
        assert set(fields) == expected[name].model_fields.keys() - later, name
        for field, default in fields.items():
            assert expected[name].model_fields[field].is_required() == (default is REQUIRED)
    found["limits"] = {"default": found["limits"]}
    whole: dict[str, Any] = {
        name: fields for name, fields in found.items() if REQUIRED not in fields.values()
    }
    assert Config(**whole).model_dump() == Config().model_dump()


def commands(command: Command, path: str = "") -> Iterator[tuple[str, Command]]:
    """Yield each command that can be called, with its name."""
    if isinstance(command, Group):
        context = Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")
    else:
        yield path.strip(), command


def test_every_command_and_option_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    expected = {}
    for name, command in commands(main):
        of_command = [one for one in command.params if isinstance(one, Option)]
        arguments = [one for one in command.params if isinstance(one, Argument)]
        expected[name] = {option.opts[0] for option in of_command}
        heading = re.search(rf"^### `ratelimit {name}( [^`]+)?`$", text, re.MULTILINE)
        assert heading, name
        assert len((heading[1] or "").split()) == len(arguments), name
    found = {}
    for section in re.split(r"^###? ", text, flags=re.MULTILINE):
        if title := re.match(r"`ratelimit ([a-z -]*[a-z])", section):
            shared = re.findall(r"^Common options: (.*)\.$", section, re.MULTILINE)
            rows = re.findall(r"^\| `(-\S+?)[ `]", section, re.MULTILINE)
            found[title[1]] = {*rows, *re.findall("`([^`]+)`", " ".join(shared))}
    assert found == expected


def test_every_document_is_in_the_readme() -> None:
    text = (DOCS.parent / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w/]+\.md)\)", text))
    there = {f"docs/{path.name}" for path in DOCS.glob("*.md")}
    there |= {path.name for path in DOCS.parent.glob("*.md")} | {"haproxy/README.md"}
    assert linked == there - {"README.md"}
    assert len(text.splitlines()) < 150


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *DOCS.glob("*.md"), root / "haproxy" / "README.md"]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in link
    ]
    assert len(links) > 50
    broken = []
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.relative_to(root)}: {link}")
    assert not broken


def entries(section: str) -> str:
    """Return a section of docs/spoe.md."""
    _, _, found = (DOCS / "spoe.md").read_text().partition(f"\n## {section}\n")
    return found.partition("\n## ")[0]


def test_every_argument_of_a_message_is_documented() -> None:
    source = ast.parse((SPOP / "notify.py").read_text())
    read = {
        argument.value.decode()
        for call in ast.walk(source)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "same"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, bytes)
    }
    assert set(re.findall(r"^### (\w+)$", entries("Arguments"), re.MULTILINE)) == read
    shipped = (DOCS.parent / "haproxy" / "spoe.conf").read_text()
    lines = re.findall(r"^ +args (.*)$", shipped + entries("Arguments"), re.MULTILINE)
    assert {word.partition("=")[0] for line in lines for word in line.split()} == read


def test_every_variable_is_documented() -> None:
    source = ast.parse((SPOP / "ack.py").read_text())
    sent = {
        call.args[0].value.decode()
        for call in ast.walk(source)
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") == "_head"
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, bytes)
    }
    documented = re.findall(r"^\| `(\w+)` \|", entries("Variables"), re.MULTILINE)
    assert set(documented) == sent
    shipped = (DOCS.parent / "haproxy" / "spoe.conf").read_text()
    (registered,) = re.findall("register-var-names (.*)", shipped)
    assert registered.split() == documented


def test_the_groups_are_those_of_the_shipped_file() -> None:
    shipped = (DOCS.parent / "haproxy" / "spoe.conf").read_text()
    groups = re.findall(r"^spoe-group (\w+)\n +messages (\w+)$", shipped, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", entries("Messages"), re.MULTILINE)
    assert rows == groups


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
