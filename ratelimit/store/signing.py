"""Signatures by which nodes know that an entry of the shared blocklist is one of theirs.

With a secret that all nodes of a fleet have, each signs what it writes, and believes only what has
a signature. Every node has merged what it signs, so it does not matter which node did. An older
entry that is written again does no harm: its order is no higher than before, and whatever has
followed it still holds (``limiter.orders``). The counts that nodes share have no signatures: the
store adds them up.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import MISSING, asdict, fields
from typing import Any

import structlog

from ratelimit.limiter.strings import masked
from ratelimit.model import Block, Entry, Lift
from ratelimit.store.entries import block_from_data, block_to_json, make_lift

SIGNATURE = "sig"
"""The field of a block in the store that has it."""

_DIGITS = 32  # of 64 that SHA-256 has: 128 bits
_DEFAULTS = {field.name: field.default for field in fields(Block) if field.default is not MISSING}

log = structlog.get_logger()


class UnsignedError(ValueError):
    """An entry has no valid signature."""


class Signer:
    """Signs and verifies the entries of one fleet; without a secret it does neither.

    ``refused`` counts what had no valid signature; the first one is logged.
    """

    def __init__(self, secret: bytes, prefix: str) -> None:
        self.refused = 0
        self._secret = secret
        self._fleet = prefix

    def __bool__(self) -> bool:
        """Tell whether there is a secret."""
        return bool(self._secret)

    def text(self, block: Block) -> str:
        """Return a block as the store has it."""
        text = block_to_json(block)
        return f'{text[:-1]},"{SIGNATURE}":"{self.sign(block)}"}}' if self else text

    def sign(self, entry: Entry) -> str:
        """Return the signature of an entry; empty without a secret."""
        if not self:
            return ""
        facts = asdict(entry)
        # A later version may have more fields. It agrees with this one where they say nothing.
        facts = {name: facts[name] for name in facts if facts[name] != _DEFAULTS.get(name, MISSING)}
        text = json.dumps([type(entry).__name__, self._fleet, facts], sort_keys=True)
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()[:_DIGITS]

    def block(self, data: Any) -> Block:
        """Return the block that was read from JSON; ValueError says what is wrong with it."""
        block = block_from_data(data)
        self._verify(block, data.get(SIGNATURE))
        return block

    def lift(self, limit: str, key: str, order: int, until: int, signature: object = "") -> Lift:
        """Return a lift; ValueError says what is wrong with it."""
        lift = make_lift(limit, key, order, until)
        self._verify(lift, signature)
        return lift

    def _verify(self, entry: Entry, signature: object) -> None:
        if not self:
            return
        given = signature if isinstance(signature, str) and signature.isascii() else ""
        if hmac.compare_digest(given, self.sign(entry)):
            return
        self.refused += 1
        if self.refused == 1:
            log.error(
                "an entry in the store has no valid signature; all such are ignored",
                limit=entry.limit,
                key=masked(entry.key),
                hint="another program writes to the store, or a node has another store.secret_file",
            )
        raise UnsignedError("no valid signature")
