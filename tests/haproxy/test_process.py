"""HAProxy as a child process: which program, which user, what it can see."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ratelimit.exceptions import StartError
from ratelimit.haproxy import process as haproxy


def test_haproxy_becomes_another_user_only_if_root_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert haproxy.unprivileged() is None
    socket = Path("/x/spop.sock")
    assert haproxy.confine("RATELIMIT_SPOP", socket, None) == {"RATELIMIT_SPOP": f"unix@{socket}"}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert haproxy.unprivileged() is not None
    monkeypatch.setattr(haproxy, "_ACCOUNTS", ("no-such-user",))
    with pytest.raises(StartError, match="no-such-user"):
        haproxy.unprivileged()


def test_without_haproxy_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(haproxy, "_SBIN", str(tmp_path))
    with pytest.raises(StartError, match="not installed; install it with: apt-get install haproxy"):
        asyncio.run(haproxy.find())
