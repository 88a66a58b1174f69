"""The CPU cost of a check in the agent, without HAProxy.

``python -m benchmarks.agent`` sends pre-built NOTIFY frames over a few connections, with a fixed
number in flight on each, and counts the bytes of the answers. The compiled agent, the plain one,
and one that only acknowledges take turns, so other load on the machine affects all of them. CPU
times are the agent's own, user and system, as the kernel's scheduler accounts them.

First both ends share one core: their messages stay in its cache, and no other core must wake up.
Then each has a core of its own, like HAProxy and its agent when both are busy. They are pinned,
because the kernel would otherwise move them from one placement to the other.

"All in use" is an agent that uses every feature that a check can use: three limits, 100,000
networks on the allow list, ``headers = true``, and Redis, through which two agents (one on TCP, one
on a unix socket) share the counts of 100 clients, which send every tenth request.
"""

from __future__ import annotations

import argparse
import functools
from typing import cast

from benchmarks.harness import command
from benchmarks.harness.fleet import await_sharing
from benchmarks.harness.haproxy import NEVER
from benchmarks.harness.programs import Programs, pin, progress, until
from benchmarks.harness.report import Column, Figure, Report, Table, Target
from benchmarks.harness.spop import (
    ADDRESSES,
    CONNECTIONS,
    DEPTH,
    DEPTHS,
    KNOWN,
    NETWORKS,
    PLACES,
    Bench,
    Frames,
    Sample,
    known,
    networks,
)
from tests.helpers import wire
from tests.helpers.servers import Server

BOUNDS = {8: 1.0, 64: 0.4}
"""The most CPU microseconds of a check with all in use, by frames in flight."""

RATE = 1_000_000
"""The least checks a second of one agent with all in use."""

_REFUSING = '[limits.default]\nrate = 1\nblock = ["1h"]\nfuse = 0\n'
_REFUSED = ", all refused"
_IN_USE = "compiled, all in use"
_NAMES = ("default", "sign-in", "api-key")  # of one length, so all frames have one size
_BUSY = 100  # clients that the nodes share


