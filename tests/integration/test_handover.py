"""A hand-over with the embedded store: some agent always answers, and nothing is lost."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratelimit.exceptions import ApiError
from tests.helpers.fleet import BLOCKED, fleet, until
from tests.helpers.world import PATIENCE
from tests.integration.test_service import Heirs, spop
from tests.integration.test_side_tasks import client, status

pytestmark = pytest.mark.integration

CLIENT = "192.0.2.1"
LIMIT = '[limits.default]\nrate = 1\nwindow = "1m"\nblock = ["1h"]\nfuse = 0\n'

# An agent and its successors for which the disk hangs: they can't open the file, or not write to
# it, while a file of that name is there.
_HUNG = """
import os, sqlite3, sys, time
from ratelimit.store.sqlite import BlockFile
folder = sys.argv.pop(1)
def hangs(name):
    while os.path.exists(f"{folder}/{name}"):
        time.sleep(0.01)
connect, lost = sqlite3.connect, BlockFile.lost
def opens(*args, **kwargs):
    hangs("no-open")
    return connect(*args, **kwargs)
def looks(self):
    hangs("no-write")
    return lost(self)
sqlite3.connect, BlockFile.lost = opens, looks
from ratelimit.__main__ import main
main()
"""


@pytest.fixture
def it(folder: Path) -> Iterator[Heirs]:
    """A node that blocks a client that asks twice."""
    made = Heirs(
        folder,
        "node",
        f'[store]\nstate_dir = "{folder}/state"\n{LIMIT}',
    )
    made.program = ["-c", _HUNG, str(folder)]
    made.start()
    until(lambda: '"agent started"' in made.log(), "it has started")
    try:
        yield made
    finally:
        for name in ("no-open", "no-write"):
            (folder / name).unlink(missing_ok=True)
        made.stop()


def has_file(pid: int) -> bool:
    """Tell whether a process has the blocklist open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return any("blocklist.sqlite3" in name for name in found)


def keys(it: Heirs) -> set[str]:
    """Return the keys on its blocklist."""
    found: set[str] = set()
    cursor = ""
    while True:
        page = client(it).get("/v1/blocks", limit=1000, cursor=cursor)
        found |= {entry["key"] for entry in page["blocks"]}
        cursor = page["next"]
        if not cursor:
            return found


def blocks(it: Heirs, key: str) -> bool:
    return it.ask(key, hits=0).reason == BLOCKED


def said(it: Heirs, what: str) -> None:
    until(lambda: what in it.log(), f"it says: {what}")


def test_what_changes_while_the_successor_opens_the_store_is_not_lost(
    it: Heirs, folder: Path
) -> None:
    assert it.ask("192.0.2.9", 2).reason == BLOCKED
    first = it.pid
    (folder / "no-open").touch()
    os.kill(first, signal.SIGUSR2)
    until(lambda: not has_file(first), "it has let go of the file")
    assert it.ask(CLIENT, 2).reason == BLOCKED, "it answers"
    with pytest.raises(ApiError):
        client(it).delete("/v1/blocks/192.0.2.9")  # which the store can't confirm now
    assert it.ask("192.0.2.9").reason is None
    (folder / "no-open").unlink()
    until(lambda: it.pid != first, "the successor answers")
    assert it._sock is not None
    it._sock.close()
    it._sock = spop(str(folder / "node.sock"))
    until(lambda: it.ask(CLIENT, hits=0).reason == BLOCKED, "it knows the block")
    until(lambda: it.ask("192.0.2.9", hits=0).reason is None, "it knows the lift")
    until(lambda: not status(it)["store"]["unwritten"], "it has written what it was given")
    it.stop()
    it.start()
    assert it.ask(CLIENT, hits=0).reason == BLOCKED, "the file has it"
    assert it.ask("192.0.2.9", hits=0).reason is None


def test_a_successor_that_can_not_open_the_store_changes_nothing(it: Heirs, folder: Path) -> None:
    before = it.pid
    (folder / "no-open").touch()
    os.kill(before, signal.SIGUSR2)
    said(it, "the successor failed; this process continues")
    assert it.ask(CLIENT, 2).reason == BLOCKED
    until(lambda: not status(it)["store"]["up"], "the disk hangs for this one, too")
    assert "the disk does not answer" in status(it)["store"]["problem"]
    (folder / "no-open").unlink()
    until(lambda: status(it)["store"]["up"] and not status(it)["store"]["unwritten"], "it is well")
    it.hand_over()
    assert it.ask(CLIENT, hits=0).reason == BLOCKED


