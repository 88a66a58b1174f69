"""Answers with a long list, encoded in steps."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel
from pydantic_core import to_json

from ratelimit.steps import Steps

_WRITTEN = 32  # entries per step


def listing(model: BaseModel, field: str, entries: Iterable[object]) -> Steps[bytes]:
    """Return the JSON of a model with these entries in its list ``field``, which must be empty."""
    before, after = model.model_dump_json().encode().split(f'"{field}":[]'.encode(), 1)
    written: list[bytes] = []
    for number, entry in enumerate(entries, 1):
        written.append(to_json(entry))
        if number % _WRITTEN == 0:
            yield
    return b'%s"%s":[%s]%s' % (before, field.encode(), b",".join(written), after)
