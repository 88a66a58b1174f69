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
    help="What the agent runs with; without it, the defaults and the environment.",
)
@click.option("--url", envvar="RATELIMIT_URL", help="The ops API; [ops] listen by default.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file with the token for it; also RATELIMIT_TOKEN.",
)
@click.option(
    "--probe",
    default="",
    metavar="URL",
    help="Send one request there, through HAProxy, and see whether the agent was asked.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    path: Path | None, url: str | None, token_file: Path | None, probe: str, as_json: bool
) -> None:
    """Prove the wiring end to end; say what is broken and how to mend it.

    Exit code 1 if anything is broken. One entry, which refuses nobody, is written to each edge
    table and removed.
    """
    # What it finds it says by itself, and --json is for programs.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    config = load(path)
    token = read_token(token_file) if token_file else os.environ.get("RATELIMIT_TOKEN", "")
    client = Client(url or f"http{str(config.ops.listen).removeprefix('tcp')}", token)
    with Console(stderr=True).status("Asking HAProxy, the agent and the store"):
        checks = asyncio.run(diagnose(config, client, probe))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            _show(check)
        broken = sum(check.state is State.BROKEN for check in checks)
        click.echo(f"{broken} of {len(checks)} checks found something broken")
    sys.exit(any(check.state is State.BROKEN for check in checks))


def _show(check: Check) -> None:
    state = click.style(f"{check.state:<{len(_INDENT)}}", fg=_COLOURS[check.state], bold=True)
    click.echo(f"{state}{check.subject}")
    for text in (check.finding, check.mend and f"mend: {check.mend}"):
        if text:
            click.echo(_INDENT + text)
