"""Strikes: what block follows when a client exceeds a limit.

The first strike has the first length of the limit's ladder, and so on; the last length is repeated.
A strike counts until ``forget`` seconds after the end of its block.
"""

from __future__ import annotations

from dataclasses import replace

from ratelimit.limiter.blocklist import Blocklist
from ratelimit.limiter.entry_order import beats
from ratelimit.model import Block, Limit
from ratelimit.notation import SECOND, format_duration


def next_block(
    blocklist: Blocklist, limit: Limit, key: str, now: int, text: str = "", wire: str = ""
) -> Block:
    """Return the block of a client that exceeded a limit at ``now``, in epoch nanoseconds.

    ``text`` and ``wire`` are those of the block.
    """
    since = -(-now // SECOND)  # rounded up, so that no block is shorter than configured
    last = blocklist.get(limit.name, key)
    strikes = 1
    if (
        last is not None
        and last.shadow == limit.shadow
        and since - max(last.since, last.until) < limit.forget
    ):
        strikes = last.strikes + 1
    return Block(
        key=key,
        limit=limit.name,
        reason=f"over {limit.rate} in {format_duration(limit.window)}",
        strikes=strikes,
        since=since,
        until=since + limit.block[min(strikes, len(limit.block)) - 1],
        node=blocklist.node,
        shadow=limit.shadow,
        order=blocklist.next_order(limit.name, key, now),
        text=text,
        wire=wire,
    )


def struck(new: Block, last: Block, memory: int) -> Block:
    """Return the block that holds after a strike of a blocked client, as in ``block.lua``.

    ``memory`` is for how many seconds after its end a strike is remembered.
    """
    strikes = new.strikes
    if new.shadow == last.shadow:
        if new.since < last.until:
            strikes = max(strikes, last.strikes)
        elif new.since < max(last.since, last.until) + memory and strikes <= last.strikes:
            strikes = last.strikes + 1
    holds = new if beats(new, last) else last
    return replace(holds, strikes=strikes) if new.shadow == last.shadow else holds
