"""What a protocol asks the engine about one client."""

from __future__ import annotations

from ratelimit.engine.rule import Rule

UNTOLD = 1 << 62
"""``Query.left`` if no other answer has told the client what is left."""

_UNTOLD = UNTOLD  # of C's type when compiled


class Query:
    """One client's hits, to be counted against one limit; protocols fill these again and again.

    Attributes:
        rule: the limit.
        hits: how many hits to count, at most 2^27.
        kind, hi, lo: the key, as ``engine.key`` has it.
        data, text, text_size: where a key that came as text is written: ``text_size`` bytes of
            ``data`` from ``text`` on, no bytes for a binary address.
        via: a number for the client that this one says it speaks for, 0 for none.
        left: how many hits another answer for the same request has told are left.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.hits = 0
        self.kind = 0
        self.hi = 0
        self.lo = 0
        self.data = b""
        self.text = 0
        self.text_size = 0
        self.via = 0
        self.left = _UNTOLD
