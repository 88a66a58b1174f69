"""How fast operators are heard, how long their questions take, and what these cost the agent.

``python -m benchmarks.operations`` runs two nodes with one Redis, each with a HAProxy of its own:
clients are blocked and lifted by hand on the first, and asked for through the other. Then one agent
with 100,000 blocks is fully loaded over SPOE, now with and now without somebody who scrapes its
metrics and looks at its page each second. The HAProxy beside it is stopped and ended. At last the
busiest clients of a full table of 1,000,000 are looked for, and whatever keeps the event loop
meanwhile is timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import command, harness
from benchmarks.agent import ADDRESSES, DEPTHS, PLACES, Bench, Frames, known
from benchmarks.end_to_end import APPLICATION, SHIPPED, HAProxy
from benchmarks.harness import Figure, Programs, Target
from benchmarks.report import Column, Report, Row, Table
from ratelimit.node.top import Busiest
from ratelimit.spop.respond import Responder
from tests.helpers import wire
from tests.helpers.running import running
from tests.helpers.servers import Server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from multiprocessing.sharedctypes import Synchronized
    from pathlib import Path

    from benchmarks.harness import Program

CORES = sorted(os.sched_getaffinity(0))
BLOCKS = 100_000
CLIENTS = 1_000_000
NEVER = 10_000_000  # a rate that nobody reaches

_BLOCKED = 0x0B000000  # 11.0.0.0 on
_PATIENCE = 10  # seconds
_STEP = 500  # frames that the full table is filled with at a time
_ASKED = ("/metrics", "/v1/status", "/v1/blocks?limit=50", "/v1/clients?n=20", "/v1/nodes")
"""What a scrape and the page ask for."""


class Api:
    """The API of an agent, over one ``connection``."""

    def __init__(self, address: str, patience: float = _PATIENCE) -> None:
        host, _, port = address.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=patience)

    @classmethod
    def of(cls, program: Program, patience: float = _PATIENCE) -> Api:
        found = re.findall(r'"ops": "([^"]+)"', program.log.read_text())
        return cls(found[-1], patience)

    @property
    def url(self) -> str:
        return f"http://{self.connection.host}:{self.connection.port}"

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        sent = json.dumps(body) if body is not None else None
        self.connection.request(method, path, sent, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def get(self, path: str) -> Any:
        status, raw = self("GET", path)
        if status != 200:
            sys.exit(f"{path}: {status} {raw.decode()}")
        return json.loads(raw)


def until(what: str, condition: Callable[[], bool]) -> float:
    """Repeat a condition until it holds; return the time then, by ``perf_counter``."""
    deadline = time.perf_counter() + _PATIENCE
    while not condition():
        if time.perf_counter() > deadline:
            sys.exit(f"not within {_PATIENCE} s: {what}")
    return time.perf_counter()


# ---- two nodes -----------------------------------------------------------------------------


def visit(haproxy: HAProxy, client: str) -> int:
    """Send a request from an address; return the status."""
    host, _, port = haproxy.address.rpartition(":")
    with contextlib.closing(
        http.client.HTTPConnection(host, int(port), _PATIENCE, source_address=(client, 0))
    ) as connection:
        connection.request("GET", "/")
        return connection.getresponse().status


def at_edge(stats: Path, client: str) -> bool:
    """Tell whether the HAProxy of a socket refuses a client by itself."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(str(stats))
        sock.sendall(f"show table t_block key ::ffff:{client}\n".encode())
        shown = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    found = re.search(rb"gpt0=(\d+)", shown)
    return found is not None and int(found[1]) > time.time()


