"""One count for all nodes, against its definition in plain Python."""

from __future__ import annotations

import random
import struct

import pytest

from ratelimit.store import StoreError
from ratelimit.store.redis import store as module
from ratelimit.store.redis.session import Script
from tests.helpers.servers import Server
from tests.store.conftest import nodes, run

pytestmark = pytest.mark.integration

TTL = 60_000
KEY = "test:{default.0}:hits:7"
BEFORE = "test:{default.0}:hits:6"
MOST = 2**32 - 1

State = tuple[int, int, list[int]]
"""Epoch, tick, totals."""
Record = tuple[bytes, State]


def client(number: int) -> bytes:
    return number.to_bytes(16, "big")


def deltas(*first: int) -> list[int]:
    return [*first, *[0] * (17 - len(first))]


def pack(state: State) -> bytes:
    return struct.pack("<IQ17I", *state[:2], *state[2])


def unpack(data: bytes) -> list[State]:
    found = struct.iter_unpack("<IQ17I", data)
    return [(epoch, tick, list(totals)) for epoch, tick, *totals in found]


def merge(one: State, other: State) -> State:
    """Return the sum of two counts: what each says of a tick, for the 17 newest ticks.

    If one has a later epoch, it is that one.
    """
    if one[0] != other[0]:
        return max(one, other)
    epoch, newest = one[0], max(one[1], other[1])
    totals = [0] * 17
    for _, tick, counts in (one, other):
        for i, count in enumerate(counts):
            place = newest - tick + i
            if place < 17:
                totals[place] = min(totals[place] + count, MOST)
    return epoch, newest, totals


class Model:
    def __init__(self) -> None:
        self.states: dict[bytes, State] = {}

    def exchange(self, records: list[Record]) -> list[State]:
        answer = []
        for name, counts in records:
            if name in self.states:
                counts = merge(self.states[name], counts)  # noqa: PLW2901
            self.states[name] = counts
            answer.append(counts)
        return answer


def batch(records: list[Record]) -> bytes:
    return b"".join(name + pack(state) for name, state in records)


def random_records(rng: random.Random, epoch: int, tick: int, clients: int) -> list[Record]:
    """Records of distinct clients, ahead and behind by about a window."""
    shapes = (
        lambda: deltas(rng.randrange(9)),
        lambda: deltas(rng.randrange(9), rng.randrange(9)),
        lambda: [rng.choice((0, 0, 3, MOST)) for _ in range(17)],
        lambda: [rng.randrange(1000) for _ in range(17)],
    )
    return [
        (client(number), (epoch + rng.choice((0,) * 12 + (-1, 1)),
                          tick + rng.choice((0, 0, 0, 1, 2, -1, 15, 16, 17, -16, -17, 40)),
                          rng.choice(shapes)()))
        for number in rng.sample(range(clients * 2), clients)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_sums_are_those_of_the_definition(server: Server, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with nodes(server.url, 2) as [(one, _), (two, _)]:
            model = Model()
            tick = rng.choice((100, 2**40, 2**52))
            for turn in range(60):
                tick += rng.choice((0, 0, 1, 5, 20))
                records = random_records(rng, 250 + turn // 6, tick, rng.choice((1, 5, 30)))
                store = rng.choice((one, two))
                answer = await store.exchange("default", 0, 7, TTL, batch(records))
                assert unpack(answer) == model.exchange(records)

    run(main)


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1700])
def test_batches_of_any_size(server: Server, count: int) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            records = [(client(i), (0, 1000, deltas(i))) for i in range(count)]
            for times in (1, 2):
                answer = unpack(await store.exchange("default", 0, 7, TTL, batch(records)))
                assert answer == [(0, 1000, deltas(i * times)) for i in range(count)]
            assert server.do("HLEN", KEY) == count + 1

    run(main)


def test_an_empty_batch(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            assert await store.exchange("default", 0, 7, TTL, b"") == b""

    run(main)


def test_the_generation_before_is_read_and_left(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            old, new = client(1), client(2)
            await store.exchange("default", 0, 6, TTL, batch([(old, (0, 1000, deltas(5)))]))
            records = [(new, (0, 1001, deltas(1))), (old, (0, 1001, deltas(1)))]
            answer = await store.exchange("default", 0, 7, 5000, batch(records))
            assert unpack(answer) == [(0, 1001, deltas(1)), (0, 1001, deltas(1, 5))]
            # From now on the newer one holds it.
            await store.exchange("default", 0, 6, TTL, batch([(old, (0, 1001, deltas(90)))]))
            answer = await store.exchange(
                "default", 0, 7, 5000, batch([(old, (0, 1001, deltas(1)))])
            )
            assert unpack(answer) == [(0, 1001, deltas(2, 5))]
            with server.client() as redis:
                assert redis.hlen(BEFORE) == 2
                assert redis.pttl(KEY) <= 5000
                assert 5000 < redis.pttl(BEFORE) <= TTL, "it is not touched"

    run(main)


def test_limits_and_shards_are_apart(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            record = batch([(client(1), (0, 1000, deltas(1)))])
            for limit, shard in (("a", 0), ("a", 1), ("b", 0)):
                answer = await store.exchange(limit, shard, 7, TTL, record)
                assert unpack(answer) == [(0, 1000, deltas(1))]

    run(main)


def test_a_state_of_another_size_counts_nothing(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            records = [(client(i), (0, 1000, deltas(1))) for i in range(700)]
            await store.exchange("default", 0, 7, TTL, batch(records))
            server.do("HSET", KEY, client(699), b"odd")
            before = server.do("HGETALL", KEY)
            with pytest.raises(StoreError, match=KEY) as caught:
                await store.exchange("default", 0, 7, TTL, batch(records))
            assert caught.value.unsent
            assert not store.up
            assert server.do("HGETALL", KEY) == before

    run(main)


@pytest.mark.parametrize(
    "reply", ["return 5", "return false", "return {}", "return 'short'", "return {ok='OK'}"]
)
def test_an_answer_of_another_shape_is_an_outage(
    server: Server, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Script):
        def __init__(self) -> None:
            super().__init__("exchange")
            self.text, self.sha = reply, "0" * 40

    async def main() -> None:
        async with nodes(server.url) as [(store, _)]:
            with monkeypatch.context() as patch:
                patch.setattr(module, "_EXCHANGE", Odd())
                with pytest.raises(StoreError, match="unexpected form") as caught:
                    await store.exchange("default", 0, 7, TTL, bytes(96))
                assert not caught.value.unsent
                assert not store.up

    run(main)
