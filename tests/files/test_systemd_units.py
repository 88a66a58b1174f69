"""The units of systemd: well-formed, hardened, and of this program."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ratelimit.config import load
from ratelimit.process.hold_signals import HELD

UNITS = Path(__file__).parent.parent.parent / "systemd"
PROGRAM = "/opt/ratelimit/bin/ratelimit"

MOST_EXPOSURE = 12
"""In tenths, as ``systemd-analyze security`` counts; the network alone is 8 of them."""


def value(unit: str, name: str) -> list[str]:
    return re.findall(f"(?m)^{name}=(.*)$", (UNITS / unit).read_text())


def test_the_units_are_well_formed(tmp_path: Path) -> None:
    for unit in ("ratelimit.service", "ratelimit.socket"):
        # Where it is to be installed there is nothing here, and that would be an error.
        text = (UNITS / unit).read_text().replace(PROGRAM, sys.executable)
        (tmp_path / unit).write_text(text)
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_early_signals_are_held_back_while_python_starts() -> None:
    (command,) = value("ratelimit.service", "ExecStart")
    words = command.split()
    before = words[: words.index(PROGRAM)]
    program = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    ran = subprocess.run(
        [*before, sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == repr(sorted(HELD))


def test_the_service_is_hardened() -> None:
    ran = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={MOST_EXPOSURE}",
            str(UNITS / "ratelimit.service"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_the_sockets_are_those_of_the_shipped_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RATELIMIT_OPS__LISTEN")
    config = load(UNITS / "ratelimit.toml")
    (spop,) = config.agent.listen
    ops = config.ops.listen
    assert value("ratelimit.socket", "ListenStream") == [spop.path, f"{ops.host}:{ops.port}"]
    # The service keeps the folder of the file, and only its own group can open the file.
    (folder,) = value("ratelimit.service", "RuntimeDirectory")
    assert Path(spop.path).parent == Path("/run", folder)
    assert value("ratelimit.service", "RuntimeDirectoryPreserve") == ["yes"]
    assert value("ratelimit.socket", "SocketMode") == ["0660"]
    (user,), (group,) = (value("ratelimit.service", name) for name in ("User", "Group"))
    assert value("ratelimit.socket", "SocketUser") == [user]
    assert value("ratelimit.socket", "SocketGroup") == [group]


def test_the_user_of_the_service_is_made() -> None:
    (user,) = value("ratelimit.service", "User")
    program = shutil.which("systemd-sysusers")
    assert program is not None
    ran = subprocess.run(
        [program, "--dry-run", str(UNITS / "ratelimit.sysusers")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Creating user '{user}'" in ran.stdout + ran.stderr or f"{user}:" in (
        Path("/etc/passwd").read_text()
    )
