"""Several agents and a real Redis: one count, one blocklist, and both without the Redis."""

from __future__ import annotations

import itertools
import re
import signal
import statistics
import time
from pathlib import Path

import pytest

from ratelimit.store.redis.store import EXCHANGE_TIMEOUT
from tests.helpers.fleet import BLOCKED, THROTTLED, Fleet, Node, fleet, spread, until

pytestmark = pytest.mark.integration

RATE = 100
LIMIT = f'[limits.default]\nrate = {RATE}\nwindow = "2s"\nblock = ["1m", "10m"]\n'
SHORT = f'[limits.default]\nrate = {RATE}\nwindow = "100ms"\nblock = ["1s", "1h"]\n'
THROTTLE = f'[limits.default]\nrate = {RATE}\nwindow = "1m"\nblock = []\n'
LONG = f'[limits.default]\nrate = {RATE}\nwindow = "1h"\nblock = ["1s"]\n'
CLIENT = "192.0.2.1"


def blocks(node: Node, client: str | bytes) -> bool:
    """Tell whether a node refuses a client that is none of its own business, by the blocklist."""
    return node.ask(client, hits=0).reason == BLOCKED


def logged(it: Fleet, line: str) -> None:
    """Wait until all nodes have logged a line."""
    until(lambda: all(line in node.log() for node in it.nodes), f"all log: {line}")


