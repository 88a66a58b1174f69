"""What a node and its store tell each other; the store is a model, and its answers come when told.

An hour without the store passes in no time, for the clock is an argument too.
"""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import SECOND
from ratelimit.store import sync as module
from ratelimit.store.base import Events, Node, SharedStore, StoreError
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.redis.url import parse
from ratelimit.store.sync import Sync
from tests.helpers import wire
from tests.helpers.counts import Store as Counts
from tests.helpers.forms import responder

LIMIT = Limit(block=())
RATE = LIMIT.rate
ASK = wire.notify(wire.message("default", key=wire.address("192.0.2.1")))
PATIENCE = 10.0


class Store(SharedStore):
    """A store that is up; it answers an exchange as soon as ``answers`` is set."""

    def __init__(self, events: Events) -> None:
        super().__init__(events)
        self.up = True
        self.nodes = 2
        self.counts = Counts()
        self.asked = 0
        self.answers = asyncio.Event()
        self.fails = False

    @property
    def secret(self) -> bytes:
        return bytes(16)

    async def lease(
        self, names: Sequence[str], agent: str, life: int
    ) -> dict[str, tuple[str, str]]:
        return {}

    async def exchange(
        self, limit: str, shard: int, generation: int, ttl: int, batch: bytes, hot: bytes = b""
    ) -> bytes:
        self.asked += 1
        await self.answers.wait()
        if self.fails:
            raise StoreError("away")
        return self.counts.exchange(batch)

    async def start(self) -> None:
        raise AssertionError

    close = load = nodes_list = start  # type: ignore[assignment]

    def announce(self, node: Node) -> None:
        raise AssertionError


def client(number: int, hits: int) -> bytes:
    """Return a request of an IPv4 address that counts as so many."""
    key = b"\x06" + number.to_bytes(4)
    return wire.notify(wire.message("default", key=key, hits=wire.int64(hits)))


class Peer:
    """A connection that keeps what it was answered."""

    def __init__(self, limiter: Limiter) -> None:
        self._engine = limiter.engine
        self.allowed = 0
        self.answered = 0

    def reserve(self, data: bytes) -> None:
        responder(self._engine).reserve(data, 0, 16380)

    def answer(self, data: bytes, now: int) -> None:
        self._engine.at(now)
        responder(self._engine).answer(data, 0, 16380)
        frames = wire.frames(responder(self._engine).take())
        self.answered += len(frames)
        self.allowed += sum("deny" not in frame.items for frame in frames)


class Waiting:
    """A node whose answers wait for the store."""

    def __init__(self, counts: Counts | None = None, max_clients: int = 1000) -> None:
        self.limiter = Limiter([LIMIT], max_clients, bytes(range(64)), sharing=Sharing.ALL)
        self.sync = Sync(self.limiter, 0, False)
        self.store = Store(self.sync.events)
        self.store.counts = counts or self.store.counts
        self.sync.store = self.store
        self.peer = Peer(self.limiter)


@asynccontextmanager
async def running(*nodes: Waiting) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(node.sync.run()) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def test_answers_wait_for_the_store_and_go_by_what_it_says() -> None:
    async def main() -> None:
        counts = Counts()
        one, other = Waiting(counts), Waiting(counts)
        async with running(one, other):
            one.store.answers.set()
            one.sync.hold(one.peer, ASK * 60)
            await until(lambda: one.peer.answered == 60)
            other.sync.hold(other.peer, ASK * 30)
            other.sync.hold(other.peer, ASK * 30)
            await until(lambda: other.store.asked)
            assert other.peer.answered == 0
            other.store.answers.set()
            await until(lambda: other.peer.answered == 60)
            assert one.peer.allowed + other.peer.allowed == RATE
            assert other.store.asked == 1, "what was read in one turn goes in one exchange"

    asyncio.run(main())


def test_after_a_deadline_a_node_goes_by_its_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.001)

    async def main() -> None:
        node = Waiting()
        async with running(node):
            for number in (1, 2):
                node.sync.hold(node.peer, ASK * (RATE - 10))
                late = number * (RATE - 10)
                await until(lambda late=late: node.sync.late == late)  # type: ignore[misc]
                assert node.peer.answered == late
            assert node.peer.allowed == RATE

    asyncio.run(main())


