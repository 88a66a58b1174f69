"""The instructions of HAProxy for one allowed request, without those of the kernel.

``python -m benchmarks.instructions`` runs HAProxy alone, HAProxy with its own stick-table limiter,
and ``haproxy/peers.cfg`` with its agent in callgrind. Unlike a time, the number hardly depends on
what else the machine does, so a change of a few rules shows. The clients are either the peers of
HAProxy, or 320 behind a load balancer, in turn. ``--connections`` of them are served in each
turn of HAProxy's loop.

``RATELIMIT_TEST_HAPROXY`` is the command of another HAProxy. A file that is named on the command
line is measured in place of the shipped one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import command, http
from benchmarks.harness.haproxy import ALLOWING, COMPARISON, NEVER
from benchmarks.harness.programs import Programs, free_address, pair, require, until
from benchmarks.harness.report import Column, Report, Table

SHIPPED = Path(__file__).parent.parent / "haproxy" / "peers.cfg"
CLIENTS = 320

_FEW, _MANY = 640, 3_200
_PATIENCE = 120  # seconds for HAProxy to start in callgrind
_ANSWERED = b"\r\n\r\nhello"


def _requests(behind: bool) -> Iterator[bytes]:
    for number in itertools.cycle(range(CLIENTS)):
        named = f"X-Forwarded-For: 10.0.{number >> 8}.{number & 255}\r\n" if behind else ""
        yield f"GET / HTTP/1.1\r\nHost: test\r\n{named}\r\n".encode()


def _load(address: str, connections: int, count: int, behind: bool) -> None:
    """Send so many requests, one on each connection at a time."""
    socks = [socket.create_connection(pair(address), 60) for _ in range(connections)]
    requests = _requests(behind)
    for _ in range(count // connections):
        for sock in socks:
            sock.sendall(next(requests))
        for sock in socks:
            answer = b""
            while not answer.endswith(_ANSWERED):
                answer += sock.recv(4096) or sys.exit("HAProxy closed a connection")
            if not answer.startswith(b"HTTP/1.1 200"):
                sys.exit(f"refused:\n{answer.decode()}")
    for sock in socks:
        sock.close()


class Bench:
    """An application, an agent, and HAProxies that run one after the other."""

    def __init__(self, programs: Programs, options: argparse.Namespace) -> None:
        self._programs = programs
        self._connections: int = options.connections
        self._haproxy = os.environ.get("RATELIMIT_TEST_HAPROXY", require("haproxy")).split()
        self._backend = programs.application()[1]
        self._peers = programs.folder / "peers.sock"
        spop = str(programs.folder / "spop.sock")
        listening = f'peers = ["unix://{self._peers}"]\n{ALLOWING}'
        programs.agent("agent", "compiled", spop, listening)
        self._numbers = itertools.count()

    def _collected(self, config: Path, count: int, behind: bool, **settings: str) -> int:
        """Return the instructions of a HAProxy that answers so many requests."""
        folder = self._programs.folder
        name = f"haproxy-{next(self._numbers)}"
        address = free_address()
        valgrind = [require("valgrind"), "--tool=callgrind"]
        valgrind.append(f"--callgrind-out-file={folder / name}.callgrind")
        program = self._programs.start(
            name,
            [*valgrind, *self._haproxy, "-db", "-f", str(config)],
            {
                # Else it spends its start reading certificates of authorities.
                "SSL_CERT_FILE": os.devnull,
                "SSL_CERT_DIR": os.devnull,
                "RATELIMIT_LISTEN": address,
                "RATELIMIT_STATS_SOCKET": str(folder / f"{name}.sock"),
                "RATELIMIT_THREADS": "1",
                "RATELIMIT_BACKEND": self._backend,
                "RATELIMIT_PEERS": f"unix@{self._peers}",
                "RATELIMIT_PEERS_LISTEN": f"unix@{folder / name}.peer",
                "RATELIMIT_LOCALPEER": name,
                "RATELIMIT_HAPROXY_DIR": str(folder),
                "RATELIMIT_MAPS_DIR": str(SHIPPED.parent),
                **settings,
            },
        )
        path = folder / f"{name}.sock"
        until(f"{config} is ready", lambda: _is_ready(address, path), _PATIENCE, program)
        _load(address, self._connections, count, behind)
        program.stop()
        return int(program.logged(r"Collected : (\d+)")[-1])

    def measure(self, config: Path, behind: bool, **settings: str) -> float:
        """Return the instructions of one request."""
        folder = self._programs.folder
        (folder / "lb.lst").write_text("127.0.0.0/8\n" if behind else "")
        (folder / "cdn.lst").write_text("")
        few, many = (self._collected(config, n, behind, **settings) for n in (_FEW, _MANY))
        return (many - few) / (_MANY - _FEW)


def _is_ready(address: str, path: Path) -> bool:
    """Return whether an HAProxy answers, and has been told the caps if it has a table for them."""
    try:
        http.get(address)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"show table ratelimit/rlc_caps\n")
            said = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    except OSError:
        return False
    return b"No such table" in said or b"key=default" in said


def run(programs: Programs, options: argparse.Namespace) -> Report:
    bench = Bench(programs, options)
    rows: dict[str, list[float]] = {}
    for behind in (False, True):
        for name, config, settings in (
            ("HAProxy alone", COMPARISON, {}),
            ("stick table", COMPARISON, {"BENCH_RATE": str(NEVER)}),
            *((file.name, file, {}) for file in options.files or [SHIPPED]),
        ):
            if behind:
                settings["BENCH_BALANCER"] = "127.0.0.1"
            rows.setdefault(name, []).append(bench.measure(config, behind, **settings))
    columns = Column("peers", "less", 0), Column("behind a load balancer", "less", 0)
    note = f"{_MANY} requests, {options.connections} at a time"
    return Report((Table.of("instructions of a request", note, columns, rows),), ())


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="configurations")


if __name__ == "__main__":
    command.main("instructions", __doc__, run, arguments=arguments)