def test_a_client_of_two_nodes_is_counted_once(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        nodes = [it.add(), it.add()]
        it.settled(RATE)
        answers = spread(nodes, CLIENT, rate=2 * RATE, seconds=2)
        assert answers[-1].reason == BLOCKED
        assert RATE <= len(answers) - 1 <= 1.2 * RATE
        assert it.endless() == []


@pytest.mark.parametrize("weights", [(1, 1, 1), (7, 2, 1)])
def test_a_client_below_its_limit_is_never_refused(folder: Path, weights: tuple[int, ...]) -> None:
    with fleet(folder, LIMIT) as it:
        nodes = [it.add() for _ in range(3)]
        it.settled(RATE)
        answers = spread(nodes, CLIENT, rate=0.9 * RATE / 2, seconds=3, weights=weights)
        assert {answer.reason for answer in answers} == {None}
        # That they did share it, or nothing was tested.
        assert it.counted(CLIENT) > max(weights) / sum(weights) * RATE * 0.8


def test_where_answers_wait_for_redis_not_one_hit_is_above_the_limit(folder: Path) -> None:
    with fleet(folder, THROTTLE) as it:
        nodes = [it.add(store='sync_interval = "0"') for _ in range(3)]
        for client in (CLIENT, b"a string"):
            answers = [nodes[turn % 3].ask(client).reason for turn in range(RATE + 10)]
            assert answers == [None] * RATE + [THROTTLED] * 10
        it.server.pause()
        # Each counts alone, though nobody has noticed yet.
        for node in nodes:
            assert node.ask("203.0.113.1", RATE).reason is None
            assert node.ask("203.0.113.1").reason == THROTTLED
        logged(it, "store lost")
        it.server.resume()
        logged(it, "store back")
        fresh = (f"198.51.100.{number}" for number in range(250))
        until(lambda: not counts_alone(nodes, next(fresh)), "counts are shared again")


def counts_alone(nodes: list[Node], client: str) -> bool:
    return nodes[0].ask(client, RATE).reason is None and nodes[1].ask(client).reason is None


def test_a_block_of_one_node_holds_on_all(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        one, other = it.add(), it.add()
        answer = one.ask(CLIENT, RATE + 1)
        assert answer.reason == BLOCKED
        until(lambda: blocks(other, CLIENT), "the other node blocks it too")
        ends = [made.number("block_until") for made in (answer, other.ask(CLIENT))]
        assert abs(ends[0] - ends[1]) <= 1  # each by the clock of its machine, in whole seconds
        assert it.endless() == []


def test_after_a_block_that_is_short_beside_the_window_a_client_is_shared_again(
    folder: Path,
) -> None:
    with fleet(folder, LONG) as it:
        nodes = [it.add(), it.add()]
        it.settled(RATE)
        for _ in range(3):
            answers = spread(nodes, CLIENT, rate=RATE, seconds=4)
            assert answers[-1].reason == BLOCKED
            assert RATE <= len(answers) - 1 <= 1.2 * RATE
            until(lambda: not any(blocks(node, CLIENT) for node in nodes), "the block ends")


def test_strikes_are_shared(folder: Path) -> None:
    with fleet(folder, SHORT) as it:
        one, other = it.add(), it.add()
        assert one.ask(CLIENT, RATE + 1).number("retry_after") <= 2
        until(lambda: blocks(other, CLIENT), "the other node blocks it too")
        until(lambda: not blocks(other, CLIENT), "the block ends")
        again = other.ask(CLIENT, RATE + 1)
        assert again.reason == BLOCKED
        assert again.number("retry_after") > 3000


def test_a_string_is_one_client_on_all_nodes(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        nodes = [it.add(), it.add()]
        it.settled(RATE)
        key = b"a key of an application"
        assert nodes[0].ask(key, RATE * 3 // 5).reason is None
        sent = RATE * 3 // 5
        # The other node learns of the first one's hits with its own; then both know.
        for number in itertools.count():
            if (answer := nodes[1 - number % 2].ask(key, 3)).reason:
                break
            sent += 3
        assert answer.reason == BLOCKED
        assert sent < 1.5 * RATE
        until(lambda: all(blocks(node, key) for node in nodes), "both block it")


@pytest.mark.parametrize("key", [b"long " * 100, b"not \xff UTF-8", b"like~" + 32 * b"a"])
def test_a_block_of_a_string_that_can_not_be_shown_whole_holds_on_all(
    folder: Path, key: bytes
) -> None:
    with fleet(folder, LIMIT) as it:
        one, other = it.add(), it.add()
        it.settled(RATE)
        assert one.ask(key, RATE + 1).reason == BLOCKED
        until(lambda: blocks(other, key), "the other node blocks it too")
        assert not blocks(other, key + b"!")


def test_a_node_that_starts_later_knows_the_blocks(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        one = it.add()
        for client in (CLIENT, b"a string"):
            assert one.ask(client, RATE + 1).reason == BLOCKED
        until(lambda: it.server.do("HLEN", "ratelimit:{fleet}:blocks") == 3, "blocks are stored")
        one.stop()
        later = it.add()
        assert blocks(later, CLIENT)
        assert blocks(later, b"a string")


def test_redis_killed_and_started_again(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        one, other = it.add(), it.add()
        it.settled(RATE)
        before = "203.0.113.1"
        assert one.ask(before, RATE + 1).reason == BLOCKED
        until(lambda: blocks(other, before), "the other node blocks it too")
        it.server.kill()
        logged(it, "store lost")
        # Each counts alone, at once.
        for node in (one, other):
            assert node.ask("203.0.113.2", RATE).reason is None
        assert one.ask(CLIENT, RATE + 1).reason == BLOCKED
        assert not blocks(other, CLIENT)
        assert blocks(one, before) and blocks(other, before)
        it.server.start()
        until(lambda: blocks(other, CLIENT), "the other node learns of the block")
        assert blocks(one, before) and blocks(other, before)
        logged(it, "store back")
        for node in (one, other):
            assert node.log().count("store lost") == node.log().count("store back") == 1
        it.settled(RATE)
        assert it.endless() == []


def test_redis_that_hangs(folder: Path) -> None:
    with fleet(folder, LIMIT) as it:
        nodes = [it.add(), it.add()]
        it.settled(RATE)
        it.server.pause()
        seconds = []
        number = 0
        # New clients all the while, each over its share, so that there is something to tell.
        while not all("store lost" in node.log() for node in nodes):
            number += 1
            for node in nodes:
                answer = node.ask(f"203.0.{number >> 8 & 255}.{number & 255}", RATE // 2)
                assert answer.reason is None
                seconds.append(answer.seconds)
        # A node that waited would have taken the time limit once, and then known.
        assert number > 1
        assert statistics.median(seconds) < EXCHANGE_TIMEOUT
        it.server.resume()
        logged(it, "store back")
        answers = spread(nodes, CLIENT, rate=2 * RATE, seconds=2)
        assert answers[-1].reason == BLOCKED
        assert len(answers) - 1 <= 1.2 * RATE


def test_started_without_redis(folder: Path) -> None:
    with fleet(folder, LIMIT, redis=False) as it:
        one, other = it.add(), it.add()
        assert one.ask(CLIENT, RATE).reason is None
        assert one.ask(CLIENT).reason == BLOCKED
        assert not blocks(other, CLIENT)
        it.server.start()
        until(lambda: blocks(other, CLIENT), "the block is told")
        it.settled(RATE)
        assert it.endless() == []


def test_a_limit_shared_out_while_redis_is_away(folder: Path) -> None:
    with fleet(folder, THROTTLE) as it:
        nodes = [it.add(store='on_outage = "share"') for _ in range(2)]
        it.settled(RATE)
        assert nodes[0].ask("203.0.113.1", RATE).reason is None
        it.server.kill()
        logged(it, "store lost")
        for node in nodes:
            assert node.ask(CLIENT, RATE // 2).reason is None
            assert node.ask(CLIENT).reason == THROTTLED
        it.server.start()
        logged(it, "store back")
        fresh = (f"198.51.100.{number}" for number in range(250))
        one, other = nodes
        until(lambda: one.ask(next(fresh), RATE).reason is None, "all of the limit")
        until(lambda: other.ask(next(fresh), RATE).reason is None, "all of the limit")


@pytest.mark.parametrize("minutes", [-7, 5])
def test_a_node_whose_clock_is_wrong(folder: Path, minutes: int) -> None:
    with fleet(folder, LIMIT) as it:
        right, wrong = it.add(), it.add(clock=60 * minutes)
        it.settled(RATE)
        answers = spread([right, wrong], CLIENT, rate=2 * RATE, seconds=2)
        assert answers[-1].reason == BLOCKED
        assert RATE <= len(answers) - 1 <= 1.2 * RATE
        until(lambda: blocks(right, CLIENT) and blocks(wrong, CLIENT), "both block it")
        ends = [node.ask(CLIENT, 0) for node in (right, wrong)]
        # HAProxy compares the end with the clock of its machine, so each node tells its own.
        assert abs(ends[0].number("block_until") - (time.time() + 60)) <= 3
        assert abs(ends[1].number("block_until") - (time.time() + 60 * minutes + 60)) <= 3
        assert abs(ends[0].number("retry_after") - ends[1].number("retry_after")) <= 1
        # The same the other way round, for a block that the wrong one made.
        assert wrong.ask("203.0.113.1", RATE + 1).reason == BLOCKED
        until(lambda: blocks(right, "203.0.113.1"), "the right one blocks it too")
        end = right.ask("203.0.113.1").number("block_until")
        assert abs(end - (time.time() + 60)) <= 3


@pytest.mark.parametrize("minutes", [-7, 5])
def test_a_wrong_clock_before_redis_was_ever_reached(folder: Path, minutes: int) -> None:
    with fleet(folder, LIMIT, redis=False) as it:
        wrong, right = it.add(clock=60 * minutes), it.add()
        first = wrong.ask(CLIENT, RATE + 1)
        assert first.reason == BLOCKED
        assert abs(first.number("block_until") - (time.time() + 60 * minutes + 60)) <= 3
        it.server.start()
        until(lambda: blocks(right, CLIENT), "the right one blocks it too")
        assert abs(right.ask(CLIENT, 0).number("block_until") - (time.time() + 60)) <= 5
        again = wrong.ask(CLIENT, 0)
        assert again.reason == BLOCKED
        # With the time of the block, the clock has changed too.
        assert abs(again.number("block_until") - first.number("block_until")) <= 3
        it.settled(RATE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_blocks_outlive_a_node_of_its_own(folder: Path, number: signal.Signals) -> None:
    state = folder / "state"
    config = f'[store]\nstate_dir = "{state}"\n{LIMIT}'
    node = Node(folder, "alone", config).start()
    try:
        clients: list[str | bytes] = [CLIENT, b"a string", "2001:db8::1"]
        ends = [node.ask(client, RATE + 1).number("block_until") for client in clients]
        if number == signal.SIGKILL:
            # It is written off the request path; what counts is what has been.
            until(lambda: stored(state) == len(clients), "the blocks are written")
        node.stop(number)
        node.start()
        again = [node.ask(client, 0) for client in clients]
        assert [answer.reason for answer in again] == [BLOCKED] * len(clients)
        assert [answer.number("block_until") for answer in again] == ends
    finally:
        node.stop()


def stored(state: Path) -> int:
    """Return how many entries are in the files of a node, which are locked to it."""
    found = b"".join(path.read_bytes() for path in state.iterdir())
    return len(set(re.findall(rb'"key":"([^"]+)"', found)))
