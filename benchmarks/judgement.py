"""Judges from the requests of a load test whether the limiter treated the clients correctly.

No network and no clock: ``benchmarks/locustfile.py`` records when each request was due, sent and
answered, and how. A client can't know when its request was counted, only that it was between these
times. So the verdict uses only what is certain: a request has *leaked* if it was admitted although
the number that the limit allows had been admitted before, all of them surely within one window. A
refusal is *wrong* if the client surely had not exceeded its limit, and no block that an answer had
announced was in force.

The limiter counts a window in parts, and the oldest part by a share, which can be wrong by the hits
of that part. So a request beyond the limit is shown, and one beyond the limit plus a part is a
fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from benchmarks.harness.report import Column, Report, Table, Target
from ratelimit.model import SUB_WINDOWS

ADMITTED, REFUSED = 200, 429

LATE = 0.05
"""Seconds after which a request counts as sent late, which is a fault of the test."""


@dataclass(frozen=True)
class Rule:
    """A limit: ``rate`` hits in a window of so many seconds."""

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
    """The requests of one client in the order of sending, which is also that of the answers.

    Times are seconds of one clock. ``until`` is the end of the block that an answer announced or 0.
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
        """Count the requests admitted beyond the limit plus ``more``."""
        rate, window = self.kind.rule.rate + more, self.kind.rule.window
        admitted = [i for i, status in enumerate(self.status) if status == ADMITTED]
        return sum(
            self.answered[last] - self.sent[first] < window
            for first, last in zip(admitted, admitted[rate:], strict=False)
        )

    def wrong(self) -> int:
        """Count the refusals without a reason."""
        rate, window = self.kind.rule.rate, self.kind.rule.window
        found = first = 0
        blocked = 0.0
        for i, status in enumerate(self.status):
            while self.answered[first] < self.sent[i] - window:
                first += 1  # surely left the window before this request
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
    """The results of all clients of a class; times are milliseconds.

    ``over`` requests leaked beyond the limit and a part of the window. ``spared`` clients were
    surely above their limit and never refused.
    """

    clients: int
    requests: int
    refused: int
    failed: int
    wrong: int
    leaked: int
    over: int
    late: int
    spared: int
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
    """Return the results of each class, in order of appearance, and the verdict."""
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
    classes = {kind.name: [outcome] for kind, outcome in found.items()}
    counts = Table.measured(
        "requests",
        "by class of clients; late: sent more than 50 ms after they were due; a client that sends"
        " late requests together may exceed its limit",
        {
            "clients": Column("clients", digits=0),
            "requests": Column("requests", digits=0),
            "refused": Column("refused", digits=0),
            "failed": Column("failed", "less", 0),
            "wrong": Column("wrong", "less", 0),
            "leaked": Column("leaked", "less", 0),
            "late": Column("late", "less", 0),
        },
        classes,
    )
    times = Table.measured(
        "milliseconds",
        "from when a request was due to its answer; block: from a client's first request above its"
        " limit to its first refusal",
        {
            "p50": Column("p50", "less"),
            "p99": Column("p99", "less"),
            "p999": Column("p99.9", "less"),
            "block_p50": Column("block, p50", "less"),
            "block_most": Column("block, most", "less"),
        },
        classes,
    )
    visits = Target("visitors' requests", sum(o.requests for o in guests), 1, at_most=False)
    faults = tuple(Target(name, value, 0) for name, value in none.items())
    return Report((counts, times), (*faults, visits))
