"""The limiter of a node: limits, the engine that counts, and the blocks that follow."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import ADDRESS, ALLOW, DENY, M64, MIXED, NONE, TEXT
from ratelimit.engine.rule import Rule
from ratelimit.limiter.barred import Barred
from ratelimit.limiter.blocklist import Blocklist
from ratelimit.limiter.keys import (
    Network,
    client_key,
    counted_key,
    first_address,
    hash_key,
    hash_numbers,
    key_network,
    network_text,
)
from ratelimit.limiter.lists import Lists, span
from ratelimit.limiter.strikes import next_block
from ratelimit.limiter.string_keys import E, kept, string_text, wire_of
from ratelimit.model import (
    EVERY_LIMIT,
    SHARED_CLIENTS,
    UNKNOWN,
    Block,
    Entry,
    Lift,
    Limit,
)
from ratelimit.notation import SECOND
from ratelimit.steps import Steps, finish

_MAX_NEWS = 16
_SHARED_ALL = 262_144  # clients per limit that are shared at a time if all clients are shared
_ROUND = 50  # milliseconds between exchanges of a client far from its limit
_MINUTE = 60
_FORGET_UNKNOWN = 86_400  # seconds, for blocks of a limit that no longer exists

# Work per step, half a millisecond at most.
_CUT_AT_ONCE = 50  # networks blocked by hand
_UPDATED = 16  # blocks written to the table
_COMPARED = 64  # blocks of another list

_P = ParamSpec("_P")

EDGE_LIMIT = "default"
"""The limit whose blocks HAProxy stores; every request of a client counts against it."""

FUSE_CLIENTS = 50
"""Refused clients per minute below which no fuse blows."""


class Sharing(enum.Enum):
    """Which counts the nodes share."""

    NONE = "none"
    HOT = "hot"
    """Counts of clients that could exceed a limit on all nodes together."""
    ALL = "all"
    """Counts of every client, before the answer."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """The state of a client in a limit.

    Attributes:
        limit: the limit.
        key: key under which the limit counts the client.
        hits: in the current window, on all nodes as far as known.
        until: epoch second at which any block of the client ends or ended; 0 without one.
        block: last block made by the limit, possibly ended.
    """

    limit: Limit
    key: str
    hits: int
    until: int
    block: Block | None

    @property
    def remaining(self) -> int:
        """Hits left in the window."""
        return max(0, self.limit.rate - self.hits)


class Limiter:
    """The limiter of one node; no I/O, and time is always an argument.

    Args:
        limits: the limits to enforce.
        max_clients: clients for which the table has room.
        secret: 64 bits that key the hashes; random by default.
        node: the name of this node in the blocks that it makes.
        sharing: which counts are shared with other nodes.
        lists: the allow list and the deny list.
        keyed: whether strings are hashed by the fleet's secret. Until ``rekey()``, a client with a
            string key is throttled and never blocked: after a restart its block would match no
            client.
        shared_clients: clients per limit that are shared at a time, at 220 bytes each; at least
            262,144 if all clients are shared.

    ``digests`` are the limits of which an HAProxy has digests of strings as keys (peers mode).

    ``blocks`` counts the blocks since the start, ``blocks_unreported`` those that are not logged
    yet, and ``news`` has the latest of them.

    Listeners are lists of functions, which must not wait:

    - ``on_made``: called with each entry that a limit has made or changed here;
    - ``on_taken``: called with each other entry that changes the state here;
    - ``on_block``: called with each block of a client, by any node or operator, except those of a
      loaded list;
    - ``on_gone``: called with each block that was removed elsewhere, and whether that is news, not
      part of a loaded list;
    - ``on_ended``: called with each block by hand that was forgotten after its end;
    - ``on_state``: called with the limit and the key of each entry that may have changed, whatever
      has changed it;
    - ``on_fuse``: called with a limit, and whether its fuse has blown or was reset.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        max_clients: int,
        secret: bytes | None = None,
        node: str = "",
        sharing: Sharing = Sharing.NONE,
        lists: Lists | None = None,
        keyed: bool = True,
        shared_clients: int = SHARED_CLIENTS,
    ) -> None:
        self.blocklist = Blocklist(node)
        self.keyed = keyed
        self.digests: set[str] = set()
        self.sharing = sharing
        shared = {
            Sharing.NONE: 0,
            Sharing.HOT: shared_clients,
            Sharing.ALL: max(shared_clients, _SHARED_ALL),
        }[sharing]
        refresh = _ROUND if sharing is Sharing.HOT else 0
        self.engine = Engine(limits, max_clients, self._strike, secret, shared, refresh)
        self.blocks = 0
        self.blocks_unreported = 0
        self.news: deque[Block] = deque(maxlen=_MAX_NEWS)
        self.on_made: list[Callable[[Entry], object]] = []
        self.on_taken: list[Callable[[Entry], object]] = []
        self.on_block: list[Callable[[Block], object]] = []
        self.on_gone: list[Callable[[Block, bool], object]] = []
        self.on_ended: list[Callable[[Block], object]] = []
        self.on_state: list[Callable[[str, str], object]] = []
        self.on_fuse: list[Callable[[Limit, bool], object]] = []
        self.lists = lists or Lists()
        self._rules = {rule.limit.name: rule for rule in self.engine.rules}
        self._widths = _widths(limits)
        self._barred = Barred(self.engine.barred, self._until)
        self._loading = 0
        self._minute = 0
        self.blocklist.forget = self.forget
        self.blocklist.on_drop = self._dropped
        self._list()

    def rule(self, limit: str) -> Rule | None:
        """Return the rule of a limit by name, or None."""
        return self._rules.get(limit)

    @property
    def stale(self) -> bool:
        """Whether the engine lacks networks that are blocked by hand; see ``cut()``."""
        return self._barred.stale

    def tick(self, now: int) -> None:
        """Begin a new second; ``now`` is in epoch nanoseconds. ``tidy()`` is due then."""
        self.engine.at(now)
        seconds = now // SECOND
        if not 0 <= seconds - self._minute < _MINUTE:
            self._minute = seconds
            seen = max(rule.seen for rule in self.engine.rules)
            for rule in self.engine.rules:
                if rule.fused and not _too_many(rule.limit, seen, rule.refused):
                    self.clear_fuse(rule.limit.name)
            self.engine.begin_minute()

    def tidy(self) -> Steps[None]:
        """Remove ended entries, and do work that waits for steps."""
        self.engine.table.sweep()
        while self.blocklist.drop(self.engine.table.now, _UPDATED):
            yield
        yield from self.cut()

    def cut(self) -> Steps[None]:
        """Apply all networks that are blocked by hand in the engine."""
        if self._barred.stale:
            yield from self._barred.cut()
            self.engine.relist()

    def forget(self, limit: str) -> int:
        """Return how many seconds after its end a block of a limit counts as a strike."""
        rule = self._rules.get(limit)
        if rule is not None:
            return rule.limit.forget
        return 0 if limit == EVERY_LIMIT else _FORGET_UNKNOWN

    def reload(self, limits: Sequence[Limit], lists: Lists) -> Steps[Steps[None]]:
        """Enforce new limits and lists, all at once when these steps are finished.

        The result is further work in steps, which restores blocks where clients are counted
        differently. Raises ValueError before anything has changed.
        """
        widths = _widths(limits)
        if not widths <= self._widths:
            # No block may be inactive in between, so first these networks are barred as well.
            self._widths |= widths
            yield from self._bar()
        before = {name: rule.limit for name, rule in self._rules.items()}
        shown = {name for name in (EVERY_LIMIT, *before) if not self.is_secret(name)}
        fresh = self.engine.reload(limits)
        self._rules = {rule.limit.name: rule for rule in self.engine.rules}
        for name, rule in self._rules.items():
            if rule.limit.fuse == 0:
                self.clear_fuse(name)
        self.lists = lists
        self._list()
        changed = {rule.limit.name for rule in fresh}
        for name, rule in self._rules.items():
            old = before.get(name, rule.limit)
            if (old.ipv4_prefix, old.ipv6_prefix, old.shadow) != (
                rule.limit.ipv4_prefix,
                rule.limit.ipv6_prefix,
                rule.limit.shadow,
            ):
                changed.add(name)
        hidden = sorted(name for name in shown if self.is_secret(name))
        names = [EVERY_LIMIT, *sorted(changed)] if changed else []
        return self._restore(names, widths, hidden)

    def _restore(
        self, names: list[str], widths: frozenset[tuple[int, int]], hidden: list[str]
    ) -> Steps[None]:
        yield from self._hide(hidden)
        count = 0
        for name in names:
            for block in self.blocklist.of(name):
                for rule in self.engine.rules if name == EVERY_LIMIT else [self._rules[name]]:
                    # Networks with the same first address but another prefix share a place in the
                    # table.
                    key = counted_key(first_address(block.key), rule.limit)
                    self._update(rule.limit.name, key)
                    count += 1
                    if count % _UPDATED == 0:
                        yield
        if widths != self._widths:
            self._widths = widths
            yield from self._bar()

    def _hide(self, names: list[str]) -> Steps[None]:
        """Reduce the strings of limits that have become secret to hints."""
        for name in names:
            for number, block in enumerate(self.blocklist.of(name), 1):
                hidden = self.kept(block)
                if hidden != block and self.blocklist.put(hidden, self.engine.table.now):
                    _tell(self.on_made, hidden)
                if number % _UPDATED == 0:
                    yield

    def _bar(self) -> Steps[None]:
        """Bar blocks by hand that are not one client under the current prefixes, and no others."""
        for number, block in enumerate(self.blocklist.of(EVERY_LIMIT), 1):
            if not self._bars(block.key):
                self._barred.discard(block.key)
            if number % _UPDATED == 0:
                yield
        yield from self.cut()

    def _list(self) -> None:
        self.engine.lists.load(self.lists.starts, self.lists.values)
        self.engine.relist()

    def listed(self, key: str) -> str:
        """Return ``allow``, ``deny``, ``mixed`` if a list has only a part of it, or nothing."""
        network = key_network(key)
        if network is None:
            return ""
        first, last, _ = span(network, 0)
        found = self.engine.lists.uniform(first >> 64, first & M64, last >> 64, last & M64)
        return {ALLOW: "allow", DENY: "deny", MIXED: "mixed"}.get(found, "")

    def edge_until(self, client: Network) -> int:
        """Return until when HAProxy may block a client itself.

        An epoch second; 0 if HAProxy must ask, because the client, or a part of its addresses, is
        not blocked for all requests.
        """
        first, last, _ = span(client, 0)
        ends = first >> 64, first & M64, last >> 64, last & M64
        until = self.engine.barred.uniform(*ends)
        if self.engine.lists.uniform(*ends) != NONE or until == MIXED:
            return 0
        rule = self._rules.get(EDGE_LIMIT)
        key = network_text(client)
        if rule is not None:
            key = counted_key(key, rule.limit)
            block = self.blocklist.get(EDGE_LIMIT, key)
            if block is not None and not block.shadow and not rule.limit.shadow:
                until = max(until, block.until)
        until = max(until, self._until(key))
        return until if until > self.engine.table.now else 0

    def wider_until(self, network: Network) -> int:
        """Return the latest end of blocks by hand of networks that contain a network, 0 for none.

        An epoch second.
        """
        lengths = self._barred.lengths(network.version)
        lengths |= {width[network.version == 6] for width in self._widths}
        wider = (
            network_text(network.supernet(new_prefix=length))
            for length in lengths
            if length < network.prefixlen
        )
        return max(map(self._until, wider), default=0)

    def is_network(self, key: str) -> bool:
        """Return whether a key is a network that some limit does not count as one client."""
        network = key_network(key)
        return network is not None and any(
            network.prefixlen < width[network.version == 6] for width in self._widths
        )

    def may_have_parts(self, network: Network) -> bool:
        """Return whether parts of a network may be blocked by hand."""
        wide = any(network.prefixlen < width[network.version == 6] for width in self._widths)
        return wide or self._barred.within(network)

    def string_key(self, string: bytes) -> str:
        """Return the key of a string."""
        key = self.engine.key
        key.binary(string, 0, len(string))
        return hash_key(key.hi, key.lo)

    def is_secret(self, limit: str) -> bool:
        """Return whether a limit's strings are shown as hints; for ``EVERY_LIMIT``, whether any's
        are.
        """
        if limit == EVERY_LIMIT:
            # Requests of unknown clients are counted by their proxy's address.
            return any(r.limit.secret for r in self.engine.rules if r.limit.name != UNKNOWN)
        rule = self._rules.get(limit)
        return rule is None or rule.limit.secret

    def is_known(self, key: str) -> bool:
        """Return whether any limit has a client with this key, or has blocked it."""
        return any(
            self.engine.table.peek(*self._client(rule, counted_key(key, rule.limit))) >= 0
            or self.blocklist.get(rule.limit.name, key) is not None
            for rule in self.engine.rules
        )

    def kept(self, entry: E) -> E:
        """Return a block or lift in the form in which it is kept; see ``limiter.string_keys``."""
        if not self.keyed:
            return entry  # a hash by another secret would match no client
        return kept(entry, self.is_secret(entry.limit), self.string_key)

    def explain(self, key: str) -> Steps[list[ClientState]]:
        """Return the state of a client in each limit, without counting the client as seen."""
        engine = self.engine
        states = []
        for rule in list(engine.rules):
            counted = counted_key(key, rule.limit)
            slot = engine.table.peek(*self._client(rule, counted))
            states.append(
                ClientState(
                    limit=rule.limit,
                    key=counted,
                    hits=engine.hits(rule, slot) if slot >= 0 else 0,
                    until=engine.table.until(slot) if slot >= 0 else 0,
                    block=self.blocklist.get(rule.limit.name, counted),
                )
            )
            if len(states) % _UPDATED == 0:
                yield
        return states

    def clear_fuse(self, limit: str) -> bool:
        """Reset the fuse of a limit; return false if it has not blown."""
        rule = self._rules.get(limit)
        if rule is None or not rule.fused:
            return False
        rule.blow(False)
        rule.refused = rule.refused_before = 0
        _tell(self.on_fuse, rule.limit, False)
        return True

    def apply(self, block: Block) -> bool:
        """Merge an entry that no limit made here; return true if it changes the state.

        False if the known entry is newer or if there is no room.
        """
        block = self.kept(block)
        if not self._take(block):
            return False
        _tell(self.on_block, block)
        return True

    def _take(self, block: Block) -> bool:
        if not self.blocklist.take(block, self.engine.table.now):
            return False
        if block.limit == EVERY_LIMIT and self._bars(block.key):
            self._changed()
        self._update(block.limit, block.key)
        _tell(self.on_taken, block)
        return True

    def lift(self, lift: Lift, news: bool = True) -> bool:
        """Merge a lift made elsewhere; return true if it changes the state of the client.

        The client is unblocked at once, and its strikes are forgotten.
        """
        lift = self.kept(lift)
        known = self.blocklist.get(lift.limit, lift.key)
        if not self._lift(lift):
            return False
        _tell(self.on_taken, lift)
        if known is not None and self.blocklist.get(lift.limit, lift.key) is None:
            _tell(self.on_gone, known, news)
        return True

    def lift_now(self, limit: str, key: str, now: int) -> Lift:
        """Remove any block of a client; return the lift for the store.

        ``now`` is in epoch nanoseconds.
        """
        lift = self.blocklist.lift_of(limit, key, now)
        self._lift(lift)
        return lift

    def _lift(self, lift: Lift) -> bool:
        limit, key = lift.limit, lift.key
        changed = self.blocklist.lift(lift)
        if self.blocklist.get(limit, key) is None:
            if limit == EVERY_LIMIT and self._barred.discard(key):
                self._changed()
            self._update(limit, key)
        return changed

    def load(self, entries: Iterable[Entry]) -> Steps[None]:
        """Merge entries made elsewhere, from a list of any length; ``cut()`` is due afterwards."""
        self._loading += 1
        try:
            room = _COMPARED
            for entry in entries:
                if room <= 0:
                    room = _COMPARED
                    yield
                if isinstance(entry, Lift):
                    changed = self.lift(entry, news=False)
                else:
                    changed = self._take(self.kept(entry))
                room -= _COMPARED // _UPDATED if changed else 1
        finally:
            self._loading -= 1
        self._changed()

    def rekey(self, secret: bytes) -> None:
        """Set the fleet's secret for strings, 16 bytes.

        With a new secret, clients with string keys become other clients. A block whose text is the
        string applies again once it is merged again.
        """
        self.engine.key.rekey(secret)
        self.keyed = True

    def divide(self, nodes: int, up: bool) -> None:
        """Share clients with ``nodes`` nodes, including this one; ``up`` is whether they are
        reachable.

        In an outage, clients that are not shared yet would take room from others.
        """
        for rule in self.engine.rules:
            if self.sharing is Sharing.HOT:
                rule.divide(nodes)
            elif self.sharing is Sharing.ALL:
                rule.share_all(up)

    def degrade(self, nodes: int) -> None:
        """Enforce only this node's part of each limit for ``nodes`` nodes; 1 is the whole limit."""
        for rule in self.engine.rules:
            rule.rate = max(1, rule.limit.rate // nodes)

    def _update(self, limit: str, key: str) -> None:
        """Write the state of a client from the blocklist to the table."""
        _tell(self.on_state, limit, key)
        network = key_network(key)
        for rule in self.engine.rules if limit == EVERY_LIMIT else [self._rules.get(limit)]:
            if rule is None:
                continue
            client, width = key, (rule.limit.ipv4_prefix, rule.limit.ipv6_prefix)
            if network is not None and not _is_client(network, *width):
                # Under another prefix it is another client. Its place has a client of the current
                # prefix or none, and must not keep a block until the prefix changes back.
                first, _, _ = span(network, 0)
                place = first >> 64, first & M64, ADDRESS << 16 | rule.index
                if self.engine.table.peek(*place) < 0 and place not in self.engine.table.orphans:
                    continue
                client = counted_key(first_address(key), rule.limit)
                if first_address(client) != first_address(key):
                    self._hold(rule, key, 0, False)
                    continue
            by_hand = self.blocklist.get(EVERY_LIMIT, client)
            block = self.blocklist.get(rule.limit.name, client)
            if block is not None and block.shadow and not rule.limit.shadow:
                block = None
            if by_hand is not None and (block is None or by_hand.until >= block.until):
                self._hold(rule, client, by_hand.until, True)
            else:
                self._hold(rule, client, block.until if block else 0, False)

    def _client(self, rule: Rule, key: str) -> tuple[int, int, int]:
        """Return the table key of a client of a limit."""
        hashed = hash_numbers(key)
        if hashed is not None:
            return *hashed, TEXT << 16 | rule.index
        found = self.engine.key
        text = first_address(key).encode()
        found.text(text, 0, len(text))
        return found.hi, found.lo, found.kind << 16 | rule.index

    def _hold(self, rule: Rule, key: str, until: int, by_hand: bool) -> None:
        table = self.engine.table
        client = self._client(rule, key)
        slot = table.peek(*client)
        if slot < 0:
            if until <= table.now:
                # Nothing to store; do not evict a client for it.
                table.orphans.pop(client, None)
                return
            slot = table.find(*client)
        if until > table.now >= table.until(slot) and not by_hand:
            self.engine.hold(rule, slot, until)
        else:
            # A block by hand may be short, and earlier hits still count.
            table.block(slot, until, by_hand)

    def _until(self, key: str) -> int:
        block = self.blocklist.get(EVERY_LIMIT, key)
        return 0 if block is None else block.until

    def _bars(self, key: str) -> bool:
        """Bar the addresses of a key, unless every limit counts them as one client."""
        network = key_network(key)
        if network is None or all(_is_client(network, *width) for width in self._widths):
            return False
        self._barred.add(network, key)
        return True

    def _changed(self) -> None:
        """Apply changes of the networks that are blocked by hand in the engine.

        At once if they are few; rebuilding many takes long and is done in steps.
        """
        if not self._loading and len(self._barred) <= _CUT_AT_ONCE:
            finish(self.cut())

    def _dropped(self, block: Block) -> None:
        if block.limit == EVERY_LIMIT:
            self._barred.discard(block.key)
            _tell(self.on_ended, block)

    def _strike(self, rule: Rule, text: bytes, kind: int, hi: int, lo: int, now: int) -> int:
        limit = rule.limit
        # Compare with the clients of the whole site: of a limit with few clients, an attacker's
        # addresses would soon be a large share.
        seen = max(max(one.seen, one.seen_before) for one in self.engine.rules)
        if _too_many(limit, seen, max(rule.refused, rule.refused_before)):
            rule.blow(True)
            _tell(self.on_fuse, limit, True)
            return 0
        if kind == TEXT and not self.keyed:
            return 0
        key = client_key(kind, hi, lo, limit.ipv4_prefix, limit.ipv6_prefix)
        shown = string_text(text, key, limit.secret) if kind == TEXT else ""
        last = self.blocklist.get(limit.name, key) if limit.shadow else None
        if last is not None and not last.shadow:
            # Otherwise it would win over the block in shadow mode, here and on all other nodes.
            _tell(self.on_made, self.lift_now(limit.name, key, now))
        wire = wire_of(text) if kind == TEXT and limit.name in self.digests else ""
        block = next_block(self.blocklist, limit, key, now, shown, wire)
        if not self.blocklist.put(block, block.since):
            return 0
        self.blocks += 1
        self.blocks_unreported += 1
        self.news.append(block)
        _tell(self.on_made, block)
        _tell(self.on_block, block)
        _tell(self.on_state, block.limit, block.key)
        return block.until


def _tell(listeners: Iterable[Callable[_P, object]], *args: _P.args, **kwargs: _P.kwargs) -> None:
    for listener in listeners:
        listener(*args, **kwargs)


def _too_many(limit: Limit, seen: int, refused: int) -> bool:
    """Return whether so many clients were refused in a minute that the limit must be wrong.

    ``seen`` is the number of clients of the most used limit.
    """
    return limit.fuse > 0 and refused >= FUSE_CLIENTS and refused > limit.fuse * seen


def _widths(limits: Iterable[Limit]) -> frozenset[tuple[int, int]]:
    """Return the prefix lengths of clients, IPv4 and IPv6."""
    return frozenset((limit.ipv4_prefix, limit.ipv6_prefix) for limit in limits)


def _is_client(network: Network, ipv4_prefix: int, ipv6_prefix: int) -> bool:
    """Return whether a network is one client."""
    return network.prefixlen == (ipv4_prefix if network.version == 4 else ipv6_prefix)
