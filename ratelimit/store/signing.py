"""Signatures that prove that a node of the fleet wrote an entry of the shared blocklist.

With a secret that all nodes share, each node signs what it writes, and accepts only signed entries.
A node signs only merged entries, so it does not matter which node signed. Replaying an older entry
is harmless: its order is no higher than before, and later entries still hold
(``limiter.entry_order``). Shared counts have no signatures, because the store adds them up.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import MISSING, asdict, fields
from typing import Any

import structlog

from ratelimit.limiter.string_keys import masked
from ratelimit.model import Block, Entry, Lift
from ratelimit.store.entries import block_from_data, block_to_json, make_lift

SIGNATURE = "sig"
"""The field of a stored block with the signature."""

_DIGITS = 32  # of the 64 digits of SHA-256: 128 bits
_DEFAULTS = {field.name: field.default for field in fields(Block) if field.default is not MISSING}

log = structlog.get_logger()


class UnsignedError(ValueError):
    """An entry has no valid signature."""


class Signer:
    """Signs and verifies the entries of one fleet; does nothing without a secret.

    ``refused`` counts entries without a valid signature; the first one is logged.
    """

    def __init__(self, secret: bytes, prefix: str) -> None:
        self.refused = 0
        self._secret = secret
        self._fleet = prefix

    def __bool__(self) -> bool:
        """Return whether there is a secret."""
        return bool(self._secret)

    def text(self, block: Block) -> str:
        """Return a block as stored text."""
        text = block_to_json(block)
        return f'{text[:-1]},"{SIGNATURE}":"{self.sign(block)}"}}' if self else text

    def sign(self, entry: Entry) -> str:
        """Return the signature of an entry; empty without a secret."""
        if not self:
            return ""
        facts = asdict(entry)
        # Omit default values, so that later versions with more fields compute the same text.
        facts = {name: facts[name] for name in facts if facts[name] != _DEFAULTS.get(name, MISSING)}
        text = json.dumps([type(entry).__name__, self._fleet, facts], sort_keys=True)
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()[:_DIGITS]

    def block(self, data: Any) -> Block:
        """Return the block of parsed JSON. Raises ValueError."""
        block = block_from_data(data)
        self._verify(block, data.get(SIGNATURE))
        return block

    def lift(self, limit: str, key: str, order: int, until: int, signature: object = "") -> Lift:
        """Return a lift. Raises ValueError."""
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
                "an entry in the store has no valid signature; such entries are ignored",
                limit=entry.limit,
                key=masked(entry.key),
                hint="another program writes to the store, or a node has another store.secret_file",
            )
        raise UnsignedError("no valid signature")
