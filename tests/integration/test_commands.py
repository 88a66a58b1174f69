"""``ratelimit serve`` and ``ratelimit up`` as a user runs them."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import wire
from tests.helpers.command import command, line
from tests.helpers.world import PATIENCE

pytestmark = pytest.mark.integration


def test_a_table_larger_than_the_memory_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    small = (
        "import resource, sys, os; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'ratelimit', *sys.argv[1:]])"
    )
    limit = [sys.executable, "-c", small]
    path.write_text("[agent]\nmax_clients = 100_000_000\n")
    ran = subprocess.run(
        [*limit, "serve", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr == f"{path}: agent.max_clients: not enough memory: 12207 MiB needed\n"


def test_two_agents_do_not_share_a_state_folder(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(f'[agent]\nlisten = ["unix://{tmp_path}/other.sock"]\nmax_clients = 1000\n')
    with command("serve", "--config", str(config)) as first:
        line(first, "agent started")
        with command("serve", "--config", str(other)) as second:
            output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert str(tmp_path / "state") in output
    assert "Traceback" not in output


def test_an_address_that_is_taken_names_file_and_field(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "r.toml"
        path.write_text(f'[agent]\nlisten = ["tcp://127.0.0.1:{port}"]\n')
        with command("serve", "--config", str(path)) as process:
            output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert output == (
        f"{path}: agent.listen: can't listen on tcp://127.0.0.1:{port}: Address already in use\n"
    )


def test_sigterm_answers_what_was_read_says_goodbye_and_ends(config: Path, tmp_path: Path) -> None:
    with command("serve", "--config", str(config)) as process:
        line(process, 'agent started.*"compiled"')
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(f"{tmp_path}/spop.sock")
            peer.sendall(wire.hello())
            received = peer.recv(65536)
            asked = wire.message("default", key=wire.address("192.0.2.1"))
            peer.sendall(wire.notify(asked) * 50)
            while received.count(b"\x67\0\0\0\1") < 50:
                received += peer.recv(65536)
            process.send_signal(signal.SIGTERM)
            while data := peer.recv(65536):
                received += data
        *_, last = wire.frames(received)
        assert last.kind == wire.AGENT_DISCONNECT
        assert last.items["status-code"] == 0
        assert process.wait(PATIENCE) == 0


def resident(process: subprocess.Popen[str]) -> int:
    """Return the memory of a process in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def test_ten_thousand_connections_that_say_nothing_disturb_nobody(
    config: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    asked = wire.notify(wire.message("default", key=wire.address("192.0.2.1"), hits=wire.int64(0)))
    with command("serve", "--config", str(config)) as process, contextlib.ExitStack() as stack:
        line(process, "agent started")

        def connect() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(f"{tmp_path}/spop.sock")  # waits while the backlog is full
            sock.settimeout(PATIENCE)
            return sock

        def answers(sock: socket.socket) -> bool:
            sock.sendall(asked)
            return wire.frames(sock.recv(65536))[0].kind == wire.ACK

        haproxy = connect()
        haproxy.sendall(wire.hello())
        assert wire.frames(haproxy.recv(65536))[0].kind == wire.AGENT_HELLO
        before = resident(process)
        silent = []
        for n in range(count):
            silent.append(connect())
            if n % 500 == 0:
                assert answers(haproxy)
        assert answers(haproxy)
        # 4,096 are kept, at a few kilobytes each; the others are sent away.
        assert resident(process) - before < 64 << 20
        (told,) = wire.frames(silent[-1].recv(65536))
        assert told.items["status-code"] == 13

        # The first ones are sent away too, when their time for a handshake is over.
        (told,) = wire.frames(silent[0].recv(65536))
        assert told.items["status-code"] == 2
        for sock in silent:
            sock.close()
        assert answers(haproxy)
        late = connect()
        late.sendall(wire.hello())
        assert wire.frames(late.recv(65536))[0].kind == wire.AGENT_HELLO


def test_noise_leaves_memory_as_it_was(config: Path, tmp_path: Path) -> None:
    noise = random.Random(5)
    with command("serve", "--config", str(config)) as process:
        line(process, "agent started")

        def attack(rounds: int) -> None:
            for _ in range(rounds):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(PATIENCE)
                    sock.connect(f"{tmp_path}/spop.sock")
                    with contextlib.suppress(ConnectionError):
                        if noise.random() < 0.5:
                            sock.sendall(wire.hello())
                        sock.sendall(noise.randbytes(noise.randrange(1, 40_000)))
                        sock.shutdown(socket.SHUT_WR)
                        while sock.recv(65536):
                            pass

        attack(300)
        before = resident(process)
        attack(1500)
        assert resident(process) - before < 8 << 20
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in output
        assert "more connections ended" in output, "lines are limited under attack"
