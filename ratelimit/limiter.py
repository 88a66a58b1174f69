"""What a hit means: the limits in force, the engine that counts, the blocks that follow."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ratelimit.blocklist import Blocklist
from ratelimit.engine.answer import Engine
from ratelimit.engine.constants import ALLOW, DENY, MIXED, SECOND, TEXT
from ratelimit.engine.rule import Rule
from ratelimit.keys import (
    Network,
    counted_key,
    first_address,
    key_bytes,
    key_hash,
    key_network,
    key_text,
    parse_network,
)
from ratelimit.lists import Lists, Range, cut, span
from ratelimit.model import EVERY_LIMIT, Block, Limit

_MAX_NEWS = 16
_SHARED = 16_384  # clients of each limit that are shared at a time, 212 bytes each
_SHARED_ALL = 262_144  # likewise, where every client is
_ROUND = 50  # milliseconds between exchanges of a client that is far from its limit
_MINUTE = 60
_FORGET_UNKNOWN = 86_400  # seconds, for the blocks of a limit that is no more
_CUT_AT_ONCE = 500  # networks blocked by hand, a millisecond of work
_SLICE = 20  # blocks put back at a time; each takes some 20 us a limit
_COMPARED = 200  # blocks compared at a time; each takes some 2 us
_M64 = 0xFFFFFFFFFFFFFFFF

FUSE_CLIENTS = 50
"""Refused clients of a minute below which no fuse blows."""


class Sharing(enum.Enum):
    """Which counts the nodes share."""

    NONE = "none"
    HOT = "hot"
    """Those of clients that could exceed a limit on all nodes together."""
    ALL = "all"
    """Those of every client, before it is answered."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """What a limit has of a client.

    Attributes:
        limit: whose it is.
        key: as whom the limit counts it.
        hits: in the window that ends now, on all nodes as far as known.
        until: epoch second at which its block ends or ended, by whoever it is; 0 without one.
        block: the last one that the limit made, which may have ended.
    """

    limit: Limit
    key: str
    hits: int
    until: int
    block: Block | None

    @property
    def remaining(self) -> int:
        """Hits that are left of the limit."""
        return max(0, self.limit.rate - self.hits)


class Limiter:
    """The limiter of one node; no I/O, and time is always an argument.

    Args:
        limits: what is enforced.
        max_clients: clients that the table holds.
        secret: 64 bytes that key the hashes; random by default.
        node: the name of this node in the blocks that it makes.
        sharing: which counts are shared with other nodes.
        lists: who is never counted, and who is always refused.

    ``blocks`` counts the blocks since the start, ``blocks_unreported`` those that nobody has logged
    yet, and ``news`` holds the latest of them. ``on_block`` is called with each that is made here,
    ``on_gone`` with limit and key of each in force that another list has no more, ``on_fuse`` with
    a limit and whether its fuse has blown or is whole again.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        max_clients: int,
        secret: bytes | None = None,
        node: str = "",
        sharing: Sharing = Sharing.NONE,
        lists: Lists | None = None,
    ) -> None:
        self.blocklist = Blocklist(node)
        self.sharing = sharing
        shared = {Sharing.NONE: 0, Sharing.HOT: _SHARED, Sharing.ALL: _SHARED_ALL}[sharing]
        refresh = _ROUND if sharing is Sharing.HOT else 0
        self.engine = Engine(limits, max_clients, self._strike, secret, shared, refresh)
        self.blocks = 0
        self.blocks_unreported = 0
        self.news: deque[Block] = deque(maxlen=_MAX_NEWS)
        self.on_block: Callable[[Block], object] = lambda block: None
        self.on_gone: Callable[[str, str], object] = lambda limit, key: None
        self.on_fuse: Callable[[Limit, bool], object] = lambda limit, blown: None
        self.lists = lists or Lists()
        self._rules = {rule.limit.name: rule for rule in self.engine.rules}
        self._barred: dict[str, Range] = {}
        self._stale = False
        self._secret = b""
        # While another list is taken: whose entries have changed since, hence are newer.
        self._newer: set[tuple[str, str]] | None = None
        self._minute = 0
        self._relist()

    def rule(self, limit: str) -> Rule | None:
        """Return the rule of a limit by name, if it is in force."""
        return self._rules.get(limit)

    def tick(self, now: int) -> None:
        """Do what is due about once a second; ``now`` in nanoseconds since the epoch."""
        self.engine.at(now)
        self.engine.table.sweep()
        seconds = now // SECOND
        for name in self.blocklist.limits():
            self.blocklist.forget(name, self.forget(name), seconds)
        self.blocklist.active(seconds)
        ended = [key for key, (_, _, until) in self._barred.items() if until <= seconds]
        for key in ended:
            del self._barred[key]
        if ended or self._stale:
            self._relist()
        if not 0 <= seconds - self._minute < _MINUTE:
            self._minute = seconds
            for rule in self.engine.rules:
                if rule.fused and not _too_many(rule.limit, rule.seen, rule.refused):
                    self.clear_fuse(rule.limit.name)
            self.engine.begin_minute()

    def forget(self, limit: str) -> int:
        """Return how many seconds after its end a block of a limit counts as a strike."""
        rule = self._rules.get(limit)
        if rule is not None:
            return rule.limit.forget
        return 0 if limit == EVERY_LIMIT else _FORGET_UNKNOWN

    def reload(self, limits: Sequence[Limit], lists: Lists) -> Iterator[None]:
        """Enforce other limits and lists at once.

        What the iterator does is to put blocks back where clients are now counted differently; it
        stops after each few, so that answers need not wait. Raises ValueError, as the engine does,
        before anything has changed.
        """
        before = {name: rule.limit for name, rule in self._rules.items()}
        fresh = self.engine.reload(limits)
        self._rules = {rule.limit.name: rule for rule in self.engine.rules}
        for name, rule in self._rules.items():
            if rule.limit.fuse == 0:
                self.clear_fuse(name)
        self.lists = lists
        self._barred = {}
        for block in self.blocklist.of(EVERY_LIMIT):
            if self._is_barred(block.key):
                self._barred[block.key] = _barred(block)
        self._relist()
        changed = {rule.limit.name for rule in fresh}
        for name, rule in self._rules.items():
            old = before.get(name, rule.limit)
            if (old.ipv4_prefix, old.ipv6_prefix, old.shadow) != (
                rule.limit.ipv4_prefix,
                rule.limit.ipv6_prefix,
                rule.limit.shadow,
            ):
                changed.add(name)
        return self._restore([EVERY_LIMIT, *sorted(changed)] if changed else [])

    def _restore(self, names: list[str]) -> Iterator[None]:
        for name in names:
            for number, block in enumerate(list(self.blocklist.of(name))):
                if number % _SLICE == 0:
                    yield
                rules = self.engine.rules if name == EVERY_LIMIT else [self._rules[name]]
                for rule in rules:
                    # A network begun by another prefix is in the same place of the table.
                    self._update(rule.limit.name, counted_key(first_address(block.key), rule.limit))

    def listed(self, key: str) -> str:
        """Return ``allow`` or ``deny`` for what a list has, ``mixed`` for parts, else nothing."""
        network = key_network(key)
        if network is None:
            return ""
        first, last, _ = span(network, 0)
        found = self.engine.lists.uniform(first >> 64, first & _M64, last >> 64, last & _M64)
        return {ALLOW: "allow", DENY: "deny", MIXED: "mixed"}.get(found, "")

    def explain(self, key: str) -> list[ClientState]:
        """Return what each limit has of a client, which is not counted as seen by that."""
        engine = self.engine
        states = []
        for rule in engine.rules:
            counted = counted_key(key, rule.limit)
            slot = self._known(rule, counted)
            states.append(
                ClientState(
                    limit=rule.limit,
                    key=counted,
                    hits=engine.hits(rule, slot) if slot >= 0 else 0,
                    until=engine.table.until(slot) if slot >= 0 else 0,
                    block=self.blocklist.get(rule.limit.name, counted),
                )
            )
        return states

    def clear_fuse(self, limit: str) -> bool:
        """Let a limit block again; false if it does."""
        rule = self._rules.get(limit)
        if rule is None or not rule.fused:
            return False
        rule.blow(False)
        rule.refused = rule.refused_before = 0
        self.on_fuse(rule.limit, False)
        return True

    def apply(self, block: Block) -> None:
        """Take an entry that the store has, made here or elsewhere."""
        self._note(block.limit, block.key)
        self._apply(block)

    def _apply(self, block: Block) -> None:
        if self.blocklist.put(block):
            if block.limit == EVERY_LIMIT and self._is_barred(block.key):
                self._barred[block.key] = _barred(block)
                self._rebarred()
            else:
                self._update(block.limit, block.key)

    def lift(self, limit: str, key: str) -> None:
        """Take an entry off: the client may come at once, and its strikes are forgotten."""
        self._note(limit, key)
        self._lift(limit, key)

    def _lift(self, limit: str, key: str) -> None:
        self.blocklist.remove(limit, key)
        if limit == EVERY_LIMIT and self._barred.pop(key, None) is not None:
            self._rebarred()
        else:
            self._update(limit, key)

    def load(self, blocks: list[Block]) -> Iterator[None]:
        """Replace the whole list, in the steps of the iterator, between which answers may go.

        What changes in the meantime is newer than ``blocks``, and stays.
        """
        newer = self._newer = set()
        try:
            yield from self._replace(blocks, newer)
        finally:
            if self._newer is newer:
                self._newer = None
        if self._stale:
            self._relist()

    def _replace(self, blocks: list[Block], newer: set[tuple[str, str]]) -> Iterator[None]:
        wanted = {}
        for number, block in enumerate(blocks):
            if number % _COMPARED == 0:
                yield
            wanted[block.limit, block.key] = block
        # First those that are gone, for the list may have no room for others.
        last = "", ""
        room = _COMPARED
        while page := self.blocklist.after(*last, _COMPARED):
            for block in page:
                if room <= 0:
                    room = _COMPARED
                    yield
                room -= 1
                last = block.limit, block.key
                if last not in wanted and last not in newer:
                    self._lift(*last)
                    room -= _COMPARED // _SLICE
                    if block.until > self.engine.table.now:
                        self.on_gone(*last)
        for place, block in wanted.items():
            if room <= 0:
                room = _COMPARED
                yield
            room -= 1
            if place not in newer and self.blocklist.get(*place) != block:
                self._apply(block)
                room -= _COMPARED // _SLICE

    def _note(self, limit: str, key: str) -> None:
        if self._newer is not None:
            self._newer.add((limit, key))

    def rekey(self, secret: bytes) -> None:
        """Take the secret by which all nodes know strings; 16 bytes."""
        if secret == self._secret:
            return
        self._secret = secret
        self.engine.key.rekey(secret)
        for block in self.blocklist:
            self._update(block.limit, block.key)

    def divide(self, nodes: int) -> None:
        """Share clients with this many nodes, this one included."""
        if self.sharing is Sharing.HOT:
            for rule in self.engine.rules:
                rule.divide(nodes)

    def degrade(self, nodes: int) -> None:
        """Enforce only this node's part of each limit, of so many nodes; 1 is the whole."""
        for rule in self.engine.rules:
            rule.rate = max(1, rule.limit.rate // nodes)

    def _update(self, limit: str, key: str) -> None:
        """Have the table hold what the blocklist has of a client."""
        network = key_network(key)
        by_hand = None if key in self._barred else self.blocklist.get(EVERY_LIMIT, key)
        for rule in self.engine.rules if limit == EVERY_LIMIT else [self._rules.get(limit)]:
            # Under another prefix than today's, the client would be another one.
            if rule is None or not _is_client(rule.limit, network):
                continue
            block = self.blocklist.get(rule.limit.name, key)
            if block is not None and block.shadow and not rule.limit.shadow:
                block = None
            if by_hand is not None and (block is None or by_hand.until >= block.until):
                self._hold(rule, key, by_hand.until, True)
            else:
                self._hold(rule, key, block.until if block else 0, False)

    def _known(self, rule: Rule, key: str) -> int:
        """Return the slot of a client, or -1 if the table has it not."""
        hashed = key_hash(key)
        if hashed is not None:
            return self.engine.table.peek(*hashed, TEXT << 16 | rule.index)
        return self.engine.known(rule, key_bytes(key))

    def _hold(self, rule: Rule, key: str, until: int, by_hand: bool) -> None:
        engine = self.engine
        table = engine.table
        # What has ended needs no place in the table, unless one in force was there before it.
        if 0 < until <= table.now and not table.orphans and self._known(rule, key) < 0:
            return
        hashed = key_hash(key)
        if hashed is None:
            slot = engine.slot(rule, key_bytes(key))
        else:
            slot = table.find(*hashed, TEXT << 16 | rule.index)
        if until > table.now >= table.until(slot) and not by_hand:
            engine.hold(rule, slot, until)
        else:
            # A block by hand may be short, and settles nothing: what came before it still counts.
            table.block(slot, until, by_hand)

    def _is_barred(self, key: str) -> bool:
        """Tell whether a block by hand is of other addresses than some limit counts as one."""
        network = key_network(key)
        return not all(_is_client(rule.limit, network) for rule in self.engine.rules)

    def _rebarred(self) -> None:
        """Have the engine know what has changed of the blocked networks.

        At once if they are few. To cut many anew for each change would hold up all answers, so
        those wait for the next tick.
        """
        self._stale = True
        if self._newer is None and len(self._barred) <= _CUT_AT_ONCE:
            self._relist()

    def _relist(self) -> None:
        engine = self.engine
        engine.lists.load(self.lists.starts, self.lists.values)
        engine.barred.load(*cut(sorted(self._barred.values())))
        engine.relist()
        self._stale = False

    def _strike(self, rule: Rule, text: bytes, kind: int, hi: int, lo: int, now: int) -> int:
        limit = rule.limit
        seen = max(rule.seen, rule.seen_before)
        if _too_many(limit, seen, max(rule.refused, rule.refused_before)):
            rule.blow(True)
            self.on_fuse(limit, True)
            return 0
        key = key_text(kind, hi, lo, text, limit.ipv4_prefix, limit.ipv6_prefix)
        # Up to the next whole second, so that no block is shorter than the ladder says.
        block = self.blocklist.strike(limit, key, -(-now // SECOND))
        if block is None:
            return 0
        self._note(limit.name, key)
        self.blocks += 1
        self.blocks_unreported += 1
        self.news.append(block)
        self.on_block(block)
        return block.until


def _barred(block: Block) -> Range:
    return span(parse_network(block.key), block.until)


def _too_many(limit: Limit, seen: int, refused: int) -> bool:
    """Tell whether so many of a minute's clients were refused that the limit must be wrong."""
    return limit.fuse > 0 and refused >= FUSE_CLIENTS and refused > limit.fuse * seen


def _is_client(limit: Limit, network: Network | None) -> bool:
    """Tell whether a limit counts a network as one client; None is a key that is none."""
    if network is None:
        return True
    bits = limit.ipv4_prefix if network.version == 4 else limit.ipv6_prefix
    return network.prefixlen == bits
