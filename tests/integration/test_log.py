"""An agent whose log can't be written answers as before."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit.api.client import Client
from tests.helpers.fleet import BLOCKED, Node, until
from tests.helpers.world import PATIENCE, free_port

pytestmark = pytest.mark.integration

LIMIT = "[limits.default]\nrate = 1\nblock = ['1h']\nfuse = 0\n"
PIPE = 4096

_CLIENTS = itertools.count()


class Logged(Node):
    """A node whose log goes to ``output``; ``state()`` is what its API says of it."""

    def __init__(self, folder: Path, output: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, "node", LIMIT)
        self.output = output
        self._port = free_port()
        monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{self._port}")

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = Client(f"http://127.0.0.1:{self._port}").get("/v1/status")
        return found

    def talks(self) -> None:
        """Have it log something: a block, within a second."""
        number = next(_CLIENTS)
        assert self.ask(f"198.18.{number >> 8}.{number & 255}", 2).reason == BLOCKED

    def ends(self) -> int:
        """Stop it as systemd does; return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)


@contextlib.contextmanager
def agent(folder: Path, output: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Logged]:
    made = Logged(folder, output, monkeypatch)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def test_the_reader_is_gone(
    folder: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(folder, pipe[1], monkeypatch) as it:
        os.close(pipe[0])

        def told() -> bool:
            it.talks()
            return bool(it.state()["log"]["problem"] == "Broken pipe")

        until(told, "it can't write its log")
        it.talks()
        assert it.state()["log"]["waiting"] > 0
        assert it.ends() == 0


def test_the_disk_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with agent(folder, full, monkeypatch) as it:
            it.talks()
            until(
                lambda: it.state()["log"]["problem"] == "No space left on device",
                "it can't write its log",
            )
            it.talks()
            assert it.ends() == 0
    finally:
        os.close(full)


def test_the_reader_hangs_and_goes_on(
    folder: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(folder, pipe[1], monkeypatch) as it:

        def full() -> bool:
            it.talks()
            return bool(it.state()["log"]["waiting"] > 2 * PIPE)

        until(full, "nothing is taken")
        until(lambda: it.state()["log"]["problem"] == "the reader does not read", "it is shown")
        assert it.ask("192.0.2.1").reason is None
        os.close(pipe[1])
        blocks = it.state()["blocklist"]["made"]
        with os.fdopen(pipe[0], "rb", closefd=False) as log:
            assert it._process is not None
            it._process.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in log]
        assert it._process.wait(PATIENCE) == 0
        told = [line for line in lines if line["event"] == "blocked"]
        more = sum(line["count"] for line in lines if line["event"] == "more blocked")
        # The end follows a report within the second, if the machine is busy.
        left_out = sum(
            line.get("left_out", 0)
            for line in lines
            if line["event"] == "blocked" or line.get("of") == "blocked"
        )
        assert len(told) + more + left_out == blocks, "nothing is missing"
        assert "agent stops" in [line["event"] for line in lines]


def test_the_end_does_not_wait_for_a_reader_that_hangs(
    folder: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(folder, pipe[1], monkeypatch) as it:

        def full() -> bool:
            it.talks()
            return bool(it.state()["log"]["waiting"] > 2 * PIPE)

        until(full, "nothing is taken")
        assert it.ends() == 0


def test_the_last_words_of_a_process_that_fails_come_out(folder: Path) -> None:
    program = (
        "import ratelimit.app as node\n"
        "class Failing(node.Limiter):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        raise TypeError('not thought of')\n"
        "node.Limiter = Failing\n"
        "from ratelimit.__main__ import main\n"
        "main()\n"
    )
    command = [Node.python, "-c", program, "serve"]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "not thought of" in json.loads(line)["exception"]


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_before_the_start(folder: Path, closed: str) -> None:
    node = Node(folder, "node", LIMIT, before=f"exec {closed}")
    node.start()
    try:
        assert node.ask("192.0.2.1", 2).reason == BLOCKED
    finally:
        node.stop()
