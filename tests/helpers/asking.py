"""A limiter that is asked in NOTIFY frames; the caller gives the time."""

from __future__ import annotations

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.forms import responder

START = 1_700_000_000 * SECOND


class Asked:
    """A limiter, asked in frames."""

    def __init__(self, *limits: Limit, max_clients: int = 1000) -> None:
        self.limiter = Limiter(limits or [Limit()], max_clients, secret=bytes(range(64)))

    def frame(self, now: float, *messages: bytes) -> dict[str, wire.Value]:
        """Ask at ``now`` seconds after the start; return the variables set."""
        engine = self.limiter.engine
        engine.at(START + round(now * SECOND))
        data = wire.notify(*messages, ids=(300, 1))
        assert responder(engine).answer(data, 0, 16380) == len(data)
        (ack,) = wire.frames(responder(engine).take())
        assert ack.kind == wire.ACK
        assert ack.ids == (300, 1)
        assert ack.scopes <= {2}, "only scope txn"
        return ack.items

    def tick(self, now: float) -> None:
        self.limiter.tick(START + round(now * SECOND))
        finish(self.limiter.tidy())

    def ask(self, now: float, client: str = "192.0.2.1", **arguments: bytes) -> bool:
        """Tell whether one request passes."""
        asked = wire.message("default", key=wire.address(client), **arguments)
        return "deny" not in self.frame(now, asked)


KEY = wire.address("192.0.2.1")
