"""The CPU time and memory with which ``ratelimit replay`` reads a log.

``python -m benchmarks.replay`` writes a log of a million lines in each format, with 25,000 clients,
ten of which attack a third of the time, and replays it. Times are CPU times of the command, from
its start to its end, user and system.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.harness import command
from benchmarks.harness.programs import MIB, ROOT, Programs, progress
from benchmarks.harness.report import Column, Figure, Report, Table, Target

START = datetime(2026, 11, 24, 9, 10, tzinfo=UTC)
RATE = 2000  # requests a second
SPREAD = 50  # milliseconds by which lines are out of order
ATTACKED = 20_000  # lines, of each 60,000
LIMIT = 10  # seconds a million lines

HTTPLOG = (
    "{client}:40112 [{at:%d/%b/%Y:%H:%M:%S}.{ms:03}] web app/app1 0/0/0/1/1 200 104 - - ---- "
    '1/1/0/0/0 0/0 "GET /some/path?n={n} HTTP/1.1" allow - 0 -'
)
FORMATS = {
    "HAProxy": HTTPLOG,
    "HAProxy, syslog": "{at:%b %d %H:%M:%S} lb1 haproxy[812]: " + HTTPLOG,
    "combined": (
        '{client} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "GET /some/path?n={n} HTTP/1.1" 200 104 '
        '"https://example.org/" "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"'
    ),
}


def lines(form: str, count: int) -> Iterator[str]:
    rng = random.Random(1)
    clients = [f"10.{rng.randrange(256)}.{rng.randrange(256)}.{n % 256}" for n in range(20_000)]
    clients += [f"2001:db8:{rng.randrange(65_536):x}:{n:x}::1" for n in range(5000)]
    for n in range(count):
        attack = n // ATTACKED % 3 == 1 and rng.random() < 0.6
        client = clients[rng.randrange(10 if attack else len(clients))]
        at = START + timedelta(milliseconds=n * 1000 // RATE + rng.randrange(SPREAD))
        yield FORMATS[form].format(client=client, at=at, ms=at.microsecond // 1000, n=n)


def measure(file: Path, output: Path) -> tuple[float, int]:
    """Return the CPU seconds and the maximum memory, in bytes, of one replay.

    Linux reports at least the memory that this process had when it started the other.
    """
    command = [sys.executable, "-m", "ratelimit", "replay", str(file), "--json"]
    with output.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def run(programs: Programs, options: argparse.Namespace) -> Report:
    folder, rounds = programs.folder, options.rounds
    count = 200_000 if options.quick else 1_000_000
    logs: dict[str, Path] = {}
    for form in FORMATS:
        progress(f"writing: {form}")
        logs[form] = folder / f"{len(logs)}.log"
        with logs[form].open("w") as file:
            file.writelines(f"{line}\n" for line in lines(form, count))
    logs["HAProxy, gzip"] = folder / "gzip.log"
    with logs["HAProxy"].open("rb") as plain, gzip.open(logs["HAProxy, gzip"], "wb", 6) as packed:
        shutil.copyfileobj(plain, packed)
    rows, targets = {}, []
    for form, log in logs.items():
        progress(f"reading: {form}")
        runs = [measure(log, folder / "found.json") for _ in range(rounds)]
        report = json.loads((folder / "found.json").read_text())
        assert report["requests"] == count
        seconds = Figure.of(cpu for cpu, _ in runs)
        rows[form] = (
            seconds,
            [count / cpu for cpu, _ in runs],
            [size / MIB for _, size in runs],
            100 * report["refused"] / count,
        )
        million = seconds.median / count * 1e6
        targets.append(Target(f"CPU seconds a million lines, {form}", million, LIMIT))
    columns = (
        Column("CPU s", "less"),
        Column("lines a CPU s", "more", 0),
        Column("memory, MiB", "less", 0),
        Column("refused, %", digits=1),
    )
    note = f"ratelimit replay of {count:,} lines, {rounds} times"
    return Report((Table.of("log", note, columns, rows),), tuple(targets))


if __name__ == "__main__":
    command.main("replay", __doc__, run, rounds=(5, 1))
