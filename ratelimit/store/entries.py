"""Blocks and lifts as text, and what is wrong with one that no node can have written; no I/O."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, replace
from operator import attrgetter
from typing import Any

import structlog

from ratelimit.exceptions import StoreError
from ratelimit.limiter.orders import MAX_ORDER
from ratelimit.limiter.strings import masked
from ratelimit.model import Block, Entry, Lift

MAX_SECOND = 1 << 33
"""Epoch seconds are below this, which is the year 2242."""

_MAX_STRIKES = 1 << 31
_MAX_SHOWN = 10  # damaged entries of a list that are logged one by one

_BELOW = {"strikes": _MAX_STRIKES, "since": MAX_SECOND, "until": MAX_SECOND, "order": MAX_ORDER}
_NEEDED = [field.name for field in fields(Block) if field.default is MISSING]
_NAMES = [field.name for field in fields(Block)]
_FIELDS = [(field.name, str(field.type)) for field in fields(Block)]

_values = attrgetter(*_NAMES)

log = structlog.get_logger()


def block_to_json(block: Block) -> str:
    """Return an entry as the store has it."""
    data = dict(zip(_NAMES, _values(block), strict=True))
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def block_from_json(text: str | bytes) -> Block:
    """Return the entry; ValueError says what is wrong. Fields of a later version are left out."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return block_from_data(data)


def block_from_data(data: Any) -> Block:
    """Return the entry that was read from JSON; raises as ``block_from_json()`` does."""
    if not isinstance(data, dict):
        raise ValueError("not an entry")  # noqa: TRY004 - of the text, not of the argument
    values = {name: _value(name, kind, data[name]) for name, kind in _FIELDS if name in data}
    if missing := [name for name in _NEEDED if name not in values]:
        raise ValueError(f"has no {missing[0]}")
    block = Block(**values)
    if not block.key or not block.limit:
        raise ValueError("an empty key or limit")
    # The version before this one had no orders.
    return block if block.order else replace(block, order=block.since * 1_000_000)


def entry_to_json(entry: Entry) -> str:
    """Return a block or a lift as one process tells it another one."""
    kind = "lift" if isinstance(entry, Lift) else "block"
    return json.dumps({kind: asdict(entry)}, separators=(",", ":"))


def entry_from_json(text: str | bytes) -> Entry:
    """Return the block or lift; ValueError says what is wrong."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    match data:
        case {"block": block}:
            return block_from_data(block)
        case {
            "lift": {"limit": str(limit), "key": str(key), "order": int(rank), "until": int(end)}
        }:
            return make_lift(limit, key, rank, end)
    raise ValueError("neither a block nor a lift")


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
    """Return a text that can be written as UTF-8; ValueError if it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half a surrogate pair") from None
    return text


def make_lift(limit: str, key: str, order: int, until: int) -> Lift:
    """Return a lift; ValueError says what is wrong with it."""
    if not limit or not key:
        raise ValueError("an empty key or limit")
    if not 0 <= order < MAX_ORDER:
        raise ValueError(f"order is not from 0 to {MAX_ORDER - 1}")
    if not 0 <= until < MAX_SECOND:
        raise ValueError(f"until is not from 0 to {MAX_SECOND - 1}")
    return Lift(writable(key), writable(limit), order, until)


def check(entry: Entry) -> None:
    """Refuse an entry that no store can keep: StoreError, ``unsent``."""
    try:
        for name, kind in _FIELDS:
            if isinstance(entry, Block) or name in ("key", "limit", "order"):
                _value(name, kind, getattr(entry, name))
    except ValueError as error:
        raise StoreError(f"this can't be kept: {error}", unsent=True) from None


class Damage:
    """Logs what is wrong with entries of a list, each in a line, of many only how many more."""

    def __init__(self, where: str) -> None:
        self.count = 0
        self._where = where

    def note(self, entry: str | bytes, why: Exception | str) -> None:
        """Log that an entry, by limit and key, is left out."""
        self.count += 1
        if self.count <= _MAX_SHOWN:
            text = entry.decode("utf-8", "surrogateescape") if isinstance(entry, bytes) else entry
            limit, bar, key = text.partition("|")
            shown = f"{limit}{bar}{masked(key)}".encode("unicode_escape").decode()[:300]
            log.error("a damaged entry is left out", entry=shown, why=str(why), where=self._where)

    def done(self) -> None:
        """Log how many there were if not all were logged."""
        if self.count > _MAX_SHOWN:
            log.error("damaged entries are left out", count=self.count, where=self._where)
