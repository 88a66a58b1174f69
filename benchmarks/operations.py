"""The delay of blocks and unblocks by hand, the time of answers of the API, and their cost.

``python -m benchmarks.operations`` runs two nodes with one Redis, each with an HAProxy of its own:
it blocks and unblocks clients on the first node, and sends their requests through the second
HAProxy. Then it fully loads one agent with 100,000 blocks, with and without a dashboard that reads
metrics and page each second, and asks about an HAProxy that is stopped and killed. Finally it
looks for the busiest clients of a full table of 1,000,000, and times the turns of the event loop
meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized

from benchmarks.harness import command
from benchmarks.harness.haproxy import ALLOWING, NEVER, SHIPPED, HAProxy
from benchmarks.harness.http import Api, get
from benchmarks.harness.launch import Turns
from benchmarks.harness.programs import CORES, Program, Programs, free_address, pin, progress, until
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import ADDRESSES, CLIENTS, DEPTH, PLACES, Bench, Frames, known
from tests.helpers import wire

BLOCKS = 100_000

_BLOCKED = 0x0B000000  # 11.0.0.0 on
_PATHS = ("/metrics", "/v1/status", "/v1/blocks?limit=50", "/v1/clients?n=20", "/v1/nodes")
"""What a scrape and the page read."""


_MEDIAN = Column("median (least-greatest)", "less")


def at_once(what: str, condition: Callable[[], object]) -> float:
    """Repeat a condition without a pause; return the time when it is true."""
    return until(what, condition, every=0)


# ---- two nodes -----------------------------------------------------------------------------


def run_fleet(programs: Programs, backend: str, rounds: int) -> Report:
    """Block and unblock on the first node; measure until the second node and the edges do so."""
    server, _ = programs.redis()
    apis, edges = [], []
    for name in ("first", "second"):
        spop = free_address()
        config = (
            f'max_clients = 10_000\n[store]\nurl = "{server.url}"\n'
            f'[haproxy]\nsockets = ["{programs.folder}/{name}-haproxy.sock"]\n'
            '[limits.default]\nrate = 5\nblock = ["1h"]\nfuse = 0\n'
        )
        agent = programs.agent(name, "compiled", spop, config)
        settings = {"RATELIMIT_SPOP": spop, "RATELIMIT_BACKEND": backend}
        edges.append(HAProxy(programs, f"{name}-haproxy", SHIPPED, agent, **settings))
        apis.append(Api(agent))
    taken: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        progress(f"block and unblock {number} of {rounds}")
        client = f"127.0.{number >> 8}.{number & 255}"
        for what, seconds in block_and_unblock(apis[0], edges, client).items():
            taken.setdefault(what, []).append(1000 * seconds)
    clients = [f"127.1.0.{number}" for number in range(1, 6)]
    after = [unblock_by_command(apis, edges[1], client) for client in clients]
    passed = after.count(200)
    note = "milliseconds from the request of an operator; two nodes with one Redis, each with an "
    note += f"HAProxy. After `ratelimit blocks remove` the next request passed {passed} of "
    note += f"{len(after)} times"
    table = Table.of("by hand", note, [_MEDIAN], {what: [times] for what, times in taken.items()})
    targets = [Target(f"ms, {what}", max(times), 100) for what, times in taken.items()]
    share = passed / len(after)
    targets.append(Target("unblocked by the CLI, next request passes", share, 1, at_most=False))
    return Report((table,), tuple(targets))


def block_and_unblock(here: Api, edges: list[HAProxy], client: str) -> dict[str, float]:
    """Block a client by hand and unblock it; then its limit blocks it, and it is unblocked."""

    def passes() -> bool:
        return get(edges[1].address, client) == 200

    def blocked_here() -> bool:
        return here("GET", f"/v1/blocks/{client}")[0] == 200

    def edges_with_it() -> int:
        entries = (edge.say(f"show table t_block key ::ffff:{client}") for edge in edges)
        ends = [re.search(r"gpt0=(\d+)", entry) for entry in entries]
        return sum(end is not None and int(end[1]) > time.time() for end in ends)

    found = {}
    begin = time.perf_counter()
    here("POST", "/v1/blocks", {"key": client, "ttl": "10m", "reason": "benchmark"})
    both = at_once("both edges have the block", lambda: edges_with_it() == len(edges))
    found["blocked by hand: at both edges"] = both - begin
    found["and refused at the other node"] = at_once("refused", lambda: not passes()) - begin
    begin = time.perf_counter()
    here("DELETE", f"/v1/blocks/{client}")
    found["unblocked: passes at the other node"] = at_once("passes", passes) - begin
    at_once("the client exceeds its limit", lambda: not passes())
    at_once("both nodes have the block", blocked_here)
    begin = time.perf_counter()
    here("DELETE", f"/v1/blocks/{client}")
    found["a limit's block removed: passes at the other node"] = at_once("passes", passes) - begin
    neither = at_once("neither edge has the block", lambda: not edges_with_it())
    found["and removed from both edges"] = neither - begin
    return found


def unblock_by_command(apis: list[Api], other: HAProxy, client: str) -> int:
    """Block a client and unblock it with the CLI; return the status of its next request."""
    here, there = apis
    here("POST", "/v1/blocks", {"key": client, "ttl": "10m"})
    at_once("both nodes have it", lambda: there("GET", f"/v1/blocks/{client}")[0] == 200)
    at_once("refused", lambda: get(other.address, client) == 429)
    line = [sys.executable, "-m", "ratelimit", "blocks", "remove", client]
    line += ["--url", f"http://{here.address}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return get(other.address, client)


# ---- one agent under full load -------------------------------------------------------------


def dashboard(program: Program, looks: Synchronized[int]) -> None:
    """Read metrics and page once a second until terminated."""
    api = Api(program)
    while True:
        begin = time.monotonic()
        for path in _PATHS:
            if api("GET", path)[0] != 200:
                sys.exit(f"{path} is not answered")
        looks.value += 1
        time.sleep(max(0.0, begin + 1 - time.monotonic()))


@contextlib.contextmanager
def watched(program: Program, seconds: float) -> Iterator[None]:
    """Run a dashboard in a process of its own."""
    context = multiprocessing.get_context("fork")
    looks = context.Value("i", 0)
    process = context.Process(target=dashboard, args=(program, looks))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()
    if looks.value < int(seconds):
        sys.exit(f"{looks.value} looks in {seconds} s")


def read_pages(api: Api, size: int) -> list[float]:
    """Read the whole blocklist; return the milliseconds of each page."""
    cursor, count, taken = "", 0, []
    while True:
        begin = time.perf_counter()
        page = api("GET", f"/v1/blocks?limit={size}&cursor={cursor}")[1]
        taken.append(1000 * (time.perf_counter() - begin))
        found = json.loads(page)
        count += len(found["blocks"])
        cursor = found["next"]
        if not cursor:
            break
    if count != BLOCKS:
        sys.exit(f"{count} blocks on pages of {size}")
    return taken


def ask_about(haproxy: HAProxy, api: Api) -> dict[str, float]:
    """Return the seconds of an answer about an HAProxy that works, hangs, and is dead."""
    process = haproxy.program.process
    found = {}
    for state in ("well", "hung", "dead"):
        if state == "hung":
            process.send_signal(signal.SIGSTOP)
        elif state == "dead":
            process.kill()
            process.wait()
            time.sleep(3)  # until the agent asks again
        begin = time.perf_counter()
        (report,) = api.get("/v1/haproxy")["haproxy"]
        found[f"HAProxy {state}"] = time.perf_counter() - begin
        if bool(report["problem"]) != (state != "well"):
            sys.exit(f"HAProxy {state}: {report}")
    return found


def run_load(programs: Programs, backend: str, rounds: int, seconds: float) -> Report:
    """Load an agent, with and without a dashboard, and ask it."""
    config = (
        f'[haproxy]\nsockets = ["{programs.folder}/haproxy.sock"]\n'
        f"[limits.default]\nrate = {NEVER}\nblock = []\n"
        '[limits.blocks]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'
    )
    bench = Bench(programs, "loaded", unix=True, config=config)
    settings = {"RATELIMIT_SPOP": f"unix@{bench.address}", "RATELIMIT_BACKEND": backend}
    haproxy = HAProxy(programs, "haproxy", SHIPPED, bench.program, **settings)
    api = Api(bench.program)
    over = Frames.of([_BLOCKED + i for i in range(BLOCKS)], ("blocks",), hits=wire.int64(2))
    bench.probe(over, refused=True)
    bench.load(over, 8, checks=BLOCKS)
    until("all is stored", lambda: api.get("/v1/status")["store"]["unwritten"] == 0)
    if (entries := api.get("/v1/status")["blocklist"]["entries"]) != BLOCKS:
        sys.exit(f"{entries} blocks")
    pages = {size: read_pages(api, size) for size in (100, 1000)}

    bench.move(list(PLACES)[-1])
    bench.probe(known())
    bench.load(known(), DEPTH, checks=ADDRESSES)
    alone, with_it = [], []
    for number in range(rounds):
        progress(f"load {number + 1} of {rounds}")
        alone.append(bench.load(known(), DEPTH, seconds))
        with watched(bench.program, seconds):
            with_it.append(bench.load(known(), DEPTH, seconds))
    # On a new connection: the first one was silent for too long.
    states = ask_about(haproxy, Api(bench.program))
    rate = Figure.of(sample.rate for sample in with_it).median
    more = Figure.of(b.cost / a.cost - 1 for a, b in zip(alone, with_it, strict=True)).median
    tables = (
        Table.of(
            "pages",
            f"milliseconds for each page of {BLOCKS:,} blocks",
            [_MEDIAN],
            {f"{size} entries": [times] for size, times in pages.items()},
        ),
        Table.measured(
            "dashboard",
            f"CPU microseconds a check, at {rate:,.0f} checks a second, with {BLOCKS:,} blocks; a "
            "dashboard reads metrics and page each second",
            {"cost": replace(_MEDIAN, digits=3)},
            {"without a dashboard": alone, "with a dashboard": with_it},
        ),
        Table.of(
            "GET /v1/haproxy",
            "seconds to the answer",
            [Column("seconds", "less", 3)],
            {what: [took] for what, took in states.items()},
        ),
    )
    targets = (
        Target(f"ms, slowest page of {BLOCKS:,} blocks", max(map(max, pages.values())), 50),
        Target("CPU a check, more with a dashboard", more, 0.05),
        *(Target(f"s, {what}", took, 1) for what, took in states.items()),
    )
    return Report(tables, targets)


# ---- the busiest of a full table -----------------------------------------------------------


def run_scan(programs: Programs, rounds: int) -> Report:
    """Measure the answers with the busiest clients, and the longest turn of the loop meanwhile."""
    turns = Turns(programs.folder / "turns")
    settings = {"BENCHMARK_TURNS": str(programs.folder / "turns")}
    config = f'{ALLOWING}window = "1h"\n'  # no client has left its window
    bench = Bench(programs, "scan", config=config, settings=settings)
    bench.probe(known())
    for first in range(_BLOCKED, _BLOCKED + CLIENTS, ADDRESSES):
        bench.load(Frames.of(range(first, first + ADDRESSES)), DEPTH, checks=ADDRESSES)
    api = Api(bench.program)
    found = {}
    for sort in ("rate", "share"):
        for count in (20, 1000):
            answers, longest = [], []
            # The agent reuses a recent result, unless more clients are asked for.
            for n in range(count, count + rounds) if count == 20 else range(count - rounds, count):
                turns.clear()
                begin = time.perf_counter()
                clients = api.get(f"/v1/clients?n={n + 1}&sort={sort}")["clients"]
                answers.append(1000 * (time.perf_counter() - begin))
                longest.append(turns.longest)
                assert len(clients) == n + 1
            found[f"{count} by {sort}"] = answers, longest
    bench.finish()
    table = Table.of(
        "busiest",
        f"milliseconds to find the busiest of {CLIENTS:,} clients, and CPU milliseconds of the "
        "longest turn of the event loop meanwhile",
        (Column("answer", "less", 0), Column("longest piece", "less")),
        found,
    )
    targets = (
        Target(f"ms of the loop at a time, {what}", Figure.of(longest).median, 1)
        for what, (_, longest) in found.items()
    )
    return Report((table,), tuple(targets))


def run(programs: Programs, options: argparse.Namespace) -> Report:
    _, backend = programs.application()
    by_hand = run_fleet(programs, backend, 3 * options.rounds)
    pin()  # the loader and the dashboard stay off the agent's core
    loaded = run_load(programs, backend, options.rounds, options.seconds)
    os.sched_setaffinity(0, CORES)
    return Report.joined([by_hand, loaded, run_scan(programs, options.rounds)])


if __name__ == "__main__":
    command.main("operations", __doc__, run, rounds=(7, 3), seconds=(5, 2))
