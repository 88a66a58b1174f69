"""``ratelimit doctor``."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path

import click
import structlog
from rich.console import Console

from ratelimit.api.client import Client, read_token
from ratelimit.config import load
from ratelimit.doctor import Check, State, diagnose

_COLOURS = {State.OK: "green", State.BROKEN: "red", State.UNSURE: "yellow"}
_INDENT = " " * 8


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The agent's configuration in TOML; by default, built-in values and the environment.",
)
@click.option(
    "--url", envvar="RATELIMIT_URL", help="URL of the API; by default, the address of [ops] listen."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with the API token; RATELIMIT_TOKEN may hold the token itself.",
)
@click.option(
    "--probe",
    default="",
    metavar="URL",
    help="Send one request to this URL through HAProxy and check that it reaches the agent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    path: Path | None, url: str | None, token_file: Path | None, probe: str, as_json: bool
) -> None:
    """Check the whole path from HAProxy to the store; print what is broken and how to fix it.

    Exits with status 1 if a check fails. Writes one entry, which blocks no client, to each edge
    table and removes it.
    """
    # The findings are the output; log lines would break --json.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    config = load(path)
    token = read_token(token_file) if token_file else os.environ.get("RATELIMIT_TOKEN", "")
    client = Client(url or f"http{str(config.ops.listen).removeprefix('tcp')}", token)
    with Console(stderr=True).status("Checking HAProxy, the agent and the store"):
        checks = asyncio.run(diagnose(config, client, probe))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            _show(check)
        broken = sum(check.state is State.BROKEN for check in checks)
        click.echo(f"{broken} of {len(checks)} checks failed")
    sys.exit(any(check.state is State.BROKEN for check in checks))


def _show(check: Check) -> None:
    state = click.style(f"{check.state:<{len(_INDENT)}}", fg=_COLOURS[check.state], bold=True)
    click.echo(f"{state}{check.subject}")
    for text in (check.finding, check.fix and f"fix: {check.fix}"):
        if text:
            click.echo(_INDENT + text)
