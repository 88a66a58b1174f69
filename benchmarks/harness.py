"""What the benchmarks share: programs that end with the run, CPU time, figures with spread."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.helpers import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).parent.parent

_START_TIMEOUT = 30  # seconds for a program to accept connections
STOP_TIMEOUT = 3  # seconds from SIGTERM to SIGKILL

CORES = sorted(os.sched_getaffinity(0))
"""Of the machine, those that the run may use."""

Form = str
"""``compiled``, ``plain`` or, for the agent that only acknowledges, ``ack``."""


@dataclass(frozen=True)
class Program:
    """A program of the run; its output is in ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu(self) -> int:
        """Return its CPU time so far, user and system, in nanoseconds."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def checks(self) -> int:
        """Return how many checks the limiter's agent did; it logs that when it ends."""
        return int(re.findall(r'"checks": (\d+)', self.log.read_text())[-1])

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Programs:
    """The programs of a run and their folder; all of it ends with the run, however that ends."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        temporary = tempfile.TemporaryDirectory(prefix="ratelimit-bench-")
        self.folder = Path(self._stack.enter_context(temporary))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, str] | None = None,
        log: bool = True,
        files: Sequence[int] = (),
    ) -> Program:
        """Start a program from the root of the checkout; ``settings`` are more variables for it.

        It inherits the descriptors ``files``. No RATELIMIT_* variable of the caller reaches it.
        """
        path = self.folder / f"{name}.log" if log else Path(os.devnull)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RATELIMIT_")}
        with path.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                pass_fds=files,
                start_new_session=True,  # a Ctrl-C is for this program, which ends the others
            )
        program = Program(process, path)
        self._stack.callback(program.stop)
        return program

    def agent(
        self,
        name: str,
        form: Form,
        address: str,
        config: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> Program:
        """Start an agent on HOST:PORT or a path and wait until it answers.

        ``config`` is what its configuration file holds beside ``[agent] listen``.
        """
        if form == "ack":
            command = [self.compiled("ack_agent"), address.rpartition(":")[2]]
        else:
            listen = f"{'unix' if '/' in address else 'tcp'}://{address}"
            file = self.folder / f"{name}.toml"
            file.write_text(f'[agent]\nlisten = ["{listen}"]\n{config}')
            command = [sys.executable, "-m", "benchmarks.launch", form]
            command += ["serve", "--config", str(file)]
        state = {
            "STATE_DIRECTORY": str(self.folder / f"{name}-state"),
            "RATELIMIT_OPS__LISTEN": "127.0.0.1:0",
        }
        program = self.start(name, command, {**state, **(settings or {})})
        wait_for(program, lambda: connect(address).close())
        return program

    def redis(self) -> tuple[Program, str]:
        """Start a Redis that keeps nothing; return it and its HOST:PORT."""
        program = require("redis-server")
        address = free_address()
        host, _, port = address.rpartition(":")
        command = [program, "--bind", host, "--port", port, "--save", "", "--appendonly", "no"]
        started = self.start("redis", [*command, "--dir", str(self.folder)])
        wait_for(started, lambda: socket.create_connection((host, int(port)), 5).close())
        return started, address

    def compiled(self, name: str) -> str:
        """Return the path of a program of this folder, compiled from its C source."""
        path = self.folder / name
        if not path.exists():
            source = ROOT / "benchmarks" / f"{name}.c"
            compiler = ["cc", "-O2", "-D_GNU_SOURCE", "-o", str(path), str(source), "-lm"]
            try:
                subprocess.run(compiler, check=True)
            except FileNotFoundError:
                sys.exit("there is no C compiler: apt-get install gcc libc6-dev")
        return str(path)


def wait_for(program: Program, attempt: Callable[[], object]) -> None:
    """Repeat an attempt that raises OSError until it succeeds."""
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            attempt()
        except OSError as error:
            if program.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{program.process.args!r}: {error}\n{program.log.read_text()}")
            time.sleep(0.001)
        else:
            return


def free_address() -> str:
    """Return HOST:PORT on loopback with a port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def get(address: str) -> int:
    """Send HOST:PORT one HTTP request and return the status of the answer."""
    host, _, port = address.rpartition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=5)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().status


def connect(address: str) -> socket.socket:
    """Connect to an agent as HAProxy does and shake hands."""
    if "/" in address:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)), 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(5)
    sock.sendall(wire.hello())
    (hello,) = wire.frames(sock.recv(1 << 16))
    if hello.kind != wire.AGENT_HELLO:
        sys.exit(f"{address}: answers {hello}")
    return sock


@dataclass(frozen=True)
class Figure:
    """The median of several rounds, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        listed = sorted(values)
        return cls(statistics.median(listed), listed[0], listed[-1])

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        if self.low == self.high:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


@dataclass(frozen=True)
class Target:
    """A figure that must not be more, or not be less, than a bound."""

    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "reached" if self.reached else "MISSED"
        return f"{verdict:8} {self.name}: {self.value:.3g}, {sign} {self.bound:g}"


def take_precedence() -> str:
    """Have this program and those that it starts run before all other work of the machine.

    Being nice would not do: the kernel shares a core among sessions first (sched(7), autogroup).
    Of themselves, one that is woken up comes when the one that runs waits, or after its slice
    (``SCHED_RR``). Needs root; returns what is to be said of it in the note of a table.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return "beside all other work of the machine, for this was not run by root"
    return "before all other work of the machine"


def put_first(process: subprocess.Popen[bytes]) -> None:
    """Have a program that measures run before those that are measured, if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(2))


def progress(text: str) -> None:
    """Show how far the run is, where a person looks on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)


def find(program: str) -> str | None:
    """Return the path of an installed program."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def require(program: str, package: str = "") -> str:
    """Return the path of a program; without it, the benchmark ends and says how to get it."""
    return find(program) or sys.exit(f"there is no {program}: apt-get install {package or program}")