def run_fleet(programs: Programs, backend: str, rounds: int) -> tuple[dict[str, Figure], list[int]]:
    """Block and lift on the first node; return milliseconds, and statuses after the command."""
    server = Server(programs.folder).start()
    nodes = []
    edges = []
    for name in ("first", "second"):
        spop = harness.free_address()
        config = (
            f'max_clients = 10_000\n[store]\nurl = "{server.url}"\n'
            f'[haproxy]\nsockets = ["{programs.folder}/{name}-haproxy.sock"]\n'
            '[limits.default]\nrate = 5\nblock = ["1h"]\nfuse = 0\n'
        )
        agent = programs.agent(name, "compiled", spop, config)
        edge = HAProxy(
            programs, f"{name}-haproxy", SHIPPED, agent, RATELIMIT_SPOP=spop,
            RATELIMIT_BACKEND=backend,
        )  # fmt: skip
        nodes.append((Api.of(agent), edge))
        edges.append(programs.folder / f"{name}-haproxy.sock")
    (here, _), (there, second) = nodes
    taken: dict[str, list[float]] = {}
    try:
        for number in range(1, rounds + 1):
            harness.progress(f"block and lift {number} of {rounds}")
            client = f"127.0.{number >> 8}.{number & 255}"
            for what, seconds in block_and_lift(here, second, edges, client).items():
                taken.setdefault(what, []).append(1000 * seconds)
        clients = [f"127.1.0.{number}" for number in range(1, 6)]
        after = [lift_by_command(here, there, second, client) for client in clients]
    finally:
        server.kill()
    return {what: Figure.of(times) for what, times in taken.items()}, after


def block_and_lift(here: Api, other: HAProxy, edges: list[Path], client: str) -> dict[str, float]:
    """Block a client by hand and lift it, then have it blocked by its limit and lift that."""

    def passes() -> bool:
        return visit(other, client) == 200

    def at_each_edge() -> bool:
        return all(at_edge(edge, client) for edge in edges)

    def at_no_edge() -> bool:
        return not any(at_edge(edge, client) for edge in edges)

    found = {}
    begin = time.perf_counter()
    here("POST", "/v1/blocks", {"key": client, "ttl": "10m", "reason": "benchmark"})
    found["blocked by hand: at both edges"] = until("both have it", at_each_edge) - begin
    found["and refused at the other node"] = until("refused", lambda: not passes()) - begin
    begin = time.perf_counter()
    here("DELETE", f"/v1/blocks/{client}")
    found["lifted: passes at the other node"] = until("passes", passes) - begin
    until("it exceeds its limit there", lambda: not passes())
    until("all know it", lambda: here("GET", f"/v1/blocks/{client}")[0] == 200)
    begin = time.perf_counter()
    here("DELETE", f"/v1/blocks/{client}")
    found["a limit's block lifted: passes at the other node"] = until("passes", passes) - begin
    found["and off both edges"] = until("off both edges", at_no_edge) - begin
    return found


def lift_by_command(here: Api, there: Api, other: HAProxy, client: str) -> int:
    """Block a client and lift it from a shell; return the status of its next request."""
    here("POST", "/v1/blocks", {"key": client, "ttl": "10m"})
    until("all know it", lambda: there("GET", f"/v1/blocks/{client}")[0] == 200)
    until("refused", lambda: visit(other, client) == 429)
    command = [sys.executable, "-m", "ratelimit", "blocks", "remove", client, "--url", here.url]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return visit(other, client)


# ---- one agent under full load -------------------------------------------------------------


def dashboard(address: str, looks: Synchronized[int]) -> None:
    """Scrape and look once a second until ended."""
    api = Api(address)
    while True:
        begin = time.monotonic()
        for path in _ASKED:
            if api("GET", path)[0] != 200:
                sys.exit(f"{path} is not answered")
        looks.value += 1
        time.sleep(max(0.0, begin + 1 - time.monotonic()))


@contextlib.contextmanager
def watched(address: str, seconds: float) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    looks = context.Value("i", 0)
    process = context.Process(target=dashboard, args=(address, looks))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()
    if looks.value < int(seconds):
        sys.exit(f"{looks.value} looks in {seconds} s")


@dataclass(frozen=True)
class Loaded:
    """What was found at the agent under full load.

    Attributes:
        pages: milliseconds for a page, by its size.
        alone, watched: CPU microseconds a check, without and with a dashboard.
        dearer: by which part of it a check was dearer with one.
        rate: checks a second.
        haproxy: seconds to the answer about a HAProxy, by how that is.
    """

    pages: dict[int, Figure]
    alone: Figure
    watched: Figure
    dearer: float
    rate: Figure
    haproxy: dict[str, float]

    @property
    def slowest(self) -> float:
        return max(figure.high for figure in self.pages.values())


