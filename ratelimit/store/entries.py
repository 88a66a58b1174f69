"""Blocks and lifts as text, and validation of entries; no I/O."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, replace
from operator import attrgetter
from typing import Any

import structlog

from ratelimit.exceptions import StoreError
from ratelimit.limiter.entry_order import MAX_ORDER
from ratelimit.limiter.string_keys import masked
from ratelimit.model import Block, Entry, Lift

MAX_SECOND = 1 << 33
"""Epoch seconds are below this, which is the year 2242."""

_MAX_STRIKES = 1 << 31
_MAX_SHOWN = 10  # damaged entries of a list that are logged individually

_BELOW = {"strikes": _MAX_STRIKES, "since": MAX_SECOND, "until": MAX_SECOND, "order": MAX_ORDER}
_NEEDED = [field.name for field in fields(Block) if field.default is MISSING]
_NAMES = [field.name for field in fields(Block)]
_FIELDS = [(field.name, str(field.type)) for field in fields(Block)]

_values = attrgetter(*_NAMES)

log = structlog.get_logger()


def block_to_json(block: Block) -> str:
    """Return a block as stored text."""
    data = dict(zip(_NAMES, _values(block), strict=True))
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def block_from_json(text: str | bytes) -> Block:
    """Return the block of a text; fields of later versions are ignored. Raises ValueError."""
    return block_from_data(_data(text))


def block_from_data(data: Any) -> Block:
    """Return the block of parsed JSON. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("not an entry")  # noqa: TRY004 - of the text, not of the argument
    values = {name: _value(name, kind, data[name]) for name, kind in _FIELDS if name in data}
    if missing := [name for name in _NEEDED if name not in values]:
        raise ValueError(f"{missing[0]} is missing")
    block = Block(**values)
    if not block.key or not block.limit:
        raise ValueError("empty key or limit")
    # The previous version had no orders.
    return block if block.order else replace(block, order=block.since * 1_000_000)


def entry_to_json(entry: Entry) -> str:
    """Return a block or a lift as text for another process."""
    kind = "lift" if isinstance(entry, Lift) else "block"
    return json.dumps({kind: asdict(entry)}, separators=(",", ":"))


def entry_from_json(text: str | bytes) -> Entry:
    """Return a block or lift from text. Raises ValueError."""
    match _data(text):
        case {"block": block}:
            return block_from_data(block)
        case {
            "lift": {"limit": str(limit), "key": str(key), "order": int(rank), "until": int(end)}
        }:
            return make_lift(limit, key, rank, end)
    raise ValueError("neither a block nor a lift")


def _data(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _value(name: str, kind: str, value: Any) -> Any:
    if kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value).__name__ != kind:
        raise ValueError(f"{name} is not {kind}")
    if kind == "int" and not 0 <= value < _BELOW[name]:
        raise ValueError(f"{name} is not from 0 to {_BELOW[name] - 1}")
    if kind == "str":
        writable(value)
    return value


def writable(text: str) -> str:
    """Return a text that can be encoded as UTF-8; raise ValueError otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half a surrogate pair") from None
    return text


def make_lift(limit: str, key: str, order: int, until: int) -> Lift:
    """Return a lift. Raises ValueError."""
    if not limit or not key:
        raise ValueError("empty key or limit")
    if not 0 <= order < MAX_ORDER:
        raise ValueError(f"order is not from 0 to {MAX_ORDER - 1}")
    if not 0 <= until < MAX_SECOND:
        raise ValueError(f"until is not from 0 to {MAX_SECOND - 1}")
    return Lift(writable(key), writable(limit), order, until)


def check(entry: Entry) -> None:
    """Check that a store can keep an entry. Raises StoreError, ``unsent``."""
    try:
        for name, kind in _FIELDS:
            if isinstance(entry, Block) or name in ("key", "limit", "order"):
                _value(name, kind, getattr(entry, name))
    except ValueError as error:
        raise StoreError(f"the entry can't be stored: {error}", unsent=True) from None


class Damage:
    """Logs damaged entries of a list: the first ones individually, then a count."""

    def __init__(self, where: str) -> None:
        self.count = 0
        self._where = where

    def note(self, entry: str | bytes, why: Exception | str) -> None:
        """Log a damaged entry, given as limit and key."""
        self.count += 1
        if self.count <= _MAX_SHOWN:
            text = entry.decode("utf-8", "surrogateescape") if isinstance(entry, bytes) else entry
            limit, bar, key = text.partition("|")
            shown = f"{limit}{bar}{masked(key)}".encode("unicode_escape").decode()[:300]
            log.error("a damaged entry is ignored", entry=shown, why=str(why), where=self._where)

    def done(self) -> None:
        """Log the number of entries that were not logged individually."""
        if self.count > _MAX_SHOWN:
            log.error("damaged entries are ignored", count=self.count, where=self._where)
