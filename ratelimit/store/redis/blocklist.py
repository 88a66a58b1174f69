"""The shared blocklist: written from the outbox, compared as a whole, and updated by messages.

It uses the keys ``PREFIX:{fleet}:blocks`` and ``PREFIX:{fleet}:lifts`` and a channel for changes;
see ``scripts/``. Everything read is merged with the owner's list (``limiter.entry_order``), and
entries that the store lacks are written back: a server that was restored from an older snapshot, or
was promoted before it had everything, gets what it lost.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import structlog

from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift
from ratelimit.steps import Steps
from ratelimit.store.base import Events, StoreError, tell
from ratelimit.store.entries import Damage
from ratelimit.store.pending import Change, Outbox
from ratelimit.store.redis.entry_writer import EntryWriter
from ratelimit.store.redis.session import Life, Script
from ratelimit.store.secret import SEED, KeptSecret
from ratelimit.store.signing import Signer, UnsignedError
from ratelimit.turns import paced

_BATCH = 25  # entries per request, and per message about it
_PAGE = 1000
_MOST_CHANGES = 1 << 53
_REPLICAS_WAIT = 0.3  # seconds
_STEP = 25  # entries per step
_HEARD = 5  # entries of messages per step: each also goes to HAProxy, the journal and listeners
_BY_HAND = r"\*|*"  # pattern of the fields of blocks by hand

_LOAD = Script("load")

log = structlog.get_logger()


class SharedBlocklist:
    """The blocklist in the store.

    The era identifies this list; with another era the store has lost the list in between. It starts
    with the seed of the fleet's secret, which a node that knows it uses for the next era.
    ``changes`` is the number of changes of the list, as far as this node knows.
    """

    def __init__(
        self,
        prefix: str,
        channel: bytes,
        events: Events,
        outbox: Outbox,
        kept: KeptSecret,
        replicas: int = 0,
        secret: bytes = b"",
    ) -> None:
        self.keys = tuple(f"{prefix}:{{fleet}}:{name}".encode() for name in ("blocks", "lifts"))
        self.channel = channel
        self._events = events
        self._outbox = outbox
        self._kept = kept
        self._replicas = replicas
        self.signer = Signer(secret, prefix)
        self._writer = EntryWriter(
            self.keys, channel, self.signer, self.new_era, events.forget, events.tell
        )
        self._era = b""
        self.changes = 0

    def new_era(self) -> str:
        """Return the era of a list that begins now."""
        return (self._kept.seed or secrets.token_hex(SEED // 2)) + secrets.token_hex(8)

    def begin(self) -> None:
        """Prepare for another server, or for the same one with another list."""
        self.changes = 0

    def learn(self, era: bytes, changes: int, before: int) -> bool:
        """Store the era and the number of changes; return true if the list was lost or set back.

        ``before`` is the value of ``changes`` when the store was asked: messages may have come
        since.
        """
        lost = self._era not in (b"", era) or changes < before
        self._era, self.changes = era, changes if lost else max(changes, self.changes)
        self._kept.learn(era[:SEED].decode("ascii", "replace"))
        return lost

    async def read(self, life: Life) -> AsyncIterator[list[Entry]]:
        """Yield the list in pages; damaged entries are logged and ignored.

        Blocks by hand come first, and again later, because the owner may not have room for all.
        """
        for key, pattern in zip(self.keys[:1] + self.keys, (_BY_HAND, "*", "*"), strict=True):
            damage = Damage(key.decode())
            cursor: Any = b"0"
            while True:
                answer = await life.run(_LOAD, (key,), self.new_era(), cursor, _PAGE, pattern)
                if (
                    not isinstance(answer, list)
                    or not answer
                    or not all(isinstance(one, bytes) for one in answer)
                ):
                    raise life.odd("the blocklist")
                cursor, *rest = answer
                pairs = list(zip(rest[::2], rest[1::2], strict=False))
                parse = self._block if key == self.keys[0] else self._lift
                yield await paced(_parsed(pairs, parse, damage))
                if cursor == b"0":
                    break
            if pattern != _BY_HAND:
                damage.done()

    async def compare(self, life: Life, up: bool) -> int:
        """Merge the list with the owner's, in both directions; return the number of entries written
        back.

        While the store is ``up``, changes for which a caller waits are written in between.
        """
        self._outbox.overflowed = False
        written = 0

        async def write(newer: Sequence[Entry]) -> None:
            nonlocal written
            for start in range(0, len(newer), _BATCH):
                batch = newer[start : start + _BATCH]
                blocks = [(entry, False) for entry in batch if isinstance(entry, Block)]
                lifts = [(entry, False) for entry in batch if isinstance(entry, Lift)]
                written += (await self._writer.blocks(life, blocks))[1]
                written += (await self._writer.lifts(life, lifts))[1]
                await urgent()

        async def urgent() -> None:
            if up and self._outbox.has_waiters:
                await self._write_changes(life, self._outbox.first(_BATCH))

        try:
            merging = self._events.merge()
            async for page in self.read(life):
                await paced(merging.take(page))
                await urgent()
            await tell(merging.newer(), write)
            for start in range(0, len(merging.outdated), _BATCH):
                batch = merging.outdated[start : start + _BATCH]
                key, fields = self.keys[0], (f"{limit}|{name}" for limit, name in batch)
                await life.call(key, "HDEL", key, *fields)
        except BaseException:
            self._outbox.overflowed = True
            raise
        return written

    async def write(self, life: Life, until: float | None = None) -> None:
        """Write pending changes.

        ``until`` is the time of the next heartbeat, which must not wait for a flood of blocks.
        """
        # At most the current number, so that a flood of blocks does not keep it here.
        left = len(self._outbox)
        while left > 0 and (changes := self._outbox.first(_BATCH)):
            left -= len(changes)
            await self._write_changes(life, changes)
            if until is not None and time.monotonic() >= until:
                break

    async def _write_changes(self, life: Life, changes: Sequence[Change]) -> None:
        sure = self._replicas > 0 and any(change.waiters for change in changes)
        entries = [(change.entry, change.fresh) for change in changes]
        for change in changes:
            change.tried = True
        held: Sequence[tuple[bool, Entry]]
        if isinstance(changes[0].entry, Block):
            # A strike that was sent before is the same strike.
            blocks = [
                (e, fresh or e.limit != EVERY_LIMIT) for e, fresh in entries if isinstance(e, Block)
            ]
            held, _ = await self._writer.blocks(life, blocks, sure)
        else:
            lifts = [(e, fresh) for e, fresh in entries if isinstance(e, Lift)]
            held, _ = await self._writer.lifts(life, lifts, sure)
        unsure = await self._unsure(life) if sure else None
        for change, (found, entry) in zip(changes, held, strict=True):
            change.held = entry
            self._outbox.done(change, unsure or found)

    async def _unsure(self, life: Life) -> StoreError | None:
        """Return an error if too few replicas have the last change."""
        count = await life.confirmed(self._replicas, _REPLICAS_WAIT)
        if count >= self._replicas:
            return None
        return StoreError(
            f"{count} of {self._replicas} replicas (store.replicas) have the change after "
            f"{_REPLICAS_WAIT * 1000:.0f} ms; the change is in force, but a failover may lose it"
        )

    def hear(self, text: bytes) -> Steps[bool]:
        """Process a message; the result is false if no node can have sent it."""
        damage = Damage(self.channel.decode())
        try:
            news = json.loads(text)
            lifts, times = news.get("lifts", ()), news.get("lifted", ())
            # The previous version sends only times.
            marks = news.get("marks", [(_order(second), second + _HOUR) for second in times])
            blocks, lifted = list(news.get("blocks", ())), list(zip(lifts, marks, strict=True))
            self.changes = max(self.changes, min(int(news.get("changes", 0)), _MOST_CHANGES))
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return False
        for count, data in enumerate(blocks, 1):
            if count % _HEARD == 0:
                yield
            try:
                self._events.on_block(self.signer.block(data))
            except UnsignedError:
                continue
            except ValueError as error:
                named = data if isinstance(data, dict) else {}
                damage.note(f"{named.get('limit')}|{named.get('key')}", error)
        for count, (field, mark) in enumerate(lifted, 1):
            if count % _HEARD == 0:
                yield
            try:
                order, until, *signature = mark
                lift = self.signer.lift(*_place(field), order, until, *signature)
                self._events.on_lift(lift)
            except UnsignedError:
                continue
            except (ValueError, TypeError, AttributeError) as error:
                damage.note(str(field), str(error))
        return damage.count == 0

    def _block(self, field: bytes, value: bytes) -> Entry:
        """Return an entry of the first hash."""
        place = _place(field.decode())
        until, _, text = value.partition(b" ")
        data = json.loads(text)
        if isinstance(data, dict) and data.keys() == {"lifted"}:
            return self.signer.lift(*place, _order(data["lifted"]), int(until))
        block = self.signer.block(data)
        if (block.limit, block.key) != place:
            raise ValueError("of another limit or key")
        return block

    def _lift(self, field: bytes, value: bytes) -> Entry:
        """Return an entry of the second hash."""
        until, order, *signature = value.decode().split(" ")
        return self.signer.lift(*_place(field.decode()), int(order), int(until), *signature)


_HOUR = 3600


def _order(second: float) -> int:
    """Return the order of a lift by the previous version at a second.

    A block begins at a whole second, up to one second after the hit.
    """
    return (int(second) + 1) * 1_000_000


def _place(field: str) -> tuple[str, str]:
    limit, bar, key = field.partition("|")
    if not bar:
        raise ValueError("not a limit and a key")
    return limit, key


def _parsed(
    pairs: Sequence[tuple[bytes, bytes]], parse: Callable[[bytes, bytes], Entry], damage: Damage
) -> Steps[list[Entry]]:
    entries = []
    for count, (field, value) in enumerate(pairs, 1):
        try:
            entries.append(parse(field, value))
        except UnsignedError:
            continue
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            damage.note(field, error)
        if count % _STEP == 0:
            yield
    return entries