def test_a_disk_that_hangs_before_it_leaves_one_that_answers(it: Heirs, folder: Path) -> None:
    (folder / "no-write").touch()
    until(lambda: not status(it)["store"]["up"], "it is shown")
    assert "the disk does not answer" in status(it)["store"]["problem"]
    os.kill(it.pid, signal.SIGUSR2)
    said(it, "the store was not released")
    said(it, "the successor failed; this process continues")
    assert it.ask(CLIENT, 2).reason == BLOCKED
    assert it._process is not None
    it._process.send_signal(signal.SIGTERM)
    it._process.wait(PATIENCE)
    said(it, '"agent stops"')


def test_a_successor_that_is_killed_changes_nothing(it: Heirs, folder: Path) -> None:
    first = it.pid
    (folder / "no-open").touch()
    os.kill(first, signal.SIGUSR2)
    until(lambda: not has_file(first), "it has let go of the file")
    (successor,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    os.kill(int(successor), signal.SIGKILL)
    (folder / "no-open").unlink()
    said(it, "the successor failed; this process continues")
    until(lambda: has_file(first), "it has taken the file back")
    assert it.ask(CLIENT, 2).reason == BLOCKED
    until(lambda: not status(it)["store"]["unwritten"], "it is written")


def test_the_signal_to_stop_ends_both_and_writes_what_has_waited(it: Heirs, folder: Path) -> None:
    first = it.pid
    (folder / "no-open").touch()
    os.kill(first, signal.SIGUSR2)
    until(lambda: not has_file(first), "it has let go of the file")
    assert it.ask(CLIENT, 2).reason == BLOCKED
    (folder / "no-open").unlink()
    it.stop()
    assert "were lost" not in it.log()
    it.start()
    assert it.ask(CLIENT, hits=0).reason == BLOCKED


def test_while_redis_is_away_the_successor_knows_what_the_process_before_knew(
    folder: Path,
) -> None:
    with fleet(folder, "") as shared:
        made = Heirs(
            folder,
            "node",
            f'[store]\nurl = "{shared.server.url}"\nstate_dir = "{folder}/state"\n{LIMIT}',
        )
        made.start()
        try:
            assert made.ask(CLIENT, 2).reason == BLOCKED
            until(lambda: not status(made)["store"]["unwritten"], "it is written")
            shared.server.kill()
            until(lambda: not status(made)["store"]["up"], "Redis is away")
            assert made.ask("192.0.2.2", 2).reason == BLOCKED
            made.hand_over()
            for key in (CLIENT, "192.0.2.2"):
                until(functools.partial(blocks, made, key), "it is known")
        finally:
            made.stop()


def test_nothing_that_was_acknowledged_is_lost_by_many_hand_overs(it: Heirs) -> None:
    """An operator blocks and lifts all the while; the API of whichever process answers counts."""
    blocked: set[str] = set()
    lifted: set[str] = set()
    going = True
    api = client(it)

    def operate() -> None:
        number = 0
        while going:
            key = f"198.18.{number >> 8}.{number & 255}"
            number += 1
            try:
                api.post("/v1/blocks", {"key": key, "ttl": 3600})
                blocked.add(key)
                if number % 3 == 0:
                    api.delete(f"/v1/blocks/{key}")
                    lifted.add(key)
            except ApiError:
                blocked.discard(key)  # what became of it is not known
                time.sleep(0.01)

    operator = threading.Thread(target=operate)
    operator.start()
    try:
        for number in range(5):
            it.hand_over()
            goes_on = functools.partial(lambda goal: len(blocked) > goal, len(blocked) + 10)
            until(goes_on, f"the operator goes on after hand-over {number}")
    finally:
        going = False
        operator.join()
    for _ in range(2):
        found = keys(it)
        assert blocked - lifted <= found, "all that was acknowledged"
        assert not lifted & found, "and nothing that was lifted"
        it.stop()
        it.start()
