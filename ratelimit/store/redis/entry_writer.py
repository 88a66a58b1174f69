"""Writes blocks and lifts to the store, and learns which entries hold.

Scripts merge new entries with stored ones (``scripts/block.lua``, ``scripts/lift.lua``). Scripts
can't sign: for nodes that sign, they return the stored entry, and the node merges, signs, and
writes again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ratelimit.limiter.strikes import struck
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift
from ratelimit.store.entries import MAX_SECOND
from ratelimit.store.redis.session import Life, Script
from ratelimit.store.signing import Signer, UnsignedError

_TRIES = 5  # an entry with an invalid signature takes two or three
_BAD = "an entry that no node can have written"

Args = tuple[bytes | str | int, ...]

_BLOCK, _LIFT = Script("entries", "block"), Script("entries", "lift")


class EntryWriter:
    """Writes to the two keys of a blocklist and publishes changes on a channel.

    Args:
        new_era: returns the era for new keys.
        forget: returns for how many seconds strikes of a limit are remembered.
        learn: called with each entry of the store that this node may lack.
    """

    def __init__(
        self,
        keys: tuple[bytes, ...],
        channel: bytes,
        signer: Signer,
        new_era: Callable[[], str],
        forget: Callable[[str], int],
        learn: Callable[[Entry], object],
    ) -> None:
        self._keys = keys
        self._channel = channel
        self._signer = signer
        self._new_era = new_era
        self._forget = forget
        self._learn = learn

    async def blocks(
        self, life: Life, blocks: Sequence[tuple[Block, bool]], sure: bool = False
    ) -> tuple[list[tuple[bool, Entry]], int]:
        """Write blocks, each with whether it is new.

        Returns for each true and the entry that holds now, and the number of changes of the list.
        """
        held: list[Entry] = [block for block, _ in blocks]
        left = [
            _Try(at, new, bool(self._signer) and new and block.limit == EVERY_LIMIT)
            for at, (block, new) in enumerate(blocks)
        ]

        def args(one: _Try) -> Args:
            block = held[one.at]
            assert isinstance(block, Block)  # noqa: S101 - lifts are not retried
            text, memory = self._signer.text(block), self._forget(block.limit)
            follows = int(one.new and not one.follows)
            return _field(block), text, memory, follows, one.block, one.lift

        again = partial(self._held, held)
        changed = await self._write(life, _BLOCK, left, args, 1, again, sure)
        return [(True, entry) for entry in held], changed

    async def _write(
        self,
        life: Life,
        script: Script,
        left: list[_Try],
        args: Callable[[_Try], Args],
        size: int,
        again: Callable[..., bool],
        sure: bool,
    ) -> int:
        """Write entries until the store has all of them; return the number of changes of the list.

        ``again`` takes an entry and its part of the answer, ``size`` values; it returns true if the
        entry must be written again.
        """
        changed = 0
        for _ in range(_TRIES):
            if not left:
                break
            every = itertools.chain.from_iterable(map(args, left))
            answer = await life.run(
                script, self._keys, self._new_era(), self._channel, *every, sure=sure
            )
            try:
                *rest, count = answer
                changed += int(count)
                parts = zip(*(rest[at::size] for at in range(size)), strict=True)
                left = [one for one, part in zip(left, parts, strict=True) if again(one, *part)]
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                raise life.odd("the answer to a change") from None
        if left:
            raise life.fail(f"{_BAD} comes back again and again", unsent=True)
        return changed

    def _held(self, held: list[Entry], one: _Try, text: bytes) -> bool:
        """Process the result for a block; return true if it must be written again.

        An entry that no node can have written, or without a valid signature, is replaced. Scripts
        can't sign, so what they do for a new block is done here: a block by hand follows the stored
        entry, a block by a limit is a further strike or the same one.
        """
        block = held[one.at]
        if not text:
            if one.raised:
                self._learn(block)
            return False
        data = json.loads(text)
        try:
            if "lifted" in data:
                entry: Entry = self._signer.lift(block.limit, block.key, *data["lifted"])
            else:
                entry = self._signer.block(data)
        except ValueError:
            if "lifted" in data:
                order, until, *signature = data["lifted"]
                one.lift = b"%d %d %s" % (until, order, str(*signature).encode())
            else:
                one.block = text
            return True
        assert isinstance(block, Block)  # noqa: S101 - lifts are not retried
        merged = entry
        if one.follows:
            merged = replace(block, order=entry.order + 1)
        elif self._signer and one.new and isinstance(entry, Block):
            merged = struck(block, entry, self._forget(block.limit))
        if merged != entry:
            held[one.at] = merged
            one.new = one.follows
            one.raised = True
            return True
        self._learn(entry)
        held[one.at] = entry
        return False

    async def lifts(
        self, life: Life, lifts: Sequence[tuple[Lift, bool]], sure: bool = False
    ) -> tuple[list[tuple[bool, Lift]], int]:
        """Write lifts, each with whether it is new.

        Returns for each whether it ended a block, and the lift that holds now; and the number of
        changes of the list.
        """
        held = [(False, lift) for lift, _ in lifts]
        left = [_Try(at, new) for at, (_, new) in enumerate(lifts)]

        def args(one: _Try) -> Args:
            _, lift = held[one.at]
            follows, signature = int(one.new and not self._signer), self._signer.sign(lift)
            return _field(lift), lift.order, lift.until, follows, signature, one.block, one.lift

        again = partial(self._lifted, held)
        return held, await self._write(life, _LIFT, left, args, 6, again, sure)

    def _lifted(
        self,
        held: list[tuple[bool, Lift]],
        one: _Try,
        found: int,
        order: bytes,
        until: bytes,
        signature: bytes,
        holds: bytes,
        remember: bytes,
    ) -> bool:
        """Process the result for a lift, like ``_held()``."""
        found_before, lift = held[one.at]
        ended = found_before or found == 1
        held[one.at] = ended, lift
        try:
            mark = self._signer.lift(
                lift.limit, lift.key, int(order), int(until), signature.decode()
            )
        except UnsignedError:
            one.lift = b"%s %s %s" % (until, order, signature)
            return True
        newer: Block | None = None
        if holds:
            try:
                newer = self._signer.block(json.loads(holds))
            except ValueError:
                one.block = holds
                return True
        wanted = mark
        if self._signer and one.new:
            after = max(mark.order, newer.order + 1 if newer is not None else 0)
            end = min(max(mark.until, int(remember)), MAX_SECOND - 1)
            wanted = replace(mark, order=after, until=end)
        held[one.at] = ended, wanted
        if wanted != mark:
            return True
        self._learn(mark)
        if newer is not None:
            self._learn(newer)
        return False


@dataclass(slots=True)
class _Try:
    """An entry that is being written.

    Attributes:
        at: its index among the caller's entries.
        new: whether it follows the stored entry.
        follows: whether that is done here, because a script would break the signature.
        block, lift: stored entries that no node can have written; they are replaced.
        raised: whether its order differs from the one that its owner knows.
    """

    at: int
    new: bool
    follows: bool = False
    block: bytes = b""
    lift: bytes = b""
    raised: bool = False


def _field(entry: Entry) -> str:
    return f"{entry.limit}|{entry.key}"
