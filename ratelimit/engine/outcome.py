"""The verdict on a request that was checked against one or more limits."""

from __future__ import annotations

from ratelimit.engine.rule import Rule
from ratelimit.model import Verdict

_ALLOW = int(Verdict.ALLOW)  # of C's int type when compiled


class Outcome:
    """The most severe verdict since ``clear()``.

    Attributes:
        verdict: one of ``model.Verdict``, or ``layout.DENYLIST``.
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

    def allow(self, rule: Rule, left: int, known: int) -> None:
        """Report the hits left of an allowed query, unless a tighter limit is reported.

        ``known`` are the hits left that another group of the same request may have reported.
        """
        reports = self.verdict == _ALLOW and not rule.shadow and left < known
        if reports and (not self.told or left < self.left):
            self.told = True
            self.left = left
            self.rule = rule
            self.wait = rule.refill

    def refuse(self, rule: Rule, verdict: int, wait: int, until: int, sure: bool) -> None:
        """Take the verdict of a limit if it is the most severe so far.

        ``sure`` is true if a list or an operator refused, which applies in shadow mode too.
        """
        if rule.shadow and not sure:
            if verdict > self.shadow:
                self.shadow = verdict
                self.shadow_rule = rule
        elif verdict > self.verdict or (verdict == self.verdict and wait > self.wait):
            self.verdict = verdict
            self.rule = rule
            self.wait = wait
            self.until = until
