"""Packets lost without a word between the nodes and Redis, which is in a network of its own."""

from __future__ import annotations

import contextlib
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ratelimit.store import StoreError
from ratelimit.store.redis.nodes import HEARTBEAT
from ratelimit.store.redis.store import BACKOFF, EXCHANGE_TIMEOUT, TIMEOUT
from tests.helpers.servers import Server, until
from tests.store.conftest import block, nodes, run

pytestmark = [pytest.mark.integration, pytest.mark.root]

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.network import Network

RECORD = struct.pack("<16sIQI64x", b"0123456789abcdef", 0, 1000, 1)
TTL = 600_000
SLACK = 10.0
"""Seconds that a busy machine may take beside the time limits; TCP by itself takes minutes."""


@pytest.mark.parametrize(
    ("requests", "answers"),
    [(True, True), (True, False), (False, True)],
    ids=["all", "requests", "answers"],
)
def test_lost_packets(
    network: Network,
    make_server: Callable[..., Server],
    logs: list[Any],
    requests: bool,
    answers: bool,
) -> None:
    server = make_server(
        "--protected-mode", "no", host=network.there, within=("ip", "netns", "exec", network.name)
    )

    outages = 0

    async def main() -> None:
        async with nodes(server.url, 2) as [(busy, one), (idle, two)]:
            await until(lambda: busy.nodes == idle.nodes == 2)
            # To a machine that does much else, standing still may be an outage, here and later.
            logs.clear()
            earlier = busy.outages, idle.outages
            await busy.save(block("before"))
            await until(lambda: "before" in two.clients())
            sent = answered = 1
            await busy.exchange("default", 0, 7, TTL, RECORD)
            network.lose(requests=requests, answers=answers)
            began = time.monotonic()
            sent += 1
            with pytest.raises(StoreError) as caught:
                await busy.exchange("default", 0, 7, TTL, RECORD)
            # It may have been counted: the answer is as lost as the request.
            assert not caught.value.unsent
            assert not busy.up
            assert time.monotonic() - began < EXCHANGE_TIMEOUT + SLACK
            busy.put(block("meanwhile"))
            await until(lambda: not idle.up)
            assert time.monotonic() - began < HEARTBEAT + TIMEOUT + SLACK
            idle.put(block("meanwhile too"))
            # New connections fare no better.
            answer = f"{server.host}:{server.port}: no answer within {TIMEOUT * 1000:.0f} ms"
            await until(lambda: busy.problem == idle.problem == answer)
            assert busy.nodes == idle.nodes == 2
            with pytest.raises(StoreError) as caught:
                await busy.exchange("default", 0, 7, TTL, RECORD)
            assert caught.value.unsent
            network.restore()
            ended = time.monotonic()
            await until(lambda: busy.up and idle.up)
            # The attempt under way fails, the next one succeeds.
            assert time.monotonic() - ended < TIMEOUT + BACKOFF[1] + SLACK
            everything = {"before", "meanwhile", "meanwhile too"}
            await until(lambda: one.clients() == two.clients() == everything)
            for store in (busy, idle):
                total = b""
                while not total:
                    await until(lambda store=store: store.up)  # type: ignore[misc]
                    sent += 1
                    with contextlib.suppress(StoreError):
                        total = await store.exchange("default", 0, 7, TTL, RECORD)
                answered += 1
                assert answered <= int.from_bytes(total[12:16], "little") <= sent
            await until(lambda: busy.up and idle.up)
            for store, seen, before in zip((busy, idle), (one, two), earlier, strict=True):
                assert store.outages > before
                assert store.problem == ""
                assert seen.states[-2:] == ["lost", "back"]
            nonlocal outages
            outages = busy.outages + idle.outages - sum(earlier)

    run(main)
    events = Counter(line["event"] for line in logs)
    assert events == {"store lost": outages, "store back": outages}
    reasons = [line["why"] for line in logs if line["event"] == "store lost"]
    assert all("no answer within" in reason for reason in reasons)
