"""A reload or a hand-over that can't be done changes nothing, whatever the reason."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ratelimit.exceptions import ApiError
from tests.helpers.fleet import until
from tests.integration.test_service import Heirs, ended, spop
from tests.integration.test_side_tasks import client, status

pytestmark = pytest.mark.integration

ADDRESS = "192.0.2.1"

# An agent for which the system has no thread, process or file descriptor more, as soon as a file is
# there. Limits of the system would do it too, but not for root.
_STARVED = """
import errno, os, sys, threading
flag = sys.argv.pop(1)
start, spawn = threading.Thread.start, os.posix_spawn
def start_thread(thread):
    if os.path.exists(flag):
        raise RuntimeError("can't start new thread")
    start(thread)
def posix_spawn(*args, **kwargs):
    if os.path.exists(flag):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return spawn(*args, **kwargs)
threading.Thread.start, os.posix_spawn = start_thread, posix_spawn
from ratelimit.cli.main import main
main(prog_name="ratelimit")
"""


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a receiver of webhooks and the paths that it was told at."""
    told: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", told
        server.shutdown()


def config(folder: Path, rate: int = 100, more: str = "") -> str:
    return (
        f'[store]\nstate_dir = "{folder}/state"\n'
        f'[limits.default]\nrate = {rate}\nwindow = "1m"\nblock = ["1m"]\n{more}'
    )


def hooks(*urls: str) -> str:
    return "".join(f'[[webhooks]]\nurl = "{url}"\nevents = ["block"]\n' for url in urls)


def node(folder: Path, before: str = "") -> Heirs:
    return Heirs(folder, "node", config(folder), before=before)


def reloads(it: Heirs) -> int:
    return it.log().count('"configuration reloaded"')


def asked_to_hand_over(it: Heirs, said: str) -> None:
    """Have it try, and wait until it says that it could not."""
    before = it.log().count(said)
    os.kill(it.pid, signal.SIGUSR2)
    until(lambda: it.log().count(said) > before, said)


def test_webhooks_that_come_go_and_move_by_reloads(folder: Path) -> None:
    it = node(folder)
    it.start()
    try:
        with receiver() as (url, told):

            def told_at(number: int, *paths: str) -> None:
                """Have it take these receivers, and make a block that all of them are told of."""
                it.configure(config(folder, 1, hooks(*(url + path for path in paths))))
                until(lambda: reloads(it) == number, "it is taken")
                told.clear()
                assert it.ask(f"192.0.2.{number}", hits=2).reason
                until(lambda: sorted(told) == sorted(paths), "all are told, and no other")

            told_at(1, "/a")
            told_at(2, "/b", "/a")
            told_at(3, "/a", "/b")
            told_at(4, "/c", "/b")
            told_at(5, "/b")
            told_at(6)
            told_at(7, "/a")
        assert not [task for task in status(it)["tasks"] if task["failures"]]
    finally:
        it.stop()
    assert "Traceback" not in it.log() and "exception" not in it.log()


def test_without_a_thread_or_a_process_more_nothing_changes(folder: Path) -> None:
    flag = folder / "none"
    it = node(folder)
    it.program = ["-c", _STARVED, str(flag)]
    it.start()
    try:
        until(lambda: '"agent started"' in it.log(), "it has started")
        flag.touch()
        it.configure(config(folder, 1))
        until(lambda: "can't start a thread to read the files" in it.log(), "it is told")
        with pytest.raises(ApiError, match="can't start a thread") as caught:
            client(it).post("/v1/reload", {})
        assert caught.value.status == 503
        assert it.ask(ADDRESS, 50).reason is None, "the limit in force is the one before"
        asked_to_hand_over(it, "no successor can be started; this process continues")
        assert it.ask(ADDRESS).reason is None
        flag.unlink()
        assert client(it).post("/v1/reload", {})["ok"]
        assert it.ask("192.0.2.2", 2).reason
        it.hand_over()
        assert it.ask("192.0.2.2").reason, "the successor knows of it"
    finally:
        it.stop()


def test_while_the_interpreter_is_replaced_nothing_changes(folder: Path) -> None:
    interpreter = folder / "venv"
    interpreter.symlink_to(sys.prefix)
    it = node(folder)
    it.python = str(interpreter / "bin" / Path(sys.executable).name)
    it.start()
    try:
        interpreter.unlink()
        asked_to_hand_over(it, "no successor can be started; this process continues")
        interpreter.mkdir()
        (interpreter / "bin").mkdir()
        Path(it.python).write_text("half of it")
        asked_to_hand_over(it, "no successor can be started; this process continues")
        Path(it.python).chmod(0o755)
        asked_to_hand_over(it, "this process continues")
        it.configure(config(folder, 1))
        until(lambda: reloads(it) == 1, "a reload needs none")
        assert it.ask(ADDRESS, 2).reason
    finally:
        it.stop()


def test_few_file_descriptors_are_enough_and_none_changes_nothing(folder: Path) -> None:
    it = node(folder, "ulimit -n 64")
    it.start()
    try:
        with contextlib.ExitStack() as stack:
            until(lambda: '"agent started"' in it.log(), "it has started")
            while it.descriptors() < 64:
                stack.enter_context(spop(str(folder / "node.sock")))
            asked_to_hand_over(it, "no successor can be started; this process continues")
            it.configure(config(folder, 1))
            until(lambda: '"configuration not reloaded' in it.log(), "it can't be read")
            assert it.ask(ADDRESS, 50).reason is None
        until(lambda: it.descriptors() < 50, "the connections have ended")
        it.hand_over()
        assert it.ask(ADDRESS, 2).reason
    finally:
        it.stop()
    assert ended(it.pid)


def test_a_reload_says_what_it_does_not_take(folder: Path) -> None:
    it = node(folder)
    it.start()
    try:
        more = '[agent]\nmax_clients = 5000\n[ops]\ntoken_file = ""\n'
        it._file.write_text(
            config(folder).replace("[store]", f'{more}[store]\non_outage = "share"')
        )
        for _ in range(2):  # what the first one has read runs no more than before
            taken = client(it).post("/v1/reload", {})
            assert taken["ok"]
            assert taken["restart"] == ["agent.listen", "agent.max_clients", "store.on_outage"]
    finally:
        it.stop()