@functools.cache
def mixed() -> Frames:
    """Return frames that each ask for one of three limits, most for the same.

    Every tenth is from one of the few busy clients.
    """
    parts = [known((name,)) for name in _NAMES]
    busy = Frames.of(range(KNOWN, KNOWN + _BUSY), _NAMES[:1])
    size = busy.size
    built = []
    for i in range(ADDRESSES + DEPTH):
        part = {7: busy, 8: parts[1], 9: parts[2]}.get(i % 10, parts[0])
        start = (i // 10 % _BUSY if part is busy else i % ADDRESSES) * size
        built.append(part.data[start : start + size])
    return Frames(memoryview(b"".join(built)), ADDRESSES, size)


def all_in_use(programs: Programs) -> list[Bench]:
    """Start two agents with all in use, which share the busy clients and know the others."""
    server, _ = programs.redis()
    lists = programs.folder / "in-use.lst"
    lists.write_text("\n".join(networks(NETWORKS, 1)))
    config = f'[store]\nurl = "{server.url}"\n[lists]\nallow_files = ["{lists}"]\n'
    for name in _NAMES:
        config += f'[limits.{name}]\nrate = {NEVER}\nwindow = "1h"\nblock = []\nheaders = true\n'
    tcp = Bench(programs, _IN_USE, config=config)
    benches = [tcp, Bench(programs, f"{_IN_USE}, unix", unix=True, config=config)]
    # More than the share of one of two nodes, and much less than the limit for both.
    hits = NEVER * 3 // 10
    busy = Frames.of(range(KNOWN, KNOWN + _BUSY), hits=wire.int64(hits))
    for bench in benches:
        bench.probe(mixed())
        bench.checks += await_sharing(server, bench.address, hits)
        bench.load(busy, min(DEPTHS), checks=_BUSY)
        bench.load(mixed(), DEPTH, checks=ADDRESSES)
    until(f"the agents share {_BUSY} clients", lambda: shared(server, _BUSY))
    return benches


def shared(server: Server, clients: int) -> bool:
    """Tell whether Redis has the hits of so many clients."""
    with server.client() as redis:
        keys = cast("list[bytes]", redis.keys("*:hits:*"))
        fields = [cast("list[bytes]", redis.hkeys(key)) for key in keys]
    return len({field[:16] for some in fields for field in some}) >= clients


def set_up(programs: Programs, unix: bool) -> list[tuple[Bench, Frames, int]]:
    """Start and warm all agents; return the loads, each with its frames in flight."""
    turns: list[tuple[Bench, Frames, int]] = []
    for form in ("compiled", "plain", "ack"):
        bench = Bench(programs, form, form, unix)
        bench.probe(known())
        bench.load(known(), DEPTH, checks=ADDRESSES)
        turns += [(bench, known(), depth) for depth in DEPTHS]
    turns += [(bench, mixed(), depth) for bench in all_in_use(programs) for depth in DEPTHS]
    over = Frames.of(range(KNOWN, KNOWN + ADDRESSES), hits=wire.int64(2))
    for form in ("compiled", "plain"):
        bench = Bench(programs, f"{form}{_REFUSED}", form, unix, _REFUSING)
        bench.probe(over, refused=True)
        bench.load(over, DEPTH, checks=ADDRESSES)
        turns.append((bench, over, DEPTH))
    return turns


def run(programs: Programs, options: argparse.Namespace) -> Report:
    pin()
    turns = set_up(programs, options.unix)
    samples: dict[tuple[str, str, int], list[Sample]] = {}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for place in PLACES:
            for bench, frames, depth in turns:
                bench.move(place)
                taken = samples.setdefault((place, bench.name, depth), [])
                taken.append(bench.load(frames, depth, options.seconds))
    for bench in dict.fromkeys(bench for bench, *_ in turns):
        bench.finish()

    note = f"{CONNECTIONS} {'unix' if options.unix else 'tcp'} connections, {ADDRESSES:,} "
    note += f"addresses, {options.rounds} rounds of {options.seconds:g} s: median (least-greatest)."
    note += " Busy is the share of the time in which each ran: an agent that ran for less than its"
    note += " core, or its share of one, waited for work, and can do more checks a second"
    columns = (
        Column("checks a second", "more", 0),
        Column("CPU us a check", "less", 3),
        Column("plain to compiled", digits=1),
        Column("agent busy, %", digits=0),
        Column("loader busy, %", digits=0),
    )
    rows: dict[str, dict[str, list[Figure | None]]] = {place: {} for place in PLACES}
    targets = []
    for (place, name, depth), taken in samples.items():
        rate, cost = Figure.of(s.rate for s in taken), Figure.of(s.cost for s in taken)
        ratio = None
        if name.startswith("compiled") and not name.startswith(_IN_USE):
            plain = samples[place, name.replace("compiled", "plain"), depth]
            ratio = Figure.of(p.cost / c.cost for p, c in zip(plain, taken, strict=True))
        agent = Figure.of(100 * s.cpu / s.seconds / 1e9 for s in taken)
        loader = Figure.of(100 * s.own / s.seconds / 1e9 for s in taken)
        rows[place][f"{name}, {depth} in flight"] = [rate, cost, ratio, agent, loader]
        title = f"{name}, {depth} in flight, {place}"
        if name.startswith(_IN_USE) and depth in BOUNDS:
            targets.append(Target(f"CPU us a check, {title}", cost.median, BOUNDS[depth]))
        if name.startswith(_IN_USE) and depth == DEPTH:
            targets.append(Target(f"checks a second, {title}", rate.median, RATE, at_most=False))
        if name == "compiled" and depth == DEPTH and ratio:
            targets.append(Target(f"plain to {title}", ratio.median, 10, at_most=False))
    tables = (Table.of(place, note, columns, those) for place, those in rows.items())
    return Report(tuple(tables), tuple(targets))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unix", action="store_true", help="unix sockets instead of TCP")


if __name__ == "__main__":
    command.main("agent", __doc__, run, rounds=(7, 3), seconds=(0.4, 0.2), arguments=arguments)
