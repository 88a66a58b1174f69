"""``ratelimit serve`` and ``ratelimit up`` as a user runs them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from ratelimit.haproxy import process as haproxy
from tests.helpers import wire
from tests.helpers.command import command, line
from tests.helpers.world import PATIENCE, free_port

pytestmark = pytest.mark.integration


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ratelimit.toml"
    path.write_text(f'[agent]\nlisten = ["unix://{tmp_path}/spop.sock"]\nmax_clients = 1000\n')
    return path


def unix_sockets() -> list[str]:
    """Return what the kernel tells of each unix socket that is connected (proc(5))."""
    connected = "03"
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return [read for read in lines if read.split()[5] == connected]


def test_up_runs_the_main_job_from_any_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # In a window in which a machine that does much else can exceed the limit, too.
    config.write_text(f"{config.read_text()}[limits.default]\nwindow = '1m'\n")
    listen = f"127.0.0.1:{free_port()}"
    with command("up", "--listen", listen, "--config", str(config)) as process:
        url = line(process, r"limiter +(http://\S+)")[1]
        assert url == f"http://{listen}/"
        line(process, r"limit +default: 100 in 1m")
        line(process, "curl .*1-300")

        found: Counter[int] = Counter()
        for _ in range(300):
            try:
                with urllib.request.urlopen(url) as answer:
                    assert b"Hello 127.0.0.1" in answer.read()
                    found[answer.status] += 1
            except urllib.error.HTTPError as refusal:
                refusal.close()
                found[refusal.code] += 1
        assert found == {200: 100, 429: 200}
        # HAProxy and agent are on one machine, so they speak over a unix socket.
        assert any("/ratelimit-" in read and "/spop.sock" in read for read in unix_sockets())

        process.send_signal(signal.SIGINT)
        line(process, 'agent stops.*"blocks": 1')
        assert process.wait(PATIENCE) == 0
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "spop.sock").exists()


def test_up_keeps_no_right_of_root_in_haproxy(config: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with command("up", "--listen", listen, "--config", str(config)) as process:
        url = line(process, r"limiter +(http://\S+)")[1]
        child = child_named("haproxy", process.pid)
        account, own = haproxy.unprivileged(), child.stat().st_uid
        assert own == (account.pw_uid if account else os.geteuid())
        status = (child / "status").read_text()
        assert set(re.findall(r"(?m)^Uid:\s+(.*)$", status)[0].split()) == {str(own)}
        groups = re.findall(r"(?m)^(?:Gid|Groups):[ \t]*(.*)$", status)
        if account:
            assert set(" ".join(groups).split()) == {str(account.pw_gid)}
            assert os.listdir(child / "root") == ["spop.sock"], "all that it can see"
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        line(process, 'agent stops.*"checks": 1')
        assert process.wait(PATIENCE) == 0


def child_named(name: str, parent: int) -> Path:
    """Return the folder of a child process in /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found, _, fields = (folder / "stat").read_text().partition(") ")
            if found.endswith(f"({name}") and int(fields.split()[1]) == parent:
                return folder
    raise AssertionError(f"{parent} has no child {name}")


def test_up_with_a_backend_of_ones_own(config: Path) -> None:
    listen, backend = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with command(
        "up", "--listen", listen, "--backend", backend, "--config", str(config)
    ) as process:
        assert line(process, r"application +(\S+)")[1] == f"http://{backend}/"
        with pytest.raises(urllib.error.HTTPError) as nobody:
            urllib.request.urlopen(f"http://{listen}/")
        assert nobody.value.code == 503
        nobody.value.close()


def test_up_ends_when_haproxy_can_not_listen(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with command("up", "--listen", listen, "--config", str(config)) as process:
            output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "HAProxy ended with code 1" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'HAProxy version 2.4.22 2023'", "is 2.4, but 2.6 or later is required"),
        ("echo nonsense", "is of an unknown version, but 2.6 or later is required"),
    ],
)
def test_up_says_what_is_wrong_with_haproxy(
    config: Path, tmp_path: Path, script: str, words: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "haproxy").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "haproxy").chmod(0o755)
    with command("up", "--config", str(config), PATH=str(programs)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert words in output
    assert "Traceback" not in output


def test_up_ends_when_haproxy_never_listens(config: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = 'case $1 in -v) echo "HAProxy version 2.6.12";; *) exec sleep 30;; esac'
    (programs / "haproxy").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "haproxy").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    with command(
        "up", "--config", str(config), "--listen", f"127.0.0.1:{free_port()}", PATH=path
    ) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "HAProxy does not accept connections on 127.0.0.1:" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_up_leaves_nobody_behind(config: Path, number: signal.Signals) -> None:
    port = free_port()
    with command("up", "--listen", f"127.0.0.1:{port}", "--config", str(config)) as process:
        line(process, "limiter +http")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


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
