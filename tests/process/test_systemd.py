"""What systemd passes and hears, with sockets of the test in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratelimit.exceptions import StartError
from ratelimit.model import Address
from ratelimit.process.handover import Predecessor
from ratelimit.process.systemd import Manager, Passed, Sockets


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket on which a service manager hears."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield sock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def inherit(program: str, *files: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with files as those of sd_listen_fds(3)."""
    moves = " ".join(f"{to}<&{fd}" for to, fd in enumerate(files, start=3))
    named = " ".join(f"{name}={value}" for name, value in variables.items())
    return subprocess.run(
        ["bash", "-c", f'exec {moves}; {named} exec "$0" -c "$1"', sys.executable, program],
        pass_fds=files,
        capture_output=True,
        text=True,
        check=False,
    )


TAKE = """
import os
from ratelimit.exceptions import StartError
from ratelimit.model import Address
from ratelimit.process.systemd import Sockets
try:
    sockets = Sockets.inherited()
    (one,) = sockets.take(Address("127.0.0.1", {port}))
    sockets.done()
    left = [name for name in os.environ if name.startswith("LISTEN")]
    print(one.address, one.ours, os.get_inheritable(3), left)
except (StartError, ValueError) as error:
    print(error)
"""


def test_a_socket_is_taken_and_the_variables_are_gone(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    ran = inherit(TAKE.format(port=port), listener.fileno(), LISTEN_FDS="1", LISTEN_PID="$$")
    assert ran.stdout == f"tcp://127.0.0.1:{port} False False []\n", ran.stderr


def test_sockets_for_another_process_are_not_ours(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    ran = inherit(TAKE.format(port=port), listener.fileno(), LISTEN_FDS="1", LISTEN_PID="1")
    assert "not enough values" in ran.stdout


def test_a_socket_that_nobody_asks_for_is_an_error(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    program = f"from ratelimit.process.systemd import Sockets; Sockets.inherited().done() # {port}"
    ran = inherit(program, listener.fileno(), LISTEN_FDS="1", LISTEN_PID="$$")
    assert f"passed a socket on tcp://127.0.0.1:{port}, which is neither in agent.listen" in (
        ran.stderr
    )


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        ("2", "file descriptor 4: Bad file descriptor"),
        ("-1", "not a number"),
        ("x", "not a number"),
    ],
)
def test_a_wrong_count_is_an_error(listener: socket.socket, count: str, problem: str) -> None:
    ran = inherit(TAKE.format(port=1), listener.fileno(), LISTEN_FDS=count, LISTEN_PID="$$")
    assert problem in ran.stdout, ran.stderr


def test_what_does_not_listen_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as sock, (tmp_path / "file").open("w") as file:
        for fd, problem in ((sock.fileno(), "does not listen"), (file.fileno(), "is not a socket")):
            ran = inherit(TAKE.format(port=1), fd, LISTEN_FDS="1", LISTEN_PID="$$")
            assert problem in ran.stdout, ran.stderr


def test_sockets_are_found_by_their_address(listener: socket.socket, tmp_path: Path) -> None:
    port = listener.getsockname()[1]
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as other:
        unix.bind(str(tmp_path / "s"))
        tcp, file, more = Passed(listener), Passed(unix, ours=True), Passed(other)
        sockets = Sockets([tcp, file, more])
        assert sockets.take(Address("127.0.0.2", port)) == []
        assert sockets.take(Address(path=str(tmp_path / "other"))) == []
        assert sockets.take(Address("localhost", port)) == [tcp]
        assert sockets.take(Address("127.0.0.1", port)) == []
        assert sockets.take(Address(path=str(tmp_path / "s"))) == [file]
        assert sockets.take(Address("127.0.0.1", 0)) == [], "systemd's have ports of their own"
        with pytest.raises(StartError, match=f"tcp://127.0.0.1:{more.address.port}, which"):
            sockets.done()
        handed_over = Sockets([file, tcp, more], trusted=True)
        assert handed_over.take(Address("127.0.0.1", 0)) == [tcp], "the one that was given"
        assert handed_over.take(Address("127.0.0.1", 0)) == [more]
        handed_over.done()
        assert unix.fileno() == -1, "an address that there is no more"


def test_the_manager_is_told(manager: socket.socket) -> None:
    with contextlib.closing(Manager.of_environment()) as ours:
        ours.tell("RELOADING=1", "MONOTONIC_USEC=1")
    assert manager.recv(100) == b"RELOADING=1\nMONOTONIC_USEC=1"


def test_the_manager_may_listen_at_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ratelimit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        with contextlib.closing(Manager.of_environment()) as ours:
            ours.tell("READY=1")
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("path", ["", "relative", "/no/such/socket"])
def test_nobody_hears(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with contextlib.closing(Manager.of_environment()) as ours:
        ours.tell("READY=1")


def test_the_manager_is_told_without_a_free_file_descriptor(manager: socket.socket) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    with contextlib.closing(Manager.of_environment()) as ours:
        resource.setrlimit(resource.RLIMIT_NOFILE, (manager.fileno() + 20, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(manager.fileno()))
            with pytest.raises(OSError, match="Too many open files"):
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            ours.tell("WATCHDOG=1")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
    assert manager.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_is_fed_by_the_loop(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)

    async def main() -> None:
        with contextlib.closing(Manager.of_environment()) as ours:
            task = asyncio.create_task(ours.watch())
            await asyncio.sleep(0)
            manager.setblocking(False)
            assert manager.recv(100) == b"WATCHDOG=1"
            with pytest.raises(BlockingIOError):
                manager.recv(100)  # a loop that does not turn feeds nothing
            async with asyncio.timeout(10):
                while await asyncio.get_running_loop().sock_recv(manager, 100) != b"WATCHDOG=1":
                    pass
            task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "9" * 5000},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_is_fed_that_nobody_asked_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(Manager.of_environment()) as ours:
        asyncio.run(ours.watch())
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_a_predecessor_that_can_not_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "x", "-1", "9" * 5000):
        monkeypatch.setenv("RATELIMIT_PREDECESSOR", text)
        assert Predecessor.of_environment() is None
