"""The application of ``ratelimit up`` without a backend."""

from __future__ import annotations

import subprocess
import sys
import urllib.request

import pytest

from tests.helpers.world import free_port


def test_demo_listens_where_it_is_told() -> None:
    """The application of docker-compose.yml."""
    port = free_port()
    command = [sys.executable, "-m", "ratelimit.cli.demo", f"127.0.0.1:{port}"]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}/x"
            for _ in range(200):
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        assert b"you requested /x" in answer.read()
                        break
                except OSError:
                    assert process.poll() is None
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.05)
            else:
                pytest.fail("the demo does not answer")
        finally:
            process.terminate()
        assert process.wait(5) == 0
