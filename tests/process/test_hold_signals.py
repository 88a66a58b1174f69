"""Signals of the first moments of a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ratelimit.process.hold_signals import HELD
from tests.helpers.fleet import until
from tests.helpers.signals import signals
from tests.helpers.world import PATIENCE
from tests.integration.test_service import Heirs, ended

pytestmark = pytest.mark.integration


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
