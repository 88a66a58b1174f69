"""The end of a process has a limit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.fleet import Node, until
from tests.helpers.world import PATIENCE

pytestmark = pytest.mark.integration


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
