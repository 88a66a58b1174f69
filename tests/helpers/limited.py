"""A limiter with lists, blocks by hand and reloads, asked in NOTIFY frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.lists import Lists, read_lists
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import SECOND
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.asking import START
from tests.helpers.forms import responder

if TYPE_CHECKING:
    from collections.abc import Iterator


NO_LISTS = Lists()


class Node:
    """A limiter that is asked in frames, at seconds after the start."""

    def __init__(self, *limits: Limit, lists: Lists = NO_LISTS, max_clients: int = 10_000) -> None:
        self.now = 0.0
        self.fuses: list[tuple[str, bool]] = []
        self.limiter = Limiter(limits or [Limit()], max_clients, lists=lists, node="here")
        self.limiter.on_fuse.append(lambda limit, blown: self.fuses.append((limit.name, blown)))
        self.tick()

    def tick(self, now: float | None = None) -> None:
        self.now = self.now if now is None else now
        self.limiter.tick(START + round(self.now * SECOND))
        finish(self.limiter.tidy())

    def frame(self, *messages: bytes) -> dict[str, wire.Value]:
        engine = self.limiter.engine
        engine.at(START + round(self.now * SECOND))
        data = wire.notify(*messages)
        assert responder(engine).answer(data, 0, 16380) == len(data)
        (ack,) = wire.frames(responder(engine).take())
        return ack.items

    def ask(self, client: str, limit: str = "default", hits: int = 1) -> str:
        """Return the reason of a refusal, or that there is none."""
        key = wire.text(client)
        asked = self.frame(wire.message(limit, key=key, hits=wire.int64(hits)))
        return str(asked.get("reason", "allow"))

    def by_hand(self, key: str, seconds: float = 60) -> None:
        since = START // SECOND + round(self.now)
        until = since + round(seconds)
        order = self.limiter.blocklist.next_order(EVERY_LIMIT, key, since * SECOND)
        block = Block(key, EVERY_LIMIT, "said so", 0, since, until, by="ann", order=order)
        self.limiter.apply(block)

    def lift(self, limit: str, key: str) -> None:
        self.limiter.lift_now(limit, key, START + round(self.now * SECOND))

    def reload(self, *limits: Limit, lists: Lists = NO_LISTS) -> None:
        finish(finish(self.limiter.reload(limits, lists)))


def lists(allow: str = "", deny: str = "") -> Lists:
    return finish(read_lists(allow.split(), deny.split(), [], []))


def clients(count: int, net: int = 10) -> Iterator[str]:
    return (f"{net}.0.{n >> 8}.{n & 255}" for n in range(count))
