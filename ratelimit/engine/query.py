"""The input of a check."""

from __future__ import annotations

from ratelimit.engine.layout import UNTOLD
from ratelimit.engine.rule import Rule


class Query:
    """Hits of one client for one limit; protocols reuse these objects.

    Attributes:
        rule: the limit.
        hits: number of hits, at most 2^27.
        kind, hi, lo: the key, as in ``engine.key``.
        data, text, text_size: position of a text key: ``text_size`` bytes of ``data`` from ``text``
            on; no bytes for a binary address.
        client_hi, client_lo: the key, masked with the limit's prefix; see ``Engine.aim()``.
        base, tag: the place of the client in the table, from ``Table.aim()``.
        via: a number for the client on whose behalf this one claims to send, 0 for none.
        left: hits left according to another answer to the same request, or UNTOLD.
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
        self.client_hi = 0
        self.client_lo = 0
        self.base = 0
        self.tag = 0
        self.via = 0
        self.left = UNTOLD
