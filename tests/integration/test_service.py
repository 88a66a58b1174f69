"""The agent as systemd runs it, and the agent that hands over to a successor."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import wire
from tests.helpers.fleet import BLOCKED, Node, fleet, until
from tests.helpers.world import PATIENCE, World, free_port, run
from tests.integration.test_outages import questions
from tests.integration.visitors import load, more

pytestmark = pytest.mark.integration

RATE = 100
LIMIT = f'[limits.default]\nrate = {RATE}\nwindow = "1m"\nblock = ["1m"]\n'
CLIENT = "192.0.2.1"


@pytest.fixture
def manager(folder: Path) -> Iterator[socket.socket]:
    """Yield the socket on which a service manager hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


def hears(manager: socket.socket, word: bytes) -> bytes:
    """Wait until the manager hears a word; return the message."""
    while word not in (message := manager.recv(1000)):
        pass
    return message


def spop(address: str | tuple[str, int]) -> socket.socket:
    """Connect as HAProxy does."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    sock.sendall(wire.hello())
    (hello,) = wire.frames(Node._read(sock, 1))
    assert hello.kind == wire.AGENT_HELLO
    return sock


def health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        return connection.getresponse().status


@contextlib.contextmanager
def activated(folder: Path, config: str, *listen: str) -> Iterator[subprocess.Popen[str]]:
    """Run the agent by ``systemd-socket-activate``, which starts it at the first connection."""
    file = folder / "ratelimit.toml"
    file.write_text(config)
    environment = {"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "30000"}
    passed = [f"--setenv={name}" for name in ("STATE_DIRECTORY", *environment)]
    process = subprocess.Popen(
        [
            "systemd-socket-activate",
            *(f"--listen={one}" for one in listen),
            *passed,
            *(sys.executable, "-m", "ratelimit", "serve", "--config", str(file)),
        ],
        env={k: v for k, v in os.environ.items() if not k.startswith("RATELIMIT_")} | environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for _ in listen:
            assert "Listening on" in process.stderr.readline()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def test_sockets_of_systemd_are_used_and_it_is_told_how_the_agent_is(
    folder: Path, manager: socket.socket
) -> None:
    path, port, ops = f"{folder}/spop.sock", free_port(), free_port()
    config = (
        f'[agent]\nlisten = ["tcp://127.0.0.1:{port}", "unix://{path}"]\n'
        f'[ops]\nlisten = "127.0.0.1:{ops}"\n'
    )
    listen = (f"127.0.0.1:{port}", path, f"127.0.0.1:{ops}")
    with activated(folder, config, *listen) as process:
        with spop(path), spop(("127.0.0.1", port)):
            assert health(ops) == 200
            hears(manager, b"READY=1")
            for _ in range(3):
                hears(manager, b"WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            assert re.search(rb"RELOADING=1\nMONOTONIC_USEC=\d+", hears(manager, b"RELOADING=1"))
            hears(manager, b"READY=1")
        process.terminate()
        hears(manager, b"STOPPING=1")
        assert process.wait(PATIENCE) == 0
    assert os.path.exists(path), "the file is systemd's to remove"


def test_a_socket_of_systemd_that_the_configuration_does_not_name(folder: Path) -> None:
    port = free_port()
    config = '[agent]\nlisten = ["tcp://127.0.0.1:9"]\n[ops]\nlisten = "127.0.0.1:0"\n'
    with activated(folder, config, f"127.0.0.1:{port}") as process:
        socket.create_connection(("127.0.0.1", port)).close()
        _, said = process.communicate(timeout=PATIENCE)
        assert f"passed a socket on tcp://127.0.0.1:{port}, which is neither in agent" in said
        assert process.returncode == 1


class Heirs(Node):
    """A node whose process is followed by others."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        answering = re.findall(r'"successor": (\d+)', self.log().rpartition("answers")[0])
        return int(answering[-1]) if answering else self._process.pid

    def hand_over(self) -> None:
        """Have a successor follow, and connect to it."""
        before = self.pid
        os.kill(before, signal.SIGUSR2)
        try:
            until(lambda: self.pid != before, "a successor answers")
        except AssertionError as error:
            error.add_note(self.log())
            raise
        until(lambda: ended(before), "the predecessor ends")
        assert self._sock is not None
        self._sock.close()
        self._sock = spop(str(self._path))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        last = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(last, number)
        until(lambda: ended(last), "the last one ends")
        super().stop(number)


def ended(pid: int) -> bool:
    """Tell whether a process has ended; whose child it is may not have asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_a_successor_takes_over_sockets_and_blocks(folder: Path, store: str) -> None:
    with contextlib.ExitStack() as stack:
        config = f'[store]\nstate_dir = "{folder}/state"\n'
        if store == "redis":
            config = f'[store]\nurl = "{stack.enter_context(fleet(folder, "")).server.url}"\n'
        node = Heirs(folder, "node", config + LIMIT)
        node.start()
        stack.callback(node.stop)
        assert node.ask(CLIENT, RATE + 1).reason == BLOCKED
        file = os.stat(folder / "node.sock").st_ino
        for _ in range(2):
            node.hand_over()
            until(lambda: node.ask(CLIENT, hits=0).reason == BLOCKED, "the successor blocks it")
        assert os.stat(folder / "node.sock").st_ino == file
        node.stop()
        assert not os.path.exists(folder / "node.sock"), "the last one removes it"
        assert node.log().count('"agent started"') == node.log().count('"agent stops"') == 3
        assert "Traceback" not in node.log()


def test_the_first_answer_knows_all_networks_that_are_blocked(folder: Path) -> None:
    node = Node(folder, "node", f'[store]\nstate_dir = "{folder}/state"\n{LIMIT}').start()
    try:
        with contextlib.closing(http.client.HTTPConnection(node.ops(), timeout=PATIENCE)) as api:
            # So many that they are cut in steps.
            for number in range(100):
                body = json.dumps({"key": f"10.0.{number}.0/24", "ttl": 600})
                api.request("POST", "/v1/blocks", body, {"Content-Type": "application/json"})
                answer = api.getresponse()
                answer.read()
                assert answer.status == 201
        node.stop()
        node.start()
        assert node.ask("10.0.99.1").reason == BLOCKED
    finally:
        node.stop()


def test_a_successor_that_fails_changes_nothing(folder: Path) -> None:
    node = Heirs(folder, "node", f'[store]\nstate_dir = "{folder}/state"\n{LIMIT}')
    node.start()
    try:
        good = node._file.read_text()
        node._file.write_text(good + "rate = 1\n")
        os.kill(node.pid, signal.SIGUSR2)
        until(lambda: "the successor failed; this process continues" in node.log(), "it fails")
        assert node.ask(CLIENT).reason is None, "on the connection that was open"
        node._file.write_text(good)
        node.hand_over()
        assert node.ask(CLIENT).reason is None
    finally:
        node.stop()


def test_the_agent_hands_over_under_load(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        assert w.agent is not None
        try:
            async with load(w) as answers:
                w.agent.send_signal(signal.SIGUSR2)
                while w.agent.poll() is None:
                    await more(answers, 10)
                await more(answers)
                assert await w.agent_is("UP"), "HAProxy never missed it"
            assert questions(w)[True] <= 8, "at most the one under way on each connection"
        finally:
            (successor,) = map(int, re.findall(r'"successor": (\d+)', w.agent_log()))
            os.kill(successor, signal.SIGTERM)
            until(lambda: ended(successor), "the successor ends")

    run(tmp_path, test)
