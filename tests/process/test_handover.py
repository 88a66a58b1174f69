"""How a successor is started; tests/integration/test_handover.py has whole processes."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from ratelimit.process import handover
from ratelimit.process.hold_signals import HELD
from tests.helpers.world import PATIENCE

pytestmark = pytest.mark.integration


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
