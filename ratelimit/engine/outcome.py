"""The verdict on a request that met one limit or several."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.model import Verdict

DENYLIST = 3
"""A verdict beside those of ``model.Verdict``: refused by the deny list."""

_ALLOW = int(Verdict.ALLOW)  # of C's int type when compiled


class Outcome:
    """The most severe verdict of all that the engine added since ``clear()``.

    Attributes:
        verdict: one of ``model.Verdict``, or DENYLIST.
        rule: the limit that refused, or that an allowed request is told of.
        wait: seconds until the client may come again, or until its window has passed.
        until: epoch second at which a block ends, by the time of the store; 0 without a block.
        told: an allowed request is to be told of ``rule``, of which ``left`` hits are left.
        shadow, shadow_rule: the verdict that a limit in shadow would have given.
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
        """Begin the next request: allowed, and nothing to tell."""
        self.verdict = _ALLOW
        self.told = False
        self.shadow = _ALLOW