def run_load(programs: Programs, backend: str, rounds: int, seconds: float) -> Loaded:
    """Load an agent, with and without a dashboard, and ask it."""
    name = "loaded"
    config = (
        f'[haproxy]\nsockets = ["{programs.folder}/beside.sock"]\n'
        f"[limits.default]\nrate = {NEVER}\nblock = []\n"
        '[limits.blocks]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'
    )
    bench = Bench(programs, name, "compiled", unix=True, config=config)
    beside = HAProxy(
        programs, "beside", SHIPPED, bench.program,
        RATELIMIT_SPOP=f"unix@{programs.folder}/{name}.sock",
        RATELIMIT_BACKEND=backend,
    )  # fmt: skip
    api = Api.of(bench.program)
    over = Frames.of([_BLOCKED + i for i in range(BLOCKS)], ("blocks",), hits=wire.int64(2))
    bench.probe(over, refused=True)
    bench.load(over, 8, checks=BLOCKS)
    until("all is stored", lambda: api.get("/v1/status")["store"]["unwritten"] == 0)
    if (entries := api.get("/v1/status")["blocklist"]["entries"]) != BLOCKS:
        sys.exit(f"{entries} blocks")

    pages: dict[int, list[float]] = {}
    for size in (100, 1000):
        cursor, count = "", 0
        while True:
            begin = time.perf_counter()
            page = api("GET", f"/v1/blocks?limit={size}&cursor={cursor}")[1]
            pages.setdefault(size, []).append(1000 * (time.perf_counter() - begin))
            found = json.loads(page)
            count += len(found["blocks"])
            cursor = found["next"]
            if not cursor:
                break
        if count != BLOCKS:
            sys.exit(f"{count} blocks on pages of {size}")

    frames = known()
    bench.move(list(PLACES)[-1])
    bench.probe(frames)
    depth = max(DEPTHS)
    bench.load(frames, depth, checks=ADDRESSES)
    alone, with_it = [], []
    address = api.url.removeprefix("http://")
    for number in range(rounds):
        harness.progress(f"load {number + 1} of {rounds}")
        alone.append(bench.load(frames, depth, seconds))
        with watched(address, seconds):
            with_it.append(bench.load(frames, depth, seconds))

    api = Api.of(bench.program)  # the connection from before was silent for too long
    asked: dict[str, float] = {}

    def ask(what: str) -> None:
        begin = time.perf_counter()
        (report,) = api.get("/v1/haproxy")["haproxy"]
        asked[what] = time.perf_counter() - begin
        if bool(report["problem"]) != (what != "well"):
            sys.exit(f"HAProxy {what}: {report}")

    ask("well")
    beside.program.process.send_signal(signal.SIGSTOP)
    ask("hung")
    beside.program.process.kill()
    beside.program.process.wait()
    time.sleep(3)  # until it is asked again
    ask("dead")
    return Loaded(
        pages={size: Figure.of(times) for size, times in pages.items()},
        alone=Figure.of(sample.cost for sample in alone),
        watched=Figure.of(sample.cost for sample in with_it),
        dearer=Figure.of(b.cost / a.cost - 1 for a, b in zip(alone, with_it, strict=True)).median,
        rate=Figure.of(sample.rate for sample in with_it),
        haproxy=asked,
    )


# ---- the busiest of a full table -----------------------------------------------------------


@contextlib.contextmanager
def timed_pieces() -> Iterator[list[float]]:
    """Yield the CPU seconds of each piece of work that an event loop of asyncio does meanwhile.

    Not those of the clock: the kernel may let another program run in the middle of one.
    """
    times: list[float] = []
    original = vars(asyncio.Handle)["_run"]

    def run(handle: asyncio.Handle) -> None:
        begin = time.thread_time()
        original(handle)
        times.append(time.thread_time() - begin)

    with mock.patch.object(asyncio.Handle, "_run", run):
        yield times


