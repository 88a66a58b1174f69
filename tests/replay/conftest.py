from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ratelimit.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from click.testing import Result


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def haproxy(milliseconds: int, client: str = "192.0.2.7") -> str:
    """A request so long after noon."""
    at = NOON + timedelta(milliseconds=milliseconds)
    return (
        f"{client}:40112 [{at:%d/%b/%Y:%H:%M:%S}.{at.microsecond // 1000:03}] web app/app1"
        ' 0/0/0/1/1 200 104 - - ---- 1/1/0/0/0 0/0 "GET / HTTP/1.1" allow - 0 -'
    )


def combined(second: int, client: str = "192.0.2.7") -> str:
    at = NOON + timedelta(seconds=second)
    return (
        f'{client} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "GET / HTTP/1.1" 200 104'
        ' "https://a.example/" "Mozilla/5.0"'
    )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["replay", *arguments], prog_name="ratelimit")


class Desk:
    """A folder with a log and a configuration."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "access.log"
        self.config = folder / "r.toml"

    def write(self, lines: Iterable[str], config: str = "") -> None:
        self.log.write_text("".join(f"{line}\n" for line in lines))
        self.config.write_text(f"[agent]\nmax_clients = 1000\n{config}")

    def found(self, lines: Iterable[str], config: str = "", *arguments: str) -> dict[str, Any]:
        """What programs are told."""
        self.write(lines, config)
        result = run(str(self.log), "--config", str(self.config), "--json", *arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        found: dict[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# 150 requests in as many milliseconds; the 101st earns a block of 10 s from the next whole
# second, 12:00:01, on. One more meets its last millisecond, and one comes after it.
ATTACK = [haproxy(n) for n in range(150)] + [haproxy(10_999), haproxy(11_000)]
