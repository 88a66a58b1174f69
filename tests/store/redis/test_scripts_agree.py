"""The scripts and ``limiter/entry_order.py`` merge alike: else they would never agree."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from ratelimit.limiter.blocklist import Blocklist
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift
from ratelimit.store.entries import block_from_json, block_to_json
from ratelimit.store.redis.session import Script

if TYPE_CHECKING:
    from tests.helpers.servers import Server

FORGET = 100
HASH = "~" + 32 * "a"
# Four characters each, or none, but of different numbers of bytes.
TEXTS = ("", HASH, f"abcd{HASH}", f"éé{HASH}", f"日{HASH}", "ключ", "user")


def facts(chance: random.Random, limit: str, now: int) -> list[Entry]:
    """Return some facts about one client that differ in little."""
    key = chance.choice((HASH, "192.0.2.1"))
    by_text = chance.random() < 0.3
    made: list[Entry] = []
    for _ in range(chance.randint(1, 5)):
        order, more = chance.randint(1, 6), chance.randint(0, 3)
        if chance.random() < 0.3:
            made.append(Lift(key, limit, order, now + 2 * FORGET + more))
            continue
        since = now - chance.randint(0, 2)
        strikes = chance.randint(0, 2)
        if by_text:
            order, more, since, strikes = 3, 0, now, 1
        made.append(
            Block(
                key=key,
                limit=limit,
                reason=chance.choice(("", 'x/é"', "y")),
                strikes=strikes,
                since=since,
                until=since + 30 + more,
                by=chance.choice(("", "ann")),
                node=chance.choice("xy"),
                shadow=limit != EVERY_LIMIT and chance.random() < 0.3,
                order=order,
                text=chance.choice(TEXTS) if key == HASH else "",
            )
        )
    return made


def test_a_script_merges_as_a_node_does(server: Server) -> None:
    chance, now = random.Random(3), int(time.time())
    with server.client() as client:
        block, lift = (
            client.register_script(Script("entries", name).text) for name in ("block", "lift")
        )
        for number in range(3000):
            limit = chance.choice((EVERY_LIMIT, "default"))
            keys = [f"blocks{number}", f"lifts{number}"]
            known = Blocklist()
            known.forget = lambda _: FORGET
            entries = facts(chance, limit, now)
            for entry in entries:
                begin: list[str | int] = ["era", "news", f"{limit}|{entry.key}"]
                if isinstance(entry, Lift):
                    known.lift(entry)
                    lift(keys, [*begin, entry.order, entry.until, 0, "", "", ""])
                else:
                    known.take(entry, now)
                    block(keys, [*begin, block_to_json(entry), FORGET, 0, "", ""])
            key = entries[0].key
            kept = client.hget(keys[0], f"{limit}|{key}")
            held = block_from_json(kept.split(b" ", 1)[1]) if kept else None
            assert held == known.get(limit, key), entries
            marked = client.hget(keys[1], f"{limit}|{key}")
            order = int(marked.split()[1]) if marked else None
            lifted = known.lifts.get(limit, key)
            assert order == (lifted.order if lifted else None), entries
