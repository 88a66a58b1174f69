"""A limiter, and clients with string keys that it blocks."""

from __future__ import annotations

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import Block, Limit
from tests.helpers import wire
from tests.helpers.forms import responder

SECRET = bytes(range(64))

START = 1_700_000_000

KEY = b"sk_live_4f1c9b07a2d8e6"

HASH = "~" + "0123456789abcdef" * 2


def limiter(*limits: Limit) -> Limiter:
    made = Limiter(limits or [Limit(rate=1)], 1000, SECRET)
    made.tick(START * 1_000_000_000)
    return made


def strike(made: Limiter, key: bytes, limit: str = "default") -> Block:
    """Have a client exceed a limit of one hit; return its block."""
    frame = wire.notify(wire.message(limit, key=key, hits=wire.int64(2)))
    blocks: list[Block] = []
    made.on_block.append(blocks.append)
    assert responder(made.engine).answer(frame, 0, 16380) == len(frame)
    responder(made.engine).take()
    [block] = blocks
    return block
