"""How the process begins and ends: signals at any moment, and a disk that hangs."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fleet import until
from tests.helpers.signals import signals
from tests.helpers.world import PATIENCE

pytestmark = pytest.mark.integration


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
