"""The blocks that HAProxy's tables ``rlv_NAME`` must hold: one table for each limit.

A block belongs to exactly one key of such a table. Blocks of a network that is not one client of
the limit, and lists, travel by the maps of the runtime API instead; without them, a client of such
a network gets its own verdict with its next count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from itertools import chain

from ratelimit.engine.key import Key
from ratelimit.engine.layout import ADDRESS, ALLOW, DENY, M32, M64, MAPPED, MIXED
from ratelimit.engine.rule import Rule
from ratelimit.large import LargeDict
from ratelimit.limiter.keys import client_key, hash_key, key_network
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.lists import span
from ratelimit.model import EVERY_LIMIT, VERDICT_PREFIX
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.steps import Steps

PREFIX = VERDICT_PREFIX

MAX_VERDICTS = 400_000
"""Blocks of one limit: by hand and by the limit, all entries of a full blocklist."""

NEVER_ENDS = (1 << 32) - 1
"""End of a denial by a list, in epoch seconds; the highest value of a table."""

NAT64 = bytes.fromhex("0064ff9b") + bytes(8)
"""Begins the addresses of clients behind NAT64, 64:ff9b::/96 (RFC 6052)."""

_ADDRESSES = (KeyType.IPV6, KeyType.IPV4)
_IPV4_BYTES = 4
_KIND_BITS = 3
_STEP = 16  # verdicts per step


class Kind(enum.IntEnum):
    """What HAProxy does with a client; it only logs the last two."""

    NONE = 0
    THROTTLE = 1
    BLOCK = 2
    DENYLIST = 3
    THROTTLE_SHADOW = 4
    BLOCK_SHADOW = 5


_REFUSE = (Kind.THROTTLE, Kind.BLOCK, Kind.DENYLIST)


def verdict(end: int, kind: Kind) -> int:
    """Return a verdict as one number; ``end`` is in epoch milliseconds of the fleet's clock."""
    return end << _KIND_BITS | kind


def end_of(value: int) -> int:
    """Return the end of a verdict in epoch milliseconds; 0 for no verdict."""
    return value >> _KIND_BITS


def kind_of(value: int) -> int:
    """Return the kind of a verdict."""
    return value & (1 << _KIND_BITS) - 1


