"""The result of a check."""

from __future__ import annotations

import enum
from dataclasses import dataclass

CLOCK_TOLERANCE = 1.0
"""Seconds by which clocks may differ: a block ends at a whole second."""

SHOWN = 5
"""Names that a sentence lists at most."""


class State(enum.StrEnum):
    """The result of a check in one word."""

    OK = "ok"
    BROKEN = "broken"
    UNSURE = "unsure"
    """No fault was found, but the check was not complete."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        subject: part of the installation, such as ``store``.
        state: the result.
        finding: what was found, in a sentence.
        fix: how to fix it; empty if nothing is wrong.
    """

    subject: str
    state: State
    finding: str
    fix: str = ""


def ok(subject: str, finding: str) -> Check:
    """Return a check that found no fault."""
    return Check(subject, State.OK, finding)


def broken(subject: str, finding: str, fix: str) -> Check:
    """Return a check that found a fault."""
    return Check(subject, State.BROKEN, finding, fix)


def unsure(subject: str, finding: str, fix: str = "") -> Check:
    """Return a check that found no fault but may have missed one."""
    return Check(subject, State.UNSURE, finding, fix)


def clock_check(subject: str, ahead: float, error: float, why: str) -> Check:
    """Return the check of a clock that is ``ahead`` seconds ahead of the local one, within
    ``error``.
    """
    off = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the local clock"
    if abs(ahead) <= CLOCK_TOLERANCE + error:
        return ok(subject, "agrees with the local clock")
    return broken(
        subject,
        f"is {off}: {why}",
        "check that NTP runs on both machines: `timedatectl`, `chronyc tracking`",
    )
