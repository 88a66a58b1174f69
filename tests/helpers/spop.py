"""The agent's side of an SPOP connection, fed by hand."""

from __future__ import annotations

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Limit
from ratelimit.spop.connection import Connection
from ratelimit.spop.respond import Responder
from tests.helpers import wire
from tests.helpers.wire import ACK, AGENT_DISCONNECT, AGENT_HELLO

NOW = 1_700_000_000_000_000_000

ASK = wire.message("default", key=wire.address("192.0.2.1"))


def connection(rate: int = 1_000_000) -> Connection:
    return Connection(Responder(Limiter([Limit(rate=rate)], max_clients=64).engine))


def opened(rate: int = 1_000_000) -> Connection:
    made = connection(rate)
    made.receive_data(wire.hello(), NOW)
    return made


def ends(made: Connection, data: bytes) -> tuple[int, str]:
    """Feed ``data``; it must end the connection: the status and the message sent."""
    *before, last = wire.frames(made.receive_data(data, NOW))
    assert last.kind == AGENT_DISCONNECT
    assert made.closed
    assert all(frame.kind in (ACK, AGENT_HELLO) for frame in before)
    assert made.receive_data(wire.notify(ASK), NOW) == b"", "nothing is answered after the end"
    status, message = last.items["status-code"], last.items["message"]
    assert isinstance(status, int) and isinstance(message, str)
    return status, message