class VerdictTable:
    """The verdicts of one limit, by the key in HAProxy's table.

    ``limiter`` decides. ``maps`` is true if HAProxy has the lists in its maps, so that a client of
    which the allow list has a part may be blocked. ``ready`` is true once all blocks of the
    blocklist are in ``values``. With ``translates``, a blocked IPv4 address also has the key that
    it has behind NAT64; rebuild the table after a change. ``dropped`` counts verdicts that had no
    room. ``told`` is its name in the first session that had it.
    """

    def __init__(self, limiter: Limiter, limit: str, like: Definition, maps: bool) -> None:
        self.limit = limit
        self.name = PREFIX + limit
        self.told = self.name
        self.key_type = like.key_type
        self.key_size = like.key_size
        self.maps = maps
        self.ready = False
        self.translates = False
        self.dropped = 0
        self.values: LargeDict[bytes, int] = LargeDict()
        self._limiter = limiter
        self._size = 0
        self._key = Key(bytes(16))
        # Of strings, the blocklist has another hash than HAProxy.
        self._strings: LargeDict[str, bytes] = LargeDict()
        self._sweeping: Iterator[list[bytes]] = iter(())

    @property
    def rule(self) -> Rule | None:
        """The rule of the limit; None after a reload without the limit."""
        return self._limiter.rule(self.limit)

    def definition(self, number: int, name: str, expire: int) -> Definition:
        """Return the definition with which this side announces the table as ``name``."""
        types = (DataType.GPT,)
        sizes = {DataType.GPT: 3}
        return Definition(
            number, name, self.key_type, self.key_size, types, sizes=sizes, expire=expire
        )

    def fits(self, definition: Definition) -> bool:
        """Return whether HAProxy's table has the same keys."""
        return (definition.key_type, definition.key_size) == (self.key_type, self.key_size)

    @property
    def is_text(self) -> bool:
        """Whether the keys are strings, not addresses."""
        return self.key_type not in _ADDRESSES

    def get(self, key: bytes) -> int:
        """Return the verdict for a key; 0 for none."""
        return self.values.get(key) or 0

    def update(self, client: str) -> list[bytes]:
        """Take a client's state from the blocklist; return the keys to tell.

        ``client`` is a key of the blocklist.
        """
        keys = self._keys_of(client)
        for key in keys:
            self._set(key, self._decide(self.rule, client, key))
        return keys

    def refuses(self, client: str) -> bool:
        """Return whether HAProxy is told to refuse a client, or is told no keys of this kind."""
        if client.startswith("~") != self.is_text:
            return True
        return any(kind_of(self.get(key)) in _REFUSE for key in self._keys_of(client))

    def renew(self, key: bytes) -> None:
        """Take the state of the client with this key from the blocklist and the lists."""
        self._set(key, self._decide(self.rule, self._client(key), key))

    def learn(self, key: bytes) -> None:
        """Note under which key HAProxy has a string."""
        if self.is_text:
            client = self._client(key)
            if self._strings.get(client) is None and len(self._strings) < MAX_VERDICTS:
                self._strings[client] = key
                self.update(client)

    def rebuild(self) -> Steps[list[bytes]]:
        """Compare all verdicts with the blocklist and the lists; return the keys that changed.

        Before ``ready``, all keys of ``values`` are of the blocklist.
        """
        changed = []
        blocklist = self._limiter.blocklist
        for number, block in enumerate(chain(blocklist.of(EVERY_LIMIT), blocklist.of(self.limit))):
            changed += [key for key in self._keys_of(block.key) if self._renew(key, block.key)]
            if number % _STEP == 0:
                yield
        for page in self.values.pages() if self.ready else ():
            for number, key in enumerate(page):
                if self._renew(key, self._client(key)):
                    changed.append(key)
                if number % _STEP == 0:
                    yield
        self.ready = True
        return changed

    def renew_within(self, network: str) -> Steps[list[bytes]]:
        """Renew all verdicts on clients in a network of the blocklist; return the changed keys."""
        within = key_network(network)
        if within is None or self.is_text:
            return []
        first, last, _ = span(within, 0)
        changed = []
        for page in self.values.pages():
            for number, key in enumerate(page):
                hi, lo = self._numbers(key)
                if first <= hi << 64 | lo <= last and self._renew(key, self._client(key)):
                    changed.append(key)
                if number % _STEP == 0:
                    yield
        return changed

    def sweep(self) -> None:
        """Forget some verdicts that have ended; call it each second."""
        page = next(self._sweeping, None)
        if page is None:
            self._sweeping = self.values.pages()
            return
        now = self._limiter.engine.now // 1_000_000
        for key in page:
            if end_of(self.get(key)) <= now:
                self._set(key, 0)

    def _renew(self, key: bytes, client: str) -> bool:
        before = self.get(key)
        return self._set(key, self._decide(self.rule, client, key)) and self.get(key) != before

    def _set(self, key: bytes, value: int) -> bool:
        """Store a verdict, 0 for none; return false if there is no room."""
        known = self.values.get(key)
        if value == 0:
            if known is not None:
                self.values.pop(key)
                self._size -= 1
            return True
        if known is None:
            if self._size >= MAX_VERDICTS:
                self.dropped += 1
                return False
            self._size += 1
        self.values[key] = value
        return True

    def _decide(self, rule: Rule | None, client: str, key: bytes) -> int:
        """Return the verdict on a client by the blocklist and the lists, 0 for none."""
        if rule is None:
            return 0
        limiter = self._limiter
        listed = self._listed(rule, key)
        if listed == DENY:
            return verdict(NEVER_ENDS * 1000, Kind.DENYLIST)
        if listed == ALLOW or (listed == MIXED and not self.maps):
            return 0
        until = limiter.engine.table.now
        kind = Kind.NONE
        by_hand = limiter.blocklist.get(EVERY_LIMIT, client)
        if by_hand is not None and by_hand.until > until:
            until, kind = by_hand.until, Kind.BLOCK
        if not limiter.engine.barred.empty and not self.is_text:
            wider = limiter.engine.barred.uniform(*self._range(rule, key))
            if wider > until and wider != MIXED:
                until, kind = wider, Kind.BLOCK
        block = limiter.blocklist.get(rule.limit.name, client)
        if block is not None and block.until > until:
            if not block.shadow and not rule.limit.shadow:
                until, kind = block.until, Kind.BLOCK
            elif kind == Kind.NONE:
                until, kind = block.until, Kind.BLOCK_SHADOW
        return verdict(until * 1000, kind) if kind else 0

    def _listed(self, rule: Rule, key: bytes) -> int:
        """Return what the lists say of all addresses of a client."""
        lists = self._limiter.engine.lists
        return 0 if lists.empty or self.is_text else lists.uniform(*self._range(rule, key))

    def _range(self, rule: Rule, key: bytes) -> tuple[int, int, int, int]:
        """Return the first and the last address of a client, each as two halves."""
        hi, lo = self._numbers(key)
        mapped = hi == 0 and lo >> 32 == MAPPED
        outside = 32 - rule.limit.ipv4_prefix if mapped else 128 - rule.limit.ipv6_prefix
        last = hi << 64 | lo | (1 << outside) - 1
        return hi, lo, last >> 64, last & M64

    def _keys_of(self, client: str) -> list[bytes]:
        """Return HAProxy's keys for a key of the blocklist; none if it is no key of the table."""
        if client.startswith("~"):
            string = self._string(client) if self.is_text else None
            return [] if string is None else [string]
        rule = self.rule
        text, _, bits = client.partition("/")
        address, found = text.encode(), self._key
        found.text(address, 0, len(address))
        if found.kind != ADDRESS:
            return []
        hi, lo = found.hi, found.lo
        mapped = hi == 0 and lo >> 32 == MAPPED
        length = int(bits or (32 if mapped else 128))
        if rule is not None:
            wanted = rule.limit.ipv4_prefix if mapped else rule.limit.ipv6_prefix
            if length != wanted:
                return []
        if self.key_type == KeyType.IPV4 and mapped:
            return [(lo & M32).to_bytes(4)]
        if self.key_type != KeyType.IPV6:
            return []
        keys = [(hi << 64 | lo).to_bytes(16)]
        if self.translates and mapped and length == 32:
            # HAProxy has a client behind NAT64 under the address that it sees.
            keys.append(NAT64 + (lo & M32).to_bytes(4))
        return keys

    def _string(self, client: str) -> bytes | None:
        """Return HAProxy's key for a string, if it is known from counts or from a block."""
        known = self._strings.get(client)
        if known is not None:
            return known
        for limit in (EVERY_LIMIT, self.limit):
            block = self._limiter.blocklist.get(limit, client)
            if block is None or len(block.wire) != 2 * self.key_size:
                continue
            try:
                key = bytes.fromhex(block.wire)
            except ValueError:
                continue
            # Another node, or another program, has written it.
            if self._client(key) == client and len(self._strings) < MAX_VERDICTS:
                self._strings[client] = key
                return key
        return None

    def _client(self, key: bytes) -> str:
        """Return the key of the blocklist for a key of HAProxy."""
        rule = self.rule
        if self.key_type in _ADDRESSES:
            hi, lo = self._numbers(key)
            v4, v6 = (32, 128) if rule is None else (rule.limit.ipv4_prefix, rule.limit.ipv6_prefix)
            try:
                return client_key(ADDRESS, hi, lo, v4, v6)
            except ValueError:
                return ""  # host bits, after a change of the prefix: no client
        found = self._limiter.engine.key
        found.binary(key, 0, len(key))
        return hash_key(found.hi, found.lo)

    def _numbers(self, key: bytes) -> tuple[int, int]:
        found = self._key
        if len(key) == _IPV4_BYTES:
            found.ipv4(key, 0)
        else:
            found.ipv6(key, 0)
        outside = 0
        if key.startswith(NAT64) and self.rule is not None:
            outside = 32 - self.rule.limit.ipv4_prefix  # HAProxy does not mask it
        return found.hi, found.lo >> outside << outside
