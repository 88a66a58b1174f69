"""The command ``ratelimit``.

Exit status: 0 success, 1 failure, 2 wrong usage or configuration. A user's mistake is reported in
one line on standard error, never as a stack trace.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ratelimit import __version__, engine
from ratelimit.cli.node import COMMANDS
from ratelimit.config import load
from ratelimit.exceptions import ApiError, ConfigError, RatelimitError
from ratelimit.model import Address
from ratelimit.notation import SECOND, format_duration, parse_host_port

if TYPE_CHECKING:
    from ratelimit.model import Limit


_LAZY = {
    "doctor": "ratelimit.cli.doctor",
    "haproxy": "ratelimit.cli.haproxy",
    "trusted-proxies": "ratelimit.cli.trusted_proxies",
}
"""Commands that are imported only when they are called, so that the others start faster."""


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LAZY:
            command: click.Command = getattr(
                import_module(_LAZY[cmd_name]), cmd_name.replace("-", "_")
            )
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a key may have any character
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            sys.exit(2)
        except BrokenPipeError:
            raise  # the reader has closed the pipe; click exits silently
        except (RatelimitError, OSError) as error:
            click.echo(f"ratelimit: {error}", err=True)
            sys.exit(2 if isinstance(error, ApiError) and error.status in (400, 422) else 1)


def _host_port(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> Address | None:
    if value is None:
        return None
    try:
        address = parse_host_port(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if address.port == 0:
        raise click.BadParameter("must be a port from 1 to 65535")
    return address


_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration in TOML; by default, built-in values and the environment.",
)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A rate limiter for HAProxy whose nodes share their counts."""


@main.command()
@click.option(
    "--backend",
    callback=_host_port,
    metavar="HOST:PORT",
    help="The application to protect; by default, a small demo application.",
)
@click.option(
    "--listen",
    callback=_host_port,
    metavar="HOST:PORT",
    help="Address on which HAProxy listens.",
)
@click.option(
    "--mode",
    type=click.Choice(["spoe", "peers"]),
    default="spoe",
    show_default=True,
    help="spoe: HAProxy asks the agent about each request; peers: HAProxy counts and tells the "
    "agent.",
)
@_config_option
def up(backend: Address | None, listen: Address | None, mode: str, path: Path | None) -> None:
    """Run the agent and HAProxy together until Ctrl-C."""
    from ratelimit.cli import up as together

    sys.exit(together.up(load(path), listen, backend, mode == "peers"))


@main.command()
@_config_option
def serve(path: Path | None) -> None:
    """Run the agent alone, for an HAProxy that is started separately."""
    from ratelimit import serve as service

    sys.exit(service.serve(load(path)))


@main.command()
@_config_option
def check(path: Path | None) -> None:
    """Validate the configuration and show its limits."""
    config = load(path)
    lists = config.read_lists()
    for exposed in config.exposed_files():
        click.echo(f"warning: {exposed}: readable by every user of this machine", err=True)
    for warning in config.warnings():
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{path or 'defaults'}: ok")
    click.echo("limits: " + "; ".join(map(_limit, config.limits_in_force())))
    if lists.allow or lists.deny:
        click.echo(f"lists: {lists.allow} networks allowed, {lists.deny} denied")


@main.command()
@click.argument("log")
@_config_option
@click.option("--limit", "name", default="default", metavar="NAME", help="The limit to apply.")
@click.option(
    "-n",
    "rows",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    metavar="ROWS",
    help="Maximum number of clients to show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay(log: str, path: Path | None, name: str, rows: int, as_json: bool) -> None:
    """Show which clients a limit would have blocked, from the access log LOG.

    LOG is HAProxy's HTTP log, or a log in the common or combined format, plain or gzip; - reads
    standard input.
    """
    from ratelimit.replay.accesslog import AccessLog
    from ratelimit.replay.report import Watch
    from ratelimit.replay.run import run

    config = load(path)
    names = [limit.name for limit in config.limits_in_force()]
    if name not in names:
        raise click.BadParameter(
            f"no such limit; the limits are {', '.join(names)}", param_hint="--limit"
        )
    with AccessLog(log) as opened, Watch(opened) as watch:
        report = run(opened, config, name, rows, watch)
    if as_json:
        click.echo(json.dumps(report.json(), indent=2))
    else:
        click.echo(f"limit {_limit(report.limit)}")
        report.show()


@main.command()
def version() -> None:
    """Show the version and whether the request path is compiled."""
    click.echo(f"ratelimit {__version__} ({'compiled' if engine.compiled() else 'pure'})")


for command in COMMANDS:
    main.add_command(command)


def _limit(limit: Limit) -> str:
    blocks = ", ".join(format_duration(seconds * SECOND) for seconds in limit.block)
    return (
        f"{limit.name}: {limit.rate} in {format_duration(limit.window)}, "
        f"{f'then blocked for {blocks}' if blocks else 'throttled only'}"
        f"{', shadow mode' if limit.shadow else ''}"
    )
