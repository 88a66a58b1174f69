"""The load test, short: through real servers, and against one that does everything wrong.

What it finds depends on the machine, so it is only held that it says what it found. It runs as a
process, for locust patches the one that it is in.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.harness import report
from benchmarks.harness.http import Crowd, Paced, Sender
from benchmarks.harness.programs import HARNESS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

CLASSES = 7
LIMIT = 60  # seconds


async def load(*command: str) -> tuple[int | None, str]:
    """Run a module and return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    except TimeoutError:
        process.terminate()  # and it ends the programs that it started
        await process.wait()
        raise
    return process.returncode, output.decode()


def test_it_ends_and_says_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    code, output = asyncio.run(load("benchmarks.loadtest", "--quick", "--json", str(file)))
    found = report.read(file)["loadtest"].report
    assert code == int(not all(target.reached for target in found.targets)), output
    assert output.count("reached ") + output.count("MISSED ") == len(found.targets)
    counts, times = found.tables
    assert len(counts.rows) == len(times.rows) == CLASSES
    by_class = {row.name: [cell.median for cell in row.cells if cell] for row in counts.rows}
    assert all(requests for _, requests, *_ in by_class.values())
    refused = {name for name, (_, _, count, *_) in by_class.items() if count}
    assert {"attacker, 300/s", "attacker, 3,000/s", "stops, comes back"} <= refused
    assert re.search(r"HAProxy counted [\d,]+ answers 200 and [\d,]+ refusals", output)


async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse the visitors, and admit all others."""
    host, _ = writer.get_extra_info("peername")
    status = b"429 No" if host.startswith("127.10.") else b"200 OK"
    while data := await reader.read(1 << 16):
        writer.write((b"HTTP/1.1 " + status + b"\r\n\r\n") * data.count(b"\r\n\r\n"))
    writer.close()


async def load_wrong() -> tuple[int | None, str]:
    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        command = ("-f", "benchmarks/locustfile.py", "--headless", "--quick", "--skip-log-setup")
        return await load("locust", *command, "--host", f"http://{host}:{port}")


def test_wrong_done_to_anybody_ends_with_1() -> None:
    code, output = asyncio.run(load_wrong())
    assert code == 1, output
    missed = set(re.findall("MISSED +([^:]+):", output))
    assert missed == {
        "visitors refused",
        "refusals without a reason",
        "clients above their limit never refused",
        "requests leaked beyond a part of the window",
    }


async def flood_wrong(folder: Path) -> tuple[Paced, Paced]:
    program = str(folder / "paced")
    source = HARNESS / "paced.c"
    compiler = ("-O2", "-D_GNU_SOURCE", "-Wall", "-Werror", "-o", program, str(source), "-lm")
    assert await (await asyncio.create_subprocess_exec("cc", *compiler)).wait() == 0
    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        crowds = (Crowd("127.10.0.1", 5, 50), Crowd("127.66.0.1", 2, 600))
        senders = [Sender(program, address, crowd, seed=1, seconds=1) for crowd in crowds]
        visitors, attackers = [await asyncio.to_thread(sender.result) for sender in senders]
    return visitors, attackers


def test_clients_of_the_flood_count_what_they_got(tmp_path: Path) -> None:
    visitors, attackers = asyncio.run(flood_wrong(tmp_path))
    for load in (visitors, attackers):
        assert load.sent == load.allowed + load.refused + load.failed
        assert len(load.took()) == load.allowed
    assert visitors.refused > visitors.failed
    assert visitors.allowed == 0
    assert attackers.allowed > 2 * 100
    assert 0 < attackers.leaked <= attackers.allowed - 2 * 100
