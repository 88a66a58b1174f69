"""The command line as a user runs it: a process of its own, and the lines that it prints."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from tests.helpers.world import PATIENCE


@contextlib.contextmanager
def command(*words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ratelimit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **env},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


def line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read what the process prints up to the line with ``pattern``."""
    assert process.stdout is not None
    seen = []
    for printed in process.stdout:
        seen.append(printed)
        found = re.search(pattern, printed)
        if found:
            return found
    raise AssertionError(f"{pattern} was never printed: {''.join(seen)}")
