"""What a check is."""

from __future__ import annotations

import enum
from dataclasses import dataclass

CLOCK_TOLERANCE = 1.0
"""Seconds by which clocks may differ: a block ends at a whole second."""

SHOWN = 5
"""Names that a sentence lists."""


class State(enum.StrEnum):
    """How something is."""

    OK = "ok"
    BROKEN = "broken"
    UNSURE = "unsure"
    """Nothing speaks against it, but it can't be told from here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, such as ``store``.
        state: how it is.
        finding: what was seen, in a sentence.
        mend: what to do; empty if there is nothing to.
    """

    subject: str
    state: State
    finding: str
    mend: str = ""


def clock_check(subject: str, ahead: float, error: float, why: str) -> Check:
    """Return the check of a clock that is ``ahead`` of ours by seconds, give or take ``error``."""
    off = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the clock here"
    if abs(ahead) <= CLOCK_TOLERANCE + error:
        return Check(subject, State.OK, "agrees with the clock here")
    return Check(
        subject,
        State.BROKEN,
        f"is {off}: {why}",
        "see on both machines whether NTP runs: `timedatectl`, `chronyc tracking`",
    )
