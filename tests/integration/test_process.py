"""How the process begins and ends: signals at any moment, and a disk that hangs."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratelimit.process import handover
from ratelimit.process.hold_signals import HELD
from tests.helpers.fleet import Node, until
from tests.helpers.world import PATIENCE
from tests.integration.test_service import Heirs, ended

pytestmark = pytest.mark.integration


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


def signals(pid: int, field: str) -> set[int]:
    """Return a set of signals out of the status of a process; see proc(5)."""
    (mask,) = re.findall(rf"(?m)^{field}:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text())
    return {number for number in range(1, 65) if int(mask, 16) >> number - 1 & 1}


def holds(pid: int) -> bool:
    """Tell whether a process keeps the signals of its start, or has a handler for them."""
    return signals(pid, "SigBlk") | signals(pid, "SigCgt") >= set(HELD)


def test_signals_of_the_first_moments_are_not_lost(folder: Path) -> None:
    it = Heirs(folder, "node", f'[store]\nstate_dir = "{folder}/state"\n')
    with it._log.open("ab") as log:
        it._process = subprocess.Popen(
            [sys.executable, "-m", "ratelimit", "serve", "--config", str(it._file)],
            stdout=log,
            stderr=log,
        )
    first = it._process.pid
    try:
        until(lambda: holds(first), "it is past the start of Python")
        os.kill(first, signal.SIGHUP)
        os.kill(first, signal.SIGUSR2)
        until(lambda: it.pid != first, f"a successor answers: {it.log()}")
        until(lambda: ended(first), "the first one ends")
        assert '"configuration reloaded"' in it.log()
        assert it._process.wait(PATIENCE) == 0
    finally:
        it.stop()


def test_a_successor_keeps_signals_from_its_birth_on(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, signal\n"
        "kept = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "os.write(int(os.environ['RATELIMIT_PREDECESSOR']), repr(kept).encode())\n"
    )
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = handover._spawn([], theirs)
        ours.settimeout(PATIENCE)
        assert ours.recv(1000) == repr(sorted(HELD)).encode()
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_short_command_is_ended_by_what_would_end_any(number: signal.Signals) -> None:
    # The tests may have been started with the signal ignored, as nohup does.
    ended = ["env", f"--default-signal={number.name.removeprefix('SIG')}"]
    command = [*ended, sys.executable, "-m", "ratelimit", "blocks", "list", "--watch", "--url"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen([*command, f"http://127.0.0.1:{server.getsockname()[1]}"])
        server.settimeout(PATIENCE)
        with server.accept()[0]:
            process.send_signal(number)
            assert process.wait(PATIENCE) == -number


def test_the_signal_to_stop_ends_it_while_a_thread_waits_for_the_disk(folder: Path) -> None:
    it = Node(folder, "node", "")
    it.start()
    try:
        until(lambda: '"agent started"' in it.log(), "it has started")
        assert it._process is not None
        threads = Path(f"/proc/{it._process.pid}/task")
        before = len(list(threads.iterdir()))
        it._file.unlink()
        os.mkfifo(it._file)  # whoever opens it waits for another end
        it._process.send_signal(signal.SIGHUP)
        until(lambda: len(list(threads.iterdir())) > before, "a thread reads it")
        assert it.ask("192.0.2.1").reason is None
        it._process.send_signal(signal.SIGTERM)
        assert it._process.wait(PATIENCE) == 1
        assert "the process did not end in time and was terminated" in it.log()
        assert '"agent stops"' in it.log()
    finally:
        it.stop(signal.SIGKILL)


# What a disk that hangs would do to the first file that the agent reads after its configuration.
_HANGS = """
import time
from ratelimit.config import Config
Config.read_lists = lambda self: time.sleep(3600)
from ratelimit.__main__ import main
main()
"""


def test_the_signal_to_stop_ends_it_while_it_starts(folder: Path) -> None:
    log = folder / "log"
    with log.open("ab") as written:
        process = subprocess.Popen([sys.executable, "-c", _HANGS, "serve"], stderr=written)
    try:
        # Not whether they are blocked: all are for a moment, whenever a thread is started.
        caught = functools.partial(signals, process.pid, "SigCgt")
        until(lambda: signal.SIGTERM in caught(), "it listens for signals")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1
        assert "the process did not end in time and was terminated" in log.read_text()
    finally:
        process.kill()
        process.wait()