async def run_scan(folder: Path, rounds: int) -> dict[str, tuple[Figure, Figure]]:
    """Return milliseconds of an answer, and of the longest piece of work that it was made of."""
    found = {}
    config = f"[limits.default]\nrate = {NEVER}\nblock = []\n"
    folder.mkdir()
    async with running(folder, config, CLIENTS) as api:
        responder = Responder(api.control.limiter.engine)
        for first in range(0, CLIENTS, 100_000):
            frames = Frames.of(range(_BLOCKED + first, _BLOCKED + first + 100_000))
            responder.engine.at(api.control.sync.now())
            for at in range(0, frames.count, _STEP):
                data = bytes(frames.data[at * frames.size : (at + _STEP) * frames.size])
                responder.answer(data, 0, 16_384)
                responder.take()
        for sort in ("rate", "share"):
            for count in (20, 1000):
                took, longest = [], []
                for _ in range(rounds):
                    api.control.busiest = Busiest(api.control.limiter, api.control.sync)
                    url = f"http://127.0.0.1:{api.port}/v1/clients?n={count}&sort={sort}"
                    # Started before the time is taken, for a fork keeps the loop too.
                    command = ["sh", "-c", f"read go; exec curl -sf -o {os.devnull} '{url}'"]
                    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
                        assert process.stdin
                        with timed_pieces() as pieces:
                            begin = time.perf_counter()
                            process.stdin.close()
                            while process.poll() is None:
                                await asyncio.sleep(0.001)
                            took.append(1000 * (time.perf_counter() - begin))
                        if process.returncode:
                            sys.exit(f"{url} is not answered")
                    longest.append(1000 * max(pieces))
                found[f"{count} by {sort}"] = Figure.of(took), Figure.of(longest)
    return found


def run(programs: Programs, options: argparse.Namespace) -> Report:
    # The fork for a dashboard and the loader stay off the agent's core.
    os.sched_setaffinity(0, {CORES[-1]})
    backend = harness.free_address()
    haproxy = harness.require("haproxy")
    programs.start(
        "application", [haproxy, "-db", "-f", str(APPLICATION)], {"BENCH_LISTEN": backend}
    )
    load = run_load(programs, backend, options.rounds, options.seconds)
    os.sched_setaffinity(0, CORES)
    fleet, after = run_fleet(programs, backend, 3 * options.rounds)
    os.environ["RATELIMIT_OPS__LISTEN"] = "127.0.0.1:0"
    scan = asyncio.run(run_scan(programs.folder / "scan", options.rounds))

    median = Column("median (least-greatest)", "less")
    passed = after.count(200)
    tables = (
        Table(
            "heard",
            "milliseconds from the request of an operator; two nodes with one Redis, each with a "
            f"HAProxy. After `ratelimit blocks remove` the next request passed {passed} of "
            f"{len(after)} times",
            (median,),
            tuple(Row.of(what, figure) for what, figure in fleet.items()),
        ),
        Table(
            "pages",
            f"milliseconds for each page of {BLOCKS:,} blocks",
            (median,),
            tuple(Row.of(f"{size} entries", figure) for size, figure in load.pages.items()),
        ),
        Table(
            "looked at",
            f"CPU microseconds a check, at {load.rate.median:,.0f} checks a second, with "
            f"{BLOCKS:,} blocks; a look is a scrape and a page each second",
            (Column("median (least-greatest)", "less", 3),),
            (Row.of("nobody looks", load.alone), Row.of("somebody does", load.watched)),
        ),
        Table(
            "GET /v1/haproxy",
            "seconds to the answer",
            (Column("seconds", "less", 3),),
            tuple(Row.of(f"HAProxy {what}", took) for what, took in load.haproxy.items()),
        ),
        Table(
            "busiest",
            f"milliseconds to find the busiest of {CLIENTS:,} clients, and CPU milliseconds of the "
            "longest piece of work between which others are answered",
            (Column("answer", "less", 0), Column("longest piece", "less")),
            tuple(Row.of(what, answer, longest) for what, (answer, longest) in scan.items()),
        ),
    )
    targets = (
        *(Target(f"ms, {what}", figure.high, 100, True) for what, figure in fleet.items()),
        Target("lifted by the command, next request passes", passed / len(after), 1, False),
        Target(f"ms, slowest page of {BLOCKS:,} blocks", load.slowest, 50, True),
        Target("CPU a check, more by a scrape and a page a second", load.dearer, 0.05, True),
        *(Target(f"s, HAProxy {what}", took, 1, True) for what, took in load.haproxy.items()),
        *(
            Target(f"ms of the loop at a time, {what}", longest.median, 1, True)
            for what, (_, longest) in scan.items()
        ),
    )
    return Report(tables, targets)


if __name__ == "__main__":
    command.main("operations", __doc__, run, rounds=(7, 3), seconds=(5, 2))
