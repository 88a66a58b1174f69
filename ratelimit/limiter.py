"""What a hit means: the limits in force, the engine that counts, the blocks that follow."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence

from ratelimit.blocklist import Blocklist
from ratelimit.engine.answer import Engine
from ratelimit.engine.constants import SECOND
from ratelimit.engine.rule import Rule
from ratelimit.keys import key_bytes, key_text
from ratelimit.model import Block, Limit

_MAX_NEWS = 16
_SHARED = 16_384  # clients of each limit that are shared at a time, 180 bytes each
_SHARED_ALL = 262_144  # likewise, where every client is
_REFRESH = 50  # milliseconds after which a client is asked about though it sent nothing
_NEVER = 1 << 31


class Sharing(enum.Enum):
    """Which counts the nodes share."""

    NONE = "none"
    HOT = "hot"
    """Those of clients that could exceed a limit on all nodes together."""
    ALL = "all"
    """Those of every client, before it is answered."""


class Limiter:
    """The limiter of one node; no I/O, and time is always an argument.

    Args:
        limits: what is enforced.
        max_clients: clients that the table holds.
        secret: 64 bytes that key the hashes; random by default.
        node: the name of this node in the blocks that it makes.
        sharing: which counts are shared with other nodes.

    ``blocks`` counts the blocks since the start, ``blocks_unreported`` those that nobody has logged
    yet, and ``news`` holds the latest of them. ``on_block`` is called with each that is made here.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        max_clients: int,
        secret: bytes | None = None,
        node: str = "",
        sharing: Sharing = Sharing.NONE,
    ) -> None:
        self.blocklist = Blocklist(node)
        self.sharing = sharing
        shared = {Sharing.NONE: 0, Sharing.HOT: _SHARED, Sharing.ALL: _SHARED_ALL}[sharing]
        refresh = _REFRESH if sharing is Sharing.HOT else _NEVER
        self.engine = Engine(limits, max_clients, self._strike, secret, shared, refresh)
        self.blocks = 0
        self.blocks_unreported = 0
        self.news: deque[Block] = deque(maxlen=_MAX_NEWS)
        self.on_block: Callable[[Block], object] = lambda block: None
        self._rules = {rule.limit.name: rule for rule in self.engine.rules}

    def rule(self, limit: str) -> Rule | None:
        """Return the rule of a limit by name, if it is in force."""
        return self._rules.get(limit)

    def tick(self, now: int) -> None:
        """Do what is due about once a second; ``now`` in nanoseconds since the epoch."""
        self.engine.at(now)
        self.engine.table.sweep()
        for rule in self.engine.rules:
            self.blocklist.forget(rule.limit, now // SECOND)
        self.blocklist.active(now // SECOND)

    def apply(self, block: Block) -> None:
        """Take an entry that the store has, made here or elsewhere."""
        if self.blocklist.put(block):
            self._hold(block.limit, block.key, block.until)

    def lift(self, limit: str, key: str) -> None:
        """Take an entry off: the client may come at once, and its strikes are forgotten."""
        self.blocklist.remove(limit, key)
        self._hold(limit, key, 0)

    def load(self, blocks: list[Block]) -> None:
        """Replace the whole list."""
        wanted = {(block.limit, block.key) for block in blocks}
        for block in list(self.blocklist):
            if (block.limit, block.key) not in wanted:
                self.lift(block.limit, block.key)
        for block in blocks:
            self.apply(block)

    def rekey(self, secret: bytes) -> None:
        """Take the secret by which all nodes know strings; 16 bytes."""
        self.engine.key.rekey(secret)
        for block in self.blocklist:
            self._hold(block.limit, block.key, block.until)

    def divide(self, nodes: int) -> None:
        """Share clients with this many nodes, this one included."""
        if self.sharing is Sharing.HOT:
            for rule in self.engine.rules:
                rule.divide(nodes)

    def degrade(self, nodes: int) -> None:
        """Enforce only this node's part of each limit, of so many nodes; 1 is the whole."""
        for rule in self.engine.rules:
            rule.rate = max(1, rule.limit.rate // nodes)

    def _hold(self, limit: str, key: str, until: int) -> None:
        rule = self._rules.get(limit)
        table = self.engine.table
        if rule is None or (until <= table.now and until > 0):
            return
        slot = self.engine.slot(rule, key_bytes(key))
        if until > table.now and table.until(slot) <= table.now:
            self.engine.hold(rule, slot, until)
        else:
            table.block(slot, until)

    def _strike(self, rule: Rule, text: bytes, kind: int, hi: int, lo: int, now: int) -> int:
        limit = rule.limit
        key = key_text(kind, hi, lo, text, limit.ipv4_prefix, limit.ipv6_prefix)
        # Up to the next whole second, so that no block is shorter than the ladder says.
        block = self.blocklist.strike(limit, key, -(-now // SECOND))
        if block is None:
            return 0
        self.blocks += 1
        self.blocks_unreported += 1
        self.news.append(block)
        self.on_block(block)
        return block.until