class Far(Store):
    """A store that is so many seconds away."""

    def __init__(self, events: Events, seconds: float) -> None:
        super().__init__(events)
        self.seconds = seconds

    async def exchange(
        self, limit: str, shard: int, generation: int, ttl: int, batch: bytes, hot: bytes = b""
    ) -> bytes:
        self.asked += 1
        answers = self.counts.exchange(batch)
        await asyncio.sleep(self.seconds)
        return answers


class Timed(Peer):
    """A connection of one read, which keeps how long that waited for its answer."""

    def __init__(self, node: Waiting, data: bytes) -> None:
        super().__init__(node.limiter)
        self._began = asyncio.get_running_loop().time()
        self.waited = math.inf
        node.sync.hold(self, data)

    def answer(self, data: bytes, now: int) -> None:
        super().answer(data, now)
        self.waited = asyncio.get_running_loop().time() - self._began


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose time passes at once when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0.0
        selector = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def skip(timeout: float | None) -> object:
            events = select(0)
            assert events or timeout is not None, "nothing would ever happen"
            self._passed += 0 if events else timeout or 0
            return events

        selector.select = skip

    def time(self) -> float:
        return self._passed


def leap(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Leaping) as runner:
        runner.run(main)


def far(seconds: float) -> Waiting:
    """Return a node whose store is so many seconds away."""
    node = Waiting(max_clients=100_000)
    node.store = node.sync.store = Far(node.sync.events, seconds)
    node.sync.reloaded()
    return node


READS = 200


def steady(seconds: float) -> tuple[Waiting, list[float]]:
    """Have such a node answer a read each 3 ms; return it, and how long each waited."""
    node = far(seconds)
    peers: list[Timed] = []

    async def main() -> None:
        async with running(node):
            for number in range(READS):
                peers.append(Timed(node, client(number % 7, 1)))
                await asyncio.sleep(0.003)
            await asyncio.sleep(1)

    leap(main())
    assert [peer.answered for peer in peers] == [1] * READS
    return node, [peer.waited for peer in peers]


def test_two_round_trips_within_the_deadline_are_waited_for() -> None:
    node, waited = steady(0.0125)
    assert 0.02 < max(waited) < 0.025
    assert node.sync.late == 0


@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.2])
def test_no_answer_waits_longer_than_the_deadline_whatever_is_under_way(seconds: float) -> None:
    node, waited = steady(seconds)
    assert max(waited) == pytest.approx(module._DEADLINE, abs=1e-6)
    assert 0 < node.sync.late <= READS


@pytest.mark.parametrize("seconds", [0.0125, 0.05, 0.2])
def test_what_was_answered_without_the_store_is_told_to_it_once(seconds: float) -> None:
    node, _ = steady(seconds)
    totals = node.store.counts.totals
    assert sum(sum(ticks.values()) for ticks in totals.values()) == READS
    assert not any(exchange.due for exchange in node.limiter.engine.exchanges)


def test_more_clients_than_one_call_carries_are_told_in_one_round_trip() -> None:
    node = far(0.02)
    clients = 2500

    async def main() -> None:
        async with running(node):
            peer = Timed(node, b"".join(client(number, 1) for number in range(clients)))
            await asyncio.sleep(1)
            assert peer.waited == pytest.approx(0.02)

    leap(main())
    assert (node.store.asked, node.sync.late) == (3, 0)
    assert len(node.store.counts.totals) == clients


def test_late_answers_are_logged_once_a_minute() -> None:
    node = far(0.2)

    async def main() -> None:
        async with running(node):
            for _ in range(5):
                Timed(node, ASK)
                await asyncio.sleep(0.05)
                node.sync.tick()

    with capture_logs() as lines:
        leap(main())
    (line,) = lines
    assert line["event"].startswith("checks were answered with local counts only")
    assert (line["checks"], line["waited_ms"]) == (1, 30)


@pytest.mark.parametrize("away", [True, False])
def test_without_the_store_nothing_waits(away: bool) -> None:
    async def main() -> None:
        node = Waiting()
        node.store.up = not away
        node.store.fails = True
        node.store.answers.set()
        async with running(node):
            node.sync.hold(node.peer, ASK * (RATE + 10))
            await until(lambda: node.peer.answered == RATE + 10)
            assert node.peer.allowed == RATE
            assert (node.store.asked, node.sync.failures) == ((0, 0) if away else (1, 1))

    asyncio.run(main())


