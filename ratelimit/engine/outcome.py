"""The verdict on a request that was checked against one or more limits."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.model import Verdict

DENYLIST = 3
"""A verdict next to those of ``model.Verdict``: refused by the deny list."""

_ALLOW = int(Verdict.ALLOW)  # of C's int type when compiled


class Outcome:
    """The most severe verdict since ``clear()``.

    Attributes:
        verdict: one of ``model.Verdict``, or DENYLIST.
        rule: the limit that refused, or the limit to report for an allowed request.
        wait: seconds until the client may retry, or until its window has passed.
        until: epoch second at which a block ends, by the store's time; 0 without a block.
        told: whether to report ``rule`` for an allowed request, with ``left`` hits left.
        shadow, shadow_rule: the verdict of a limit in shadow mode.
    """

    def __init__(self, rule: Rule) -> None:
        self.verdict = _ALLOW
        self.rule = rule
        self.wait = 0
        self.until = 0
        self.told = False
        self.left = 0
        self.shadow = _ALLOW
        self.shadow_rule = rule

    def clear(self) -> None:
        """Begin the next request: allowed, nothing to report."""
        self.verdict = _ALLOW
        self.told = False
        self.shadow = _ALLOW
