"""The command line: what it passes on, what it prints, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ratelimit import __version__
from ratelimit import serve as service
from ratelimit.cli import up as together
from ratelimit.cli.main import main
from ratelimit.exceptions import StartError
from ratelimit.model import Address

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from ratelimit.config import Config


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="ratelimit")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the service was asked to run, instead of running it."""
    calls: list[tuple[Any, ...]] = []

    def up(config: Config, listen: Address | None, backend: Address | None, peers: bool) -> int:
        calls.append((config, listen, backend, peers))
        return 0

    def serve(config: Config) -> int:
        calls.append((config,))
        return 0

    monkeypatch.setattr(together, "up", up)
    monkeypatch.setattr(service, "serve", serve)
    return calls


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text("[limits.login]\nrate = 5\nwindow = '1m'\nblock = []\n")
    return path


def test_up_without_options(started: list[tuple[Any, ...]]) -> None:
    assert run("up").exit_code == 0
    ((config, listen, backend, peers),) = started
    assert [limit.name for limit in config.limits_in_force()] == ["default", "unknown"]
    assert (listen, backend, peers) == (None, None, False)


def test_up_with_options(started: list[tuple[Any, ...]], file: Path) -> None:
    result = run(
        *("up", "--listen", "[::1]:80", "--backend", "app.example:8000"),
        *("--mode", "peers", "--config", str(file)),
    )
    assert result.exit_code == 0
    ((config, listen, backend, peers),) = started
    assert peers
    assert [limit.name for limit in config.limits_in_force()] == ["default", "login", "unknown"]
    assert listen == Address("::1", 80)
    assert backend == Address("app.example", 8000)


def test_serve(started: list[tuple[Any, ...]], file: Path) -> None:
    assert run("serve", "--config", str(file)).exit_code == 0
    ((config,),) = started
    assert config.limits_in_force()[1].rate == 5


def test_the_exit_code_is_the_service_s(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "serve", lambda _: 1)
    assert run("serve").exit_code == 1
    assert not started


def test_check(file: Path) -> None:
    result = run("check", "--config", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{file}: ok\n"
        "limits: default: 100 in 1s, then blocked for 10s, 1m, 10m, 1h; "
        "login: 5 in 1m, throttled only; unknown: 100 in 1s, throttled only\n"
    )


def test_check_without_a_file() -> None:
    assert run("check").stdout.startswith("defaults: ok\n")


@pytest.mark.parametrize("command", ["check", "serve", "up"])
def test_a_wrong_file_is_told_in_lines(
    started: list[tuple[Any, ...]], tmp_path: Path, command: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[limits.default]\nrate = 0\nx = 1\n")
    result = run(command, "--config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"{path}: limits.default.rate: must be greater than or equal to 1\n"
        f"{path}: limits.default.x: unknown field\n"
    )
    assert not started


def test_a_file_that_is_not_there() -> None:
    result = run("check", "--config", "no/such/file")
    assert result.exit_code == 2
    assert result.stderr == "no/such/file: No such file or directory\n"


def test_what_keeps_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    def up(*_: object) -> int:
        raise StartError("HAProxy is not installed")

    monkeypatch.setattr(together, "up", up)
    result = run("up")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "ratelimit: HAProxy is not installed\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["up", "--backend", "8080"],
        ["up", "--listen", "tcp://127.0.0.1:80"],
        ["up", "--listen", "127.0.0.1:65536"],
        ["serve", "--nonsense"],
        ["check", "more"],
    ],
)
def test_wrong_use(started: list[tuple[Any, ...]], arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ratelimit ")
    assert not started


def test_help_of_every_command() -> None:
    for command in main.commands:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"Usage: ratelimit {command}" in result.stdout


def test_version_of_the_installed_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ratelimit", "version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout in (
        f"ratelimit {__version__} (compiled)\n",
        f"ratelimit {__version__} (pure)\n",
    )


def test_check_warns_of_settings_without_effect_in_peers_mode(file: Path) -> None:
    file.write_text("[agent]\npeers = ['unix:///p.sock']\n[limits.default]\nheaders = true\n")
    result = run("check", "--config", str(file))
    assert result.exit_code == 0
    assert f"warning: {file}: limits.default.headers: no effect" in result.stderr