def test_a_flood_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD", 10 * len(ASK))

    async def main() -> None:
        node = Waiting()
        async with running(node):
            node.sync.hold(node.peer, ASK * 11)
            await until(lambda: node.peer.answered == 11)
            assert node.store.asked == 0

    asyncio.run(main())


def test_what_is_held_is_answered_when_the_node_stops() -> None:
    async def main() -> None:
        node = Waiting()
        async with running(node):
            node.sync.hold(node.peer, ASK * 5)
            await until(lambda: node.store.asked)
            node.sync.hold(node.peer, ASK * 7)
            node.sync.release()
            assert node.peer.answered == 7
        assert node.peer.answered == 12

    asyncio.run(main())


class Planned:
    """Stands for the exchange of a limit of which something is due, or a round begins."""

    def __init__(self, rule: object, due: int, wait: int) -> None:
        self.rule = rule
        self.due = due
        self.packed = 0
        self._wait = wait

    def wait(self, now: int) -> int:
        return self._wait

    def pack(self, now: int) -> bytes:
        self.packed += 1
        return b""


def test_only_what_is_due_is_packed() -> None:
    async def main() -> None:
        node = Waiting()
        rule, now = node.limiter.engine.rules[0], node.sync.now()
        plans = [(0, 0), (now - SECOND, 0), (now + 60 * SECOND, 0), (0, 1), (0, 60 * SECOND)]
        planned = [Planned(rule, *plan) for plan in plans]
        node.limiter.engine.exchanges[:] = planned  # type: ignore[assignment]
        await node.sync._round(node.store)
        assert [one.packed for one in planned] == [0, 1, 0, 1, 0]

    asyncio.run(main())


def test_what_the_process_before_has_left_is_in_force_at_once() -> None:
    limiter = Limiter([LIMIT], 8)
    sync = Sync(limiter, 0.01, share=False)
    end = sync.now() // SECOND + 60
    blocks = [Block(f"10.0.{n}.0/24", EVERY_LIMIT, "", 0, 0, end) for n in range(100)]
    asyncio.run(sync.take(blocks))
    assert limiter.engine.barred.uniform(0, 0xFFFF0A000001, 0, 0xFFFF0A000001) == end


def test_clients_that_wait_for_the_store_are_seen_once() -> None:
    async def main() -> None:
        node = Waiting()
        node.store.answers.set()
        async with running(node):
            node.sync.hold(node.peer, ASK * 5)
            await until(lambda: node.peer.answered == 5)
            assert node.limiter.engine.rules[0].seen == 1, "or the fuse would blow by mistake"

    asyncio.run(main())


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 0

    def time_ns(self) -> int:
        return 1_700_000_000 * SECOND + self.now

    def monotonic_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / SECOND


def test_an_hour_without_the_store_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    # With a random secret, about one run in 400 has seven clients in the set of a heavy one within
    # 200 seconds: it is evicted, and gets a second place among the shared clients.
    limits = [Limit(block=(10, 60), fuse=0)]
    limiter = Limiter(limits, 10_000, secret=bytes(range(64)), sharing=Sharing.HOT)
    sync = Sync(limiter, 0.01, False)
    store = RedisStore(parse("redis://192.0.2.255"), events=sync.events)
    store.nodes = 4
    sync.attach(store, Node("node", "1", 0))
    peer = Peer(limiter)
    # Clients that come once and go, and some that are blocked again and again.
    passing = [client(0x0A000000 + number, 1) for number in range(20_000)]
    heavy = [client(0x0B000000 + number, RATE + 1) for number in range(200)]
    sizes = []
    tracemalloc.start()
    try:
        for second in range(3600):
            clock.now += SECOND
            sync.tick()
            limiter.tick(sync.now())
            limiter.news.clear()
            first = 2 * second % len(passing)
            peer.answer(passing[first] + passing[first + 1], sync.now())
            peer.answer(heavy[second % len(heavy)], sync.now())
            if second % 600 == 599:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert limiter.blocks > 2000
    assert len(store.outbox) == len(heavy)
    assert limiter.engine.exchanges[0].size == len(heavy)
    assert max(sizes[1:]) - sizes[0] < 50_000, sizes
