"""What the clients of a load test saw, and whether the limiter did right by them.

No network and no clock: ``benchmarks/locustfile.py`` writes down when each request was due, sent
and answered, and how. A client can't know when its request was counted, only that it was between
these times. So it is judged by what is certain: a request has *leaked* if it was admitted though as
many as the limit allows had been, all of them surely inside one window; a refusal is *wrong* if the
client surely had not exceeded its limit and no block that it had been told of was in force.

The limiter counts a window in parts and the oldest one by a share, which may be wrong by what that
part holds. So a request beyond the limit is shown, and one beyond the limit and a part of it is a
fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from benchmarks.harness import Target
from benchmarks.report import Column, Report, Row, Table
from ratelimit.model import SUB_WINDOWS

ADMITTED, REFUSED = 200, 429

LATE = 0.05
"""Seconds after which a request that was due counts as sent late, which is the test's own fault."""


@dataclass(frozen=True)
class Rule:
    """A limit: so many hits in a window of so many seconds."""

    rate: int
    window: float

    @property
    def part(self) -> int:
        """Hits of a client at the limit in one part of the window, rounded up."""
        return -(-self.rate // SUB_WINDOWS)


@dataclass(frozen=True)
class Kind:
    """A class of clients. ``lawful`` ones never exceed the limit; a ``guest`` is a person."""

    name: str
    rule: Rule
    lawful: bool = False
    guest: bool = False


@dataclass
class Account:
    """The requests of one client in the order they were sent, which their answers keep.

    Times are seconds of one clock. ``until`` is when a block that an answer told of ends, else 0.
    """

    kind: Kind
    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    until: list[float] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return len(self.sent) - len(self.answered)

    def send(self, due: float, now: float) -> None:
        self.due.append(due)
        self.sent.append(now)

    def answer(self, status: int, now: float, until: float = 0.0) -> float:
        """Take the answer to the oldest request that has none; return the seconds it took."""
        took = now - self.due[len(self.answered)]
        self.answered.append(now)
        self.status.append(status)
        self.until.append(until)
        return took

    def took(self) -> list[float]:
        """Return the seconds from when each request was due to its answer."""
        return [end - due for end, due in zip(self.answered, self.due, strict=False)]

    def late(self) -> list[float]:
        """Return how many seconds after it was due each request was sent."""
        return [sent - due for sent, due in zip(self.sent, self.due, strict=True)]

    def leaked(self, more: int = 0) -> int:
        """Count the requests admitted beyond the limit and so many ``more``."""
        rate, window = self.kind.rule.rate + more, self.kind.rule.window
        admitted = [i for i, status in enumerate(self.status) if status == ADMITTED]
        return sum(
            self.answered[last] - self.sent[first] < window
            for first, last in zip(admitted, admitted[rate:], strict=False)
        )

    def wrong(self) -> int:
        """Count the refusals for which there was no reason."""
        rate, window = self.kind.rule.rate, self.kind.rule.window
        found = first = 0
        blocked = 0.0
        for i, status in enumerate(self.status):
            while self.answered[first] < self.sent[i] - window:
                first += 1  # surely left the window before this one came
            if status == REFUSED:
                found += blocked < self.sent[i] and i + 1 - first <= rate
            blocked = max(blocked, self.until[i])
        return found

    def to_block(self) -> float | None:
        """Return the seconds from the first request beyond the limit to the first refusal.

        None if the client did not exceed its limit for certain, infinity if nothing was refused.
        """
        rate, window = self.kind.rule.rate, self.kind.rule.window
        pairs = zip(self.sent, self.sent[rate : len(self.answered)], strict=False)
        excess = next((late for early, late in pairs if late - early < window), None)
        if excess is None:
            return None
        refusals = (
            answered
            for answered, status in zip(self.answered, self.status, strict=True)
            if status == REFUSED
        )
        return max(next(refusals, math.inf) - excess, 0.0)


def _percentile(values: list[float], share: float) -> float:
    """Return a percentile of sorted values."""
    return values[min(int(len(values) * share), len(values) - 1)]


@dataclass(frozen=True)
class Outcome:
    """What became of all clients of a class; times are milliseconds."""

    clients: int
    requests: int
    refused: int
    failed: int
    wrong: int
    leaked: int
    over: int
    """Those that leaked although a part of the window more had been admitted."""
    late: int
    spared: int
    """Clients that were above their limit for certain, and never refused."""
    p50: float
    p99: float
    p999: float
    block_p50: float | None
    block_most: float | None

    @classmethod
    def of(cls, accounts: list[Account]) -> Outcome:
        took = sorted(1000 * time for account in accounts for time in account.took())
        status = [status for account in accounts for status in account.status]
        above = [1000 * time for a in accounts if (time := a.to_block()) is not None]
        blocked = sorted(time for time in above if time < math.inf)
        return cls(
            clients=len(accounts),
            requests=len(status),
            refused=status.count(REFUSED),
            failed=len(status) - status.count(REFUSED) - status.count(ADMITTED),
            wrong=sum(account.wrong() for account in accounts),
            leaked=sum(account.leaked() for account in accounts),
            over=sum(account.leaked(account.kind.rule.part) for account in accounts),
            late=sum(late > LATE for account in accounts for late in account.late()),
            spared=len(above) - len(blocked),
            p50=_percentile(took, 0.5),
            p99=_percentile(took, 0.99),
            p999=_percentile(took, 0.999),
            block_p50=_percentile(blocked, 0.5) if blocked else None,
            block_most=blocked[-1] if blocked else None,
        )


def judge(accounts: list[Account]) -> Report:
    """Return what became of each class, in the order in which the classes came, and the verdict."""
    by_kind: dict[Kind, list[Account]] = {}
    for account in accounts:
        if account.answered:
            by_kind.setdefault(account.kind, []).append(account)
    found = {kind: Outcome.of(some) for kind, some in by_kind.items()}
    everyone = list(found.values())
    guests = [outcome for kind, outcome in found.items() if kind.guest]
    none = {
        "visitors refused": sum(o.refused for o in guests),
        "visitors' requests that failed": sum(o.failed for o in guests),
        "refusals without a reason": sum(o.wrong for o in everyone),
        "clients above their limit never refused": sum(o.spared for o in everyone),
        "requests leaked beyond a part of the window": sum(o.over for o in everyone),
    }
    return Report(
        (
            Table(
                "requests",
                "by class of clients; late: sent more than 50 ms after they were due; a client that"
                " catches up may exceed its limit",
                (
                    Column("clients", digits=0),
                    Column("requests", digits=0),
                    Column("refused", digits=0),
                    Column("failed", "less", 0),
                    Column("wrong", "less", 0),
                    Column("leaked", "less", 0),
                    Column("late", "less", 0),
                ),
                tuple(
                    Row.of(
                        kind.name,
                        o.clients,
                        o.requests,
                        o.refused,
                        o.failed,
                        o.wrong,
                        o.leaked,
                        o.late,
                    )
                    for kind, o in found.items()
                ),
            ),
            Table(
                "milliseconds",
                "from when a request was due to its answer; block: from a client's first request"
                " above its limit to its first refusal",
                (
                    Column("p50", "less"),
                    Column("p99", "less"),
                    Column("p99.9", "less"),
                    Column("block, p50", "less"),
                    Column("block, most", "less"),
                ),
                tuple(
                    Row.of(kind.name, o.p50, o.p99, o.p999, o.block_p50, o.block_most)
                    for kind, o in found.items()
                ),
            ),
        ),
        (
            *(Target(name, value, 0, at_most=True) for name, value in none.items()),
            Target("visitors' requests", sum(o.requests for o in guests), 1, at_most=False),
        ),
    )
