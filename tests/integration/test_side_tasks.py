"""Nothing beside the answers ends the agent: what fails is shown, and the answers go on."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit.api.client import Client
from tests.helpers.fleet import Node, fleet, until
from tests.helpers.world import PATIENCE

pytestmark = pytest.mark.integration

_CLIENTS = itertools.count()

LOAD = '[load]\nhigh = 1\nhold = "1s"\n'


@contextlib.contextmanager
def node(folder: Path, config: str = "", name: str = "node", before: str = "") -> Iterator[Node]:
    """Run an agent; ``before`` is what its shell does before."""
    made = Node(folder, name, f'[store]\nstate_dir = "{folder}/{name}"\n{config}', before=before)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def client(of: Node) -> Client:
    """Return a client of its API."""
    return Client(f"http://{of.ops()}")


def status(of: Node) -> dict[str, Any]:
    found: dict[str, Any] = client(of).get("/v1/status")
    return found


def _says(of: Node, what: str) -> bool:
    return what in of.log()


def busy(of: Node) -> None:
    """Have the load be high: each second some clients more are allowed."""
    for _ in range(10):
        number = next(_CLIENTS)
        assert of.ask(f"198.18.{number >> 8 & 255}.{number & 255}").reason is None


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Stand for a HAProxy that answers all but ``show info`` with this; yield the commands."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        asked.append(peer.recv(10_000))
                        sane = asked[-1] in (b"show info\n", b"")
                        peer.sendall(b"Name: HAProxy\nProcess_num: 1\n\n" if sane else answer)

        threading.Thread(target=serve, daemon=True).start()
        yield asked
        listener.shutdown(socket.SHUT_RDWR)


ODD = [
    b"\xff",
    b"[]",
    b"9999999999999 [1, 2]",
    b"9999999999999 null",
    b"9999999999999 {}",
    b'9999999999999 {"version": 5, "since": 0, "allowed": 1}',
    b'9999999999999 {"version": "1", "since": 0, "allowed": "many"}',
    b'9999999999999 {"version": "1", "since": 0, "allowed": Infinity}',
    b'9999999999999 {"version": "1", "since": 0, "allowed": true}',
    b'9999999999999 {"version": "1", "since": "now", "allowed": 1}',
    b"9999999999999 " + b"[" * 100_000,
    b"9" * 5000 + b' {"version": "1", "since": 0}',
]
"""What may stand in the nodes' hash; a number of milliseconds keeps the heartbeats from it."""


def test_unexpected_content_in_the_list_of_nodes_ends_no_agent(folder: Path) -> None:
    with fleet(folder, LOAD) as made:
        one = made.add()
        with made.server.client() as redis:
            for number, text in enumerate(ODD):
                redis.hset("ratelimit:{fleet}:nodes", f"odd{number}", text)
        two = made.add()
        for each in (one, two):
            until(functools.partial(_says, each, "unreadable entry"), "it is told")
            assert each.ask("192.0.2.9").reason is None
        busy(one)
        until(lambda: '"load.high"' in one.log() or status(one)["nodes"] >= 2, "both are known")
        for each in (one, two):
            found = status(each)
            assert found["store"]["outages"] == 0, "it is no outage either"
            assert not [task for task in found["tasks"] if task["failures"]]


@pytest.mark.parametrize(
    "answer",
    [
        b"# pxname,nothing,\nweb,1\n\n",
        b"# pxname,svname,status,\na\0b\n\n",
        b"date_now: nan\n\n",
        b"\xff\xfe\n\n",
    ],
)
def test_an_unreadable_answer_of_haproxy_ends_no_agent(folder: Path, answer: bytes) -> None:
    path = folder / "haproxy.sock"
    config = f'{LOAD}[haproxy]\nsockets = ["{path}"]\n'
    with (
        answering(path, answer) as asked,
        node(folder, config) as it,
    ):

        def told() -> bool:
            busy(it)
            return any(b"show stat" in command for command in asked)

        until(told, "HAProxy is asked for its servers")
        found = status(it)
        assert found["haproxy"][0]["problem"]
        assert not [task for task in found["tasks"] if task["failures"]]
        assert it.ask("192.0.2.9").reason is None


def test_the_watchdog_is_fed_and_answers_go_on_without_a_free_descriptor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        contextlib.ExitStack() as stack,
    ):
        manager.bind(f"{folder}/notify")
        manager.settimeout(PATIENCE)
        it = stack.enter_context(node(folder, before="ulimit -n 64"))
        while b"READY=1" not in manager.recv(1000):
            pass
        for _ in range(80):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(folder / "node.sock"))
        until(lambda: it.descriptors() == 64, "none is free")
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                manager.recv(1000)
        manager.settimeout(PATIENCE)
        for _ in range(3):
            assert manager.recv(1000) == b"WATCHDOG=1"
        assert it.ask("192.0.2.9").reason is None


def test_a_load_that_is_set_by_a_reload_is_watched(folder: Path) -> None:
    with node(folder) as it:
        it.configure(LOAD)
        until(lambda: '"configuration reloaded"' in it.log(), "it is taken")
        host, _, port = it.ops().rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as listener:
            listener.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            listener.settimeout(0.2)
            heard = b""

            def told() -> bool:
                nonlocal heard
                busy(it)
                with contextlib.suppress(TimeoutError):
                    heard += listener.recv(65536)
                return b"event: load.high" in heard

            until(told, "the load is high")
