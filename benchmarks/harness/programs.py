"""The programs of a run: they end with the run, and their CPU time is read from the kernel."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from tests.helpers import wire
from tests.helpers.servers import PROGRAM, Server

Variant = TypeVar("Variant")

HARNESS = Path(__file__).parent
ROOT = HARNESS.parent.parent

CORES = sorted(os.sched_getaffinity(0))
"""The cores of the machine that the run may use."""

MIB = 1 << 20

STOP_TIMEOUT = 3  # seconds from SIGTERM to SIGKILL

_START_TIMEOUT = 30  # seconds for a program to accept connections

Form = str
"""``compiled``, ``plain`` or, for the agent that only acknowledges, ``ack``."""


@dataclass(frozen=True)
class Program:
    """A program of the run; its output is in ``log``."""

    process: subprocess.Popen[bytes]
    log: Path = Path(os.devnull)

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu(self) -> int:
        """Return its CPU time so far, user and system, in nanoseconds."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def logged(self, pattern: str) -> list[str]:
        """Return all that a regular expression finds in the log."""
        return re.findall(pattern, self.log.read_text())

    def checks(self) -> int:
        """Return the number of checks of an agent, which logs it at its end."""
        return int(self.logged(r'"checks": (\d+)')[-1])

    def pin(self, core: int) -> None:
        os.sched_setaffinity(self.pid, {core})

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Programs:
    """The programs of a run and their folder; all end with the run, also after an error.

    ``haproxy`` is the HAProxy to run; the machine's if it is empty.
    """

    def __init__(self) -> None:
        self.haproxy = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        temporary = tempfile.TemporaryDirectory(prefix="ratelimit-bench-")
        self.folder = Path(self._stack.enter_context(temporary))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def at_end(self, action: Callable[[], object]) -> None:
        """Call something at the end of the run, before all that was started so far ends."""
        self._stack.callback(action)

    def start(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, str] | None = None,
        log: bool = True,
        files: Sequence[int] = (),
    ) -> Program:
        """Start a program in the root of the checkout; ``settings`` are further variables.

        Without ``log``, only its errors are kept. The program inherits the descriptors ``files``,
        but no RATELIMIT_* variable of the caller.
        """
        path = self.folder / f"{name}.{'log' if log else 'errors'}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RATELIMIT_")}
        with path.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=output if log else subprocess.DEVNULL,
                stderr=output,
                pass_fds=files,
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the others
            )
        program = Program(process, path)
        self.at_end(program.stop)
        return program

    def agent(
        self,
        name: str,
        form: Form,
        address: str,
        config: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> Program:
        """Start an agent on HOST:PORT or a path, and wait until it answers.

        ``config`` is its configuration, without ``[agent] listen``.
        """
        if form == "ack":
            command = [self.compiled("ack_agent"), address.rpartition(":")[2]]
        else:
            listen = f"{'unix' if '/' in address else 'tcp'}://{address}"
            file = self.folder / f"{name}.toml"
            file.write_text(f'[agent]\nlisten = ["{listen}"]\n{config}')
            command = [sys.executable, "-m", "benchmarks.harness.launch", form]
            command += ["serve", "--config", str(file)]
        state = {
            "STATE_DIRECTORY": str(self.folder / f"{name}-state"),
            "RATELIMIT_OPS__LISTEN": "127.0.0.1:0",
        }
        program = self.start(name, command, {**state, **(settings or {})})
        wait_for(program, lambda: connect(address).close())
        return program

    def redis(self, *options: str) -> tuple[Server, Program]:
        """Start a Redis."""
        if PROGRAM is None:
            sys.exit("there is no redis-server: apt-get install redis-server")
        server = Server(self.folder, *options)
        self.at_end(server.kill)
        server.start()
        assert server.process is not None
        return server, Program(server.process)

    def application(self, name: str = "application") -> tuple[Program, str]:
        """Start an HAProxy that answers each request itself; return it and its HOST:PORT."""
        address = free_address()
        command = [require("haproxy"), "-db", "-f", str(HARNESS / "application.cfg")]
        return self.start(name, command, {"BENCH_LISTEN": address}), address

    def compiled(self, name: str) -> str:
        """Return the path of a program of this folder, compiled from its C source."""
        path = self.folder / name
        if not path.exists():
            source = HARNESS / f"{name}.c"
            compiler = ["cc", "-O2", "-D_GNU_SOURCE", "-o", str(path), str(source), "-lm"]
            try:
                subprocess.run(compiler, check=True)
            except FileNotFoundError:
                sys.exit("there is no C compiler: apt-get install gcc libc6-dev")
        return str(path)


def until(
    what: str,
    condition: Callable[[], object],
    seconds: float = 20,
    program: Program | None = None,
    every: float = 0.01,
) -> float:
    """Repeat a condition until it is true; return the time then, by ``perf_counter``.

    Ends the run after so many seconds, or if ``program`` has ended.
    """
    deadline = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > deadline or (program and program.process.poll() is not None):
            log = program.log.read_text()[-3000:] if program else ""
            sys.exit(f"not within {seconds:g} s: {what}\n{log}")
        time.sleep(every)
    return time.perf_counter()


def wait_for(program: Program, attempt: Callable[[], object]) -> None:
    """Repeat an attempt that raises OSError until it succeeds."""

    def succeeds() -> bool:
        try:
            attempt()
        except OSError:
            return False
        return True

    until(f"{program.process.args!r} answers", succeeds, _START_TIMEOUT, program, every=0.001)


def free_address() -> str:
    """Return HOST:PORT on loopback with an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def pair(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def connect(address: str) -> socket.socket:
    """Connect to an agent on HOST:PORT or a path as HAProxy does, and shake hands."""
    if "/" in address:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
    else:
        sock = socket.create_connection(pair(address), 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(5)
    sock.sendall(wire.hello())
    (hello,) = wire.frames(sock.recv(1 << 16))
    if hello.kind != wire.AGENT_HELLO:
        sys.exit(f"{address}: answers {hello}")
    return sock


def pin() -> None:
    """Put this program on the last core."""
    os.sched_setaffinity(0, {CORES[-1]})


def rounds(count: int, variants: Iterable[Variant]) -> Iterator[Variant]:
    """Yield each variant once a round, back and forth: none always follows the same one."""
    listed = list(variants)
    for number in range(count):
        for variant in listed if number % 2 == 0 else reversed(listed):
            progress(f"round {number + 1} of {count}: {variant}")
            yield variant


def take_precedence() -> str:
    """Run this program, and those that it starts, before all other work of the machine.

    Niceness would not suffice: the kernel shares a core among sessions first (sched(7),
    autogroup). Programs of this class take turns (``SCHED_RR``). Requires root; returns what the
    note of a table says about it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return "with the priority of all other work of the machine, since not run by root"
    return "before all other work of the machine"


def put_first(process: subprocess.Popen[bytes]) -> None:
    """Run a program that measures before those that are measured, if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(2))


def progress(text: str) -> None:
    """Show the progress of the run on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)


def find(program: str) -> str | None:
    """Return the path of an installed program."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def require(program: str, package: str = "") -> str:
    """Return the path of a program; without it, end the benchmark and name its package."""
    return find(program) or sys.exit(f"there is no {program}: apt-get install {package or program}")
