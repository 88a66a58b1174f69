"""How many clients of which class a load test has, for how long, and what is counted of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.judgement import Rule

DEFAULT = Rule(rate=100, window=1.0)
"""The limit of an empty configuration."""


@dataclass(frozen=True)
class Plan:
    """A load test: seconds of ramp, plateau and decline, and the clients of each class.

    A swarm of 2,000 addresses at the default limit would be 200,000 requests a second, which no
    Python program sends. So it comes to the login form, whose limit is ``login``; ``block`` is how
    long it blocks, in seconds, and so does ``default``.
    """

    ramp: int
    plateau: int
    decline: int
    login: Rule
    block: tuple[int, ...]
    clients: Mapping[str, int]

    @property
    def config(self) -> str:
        """Return the limits, as the agent's configuration has them."""
        ladder = [f"{seconds}s" for seconds in self.block]
        # Half of those who log in are attackers. The fuse takes that for a limit that is wrong.
        return (
            f"[limits.default]\nblock = {ladder}\n[limits.login]\nrate = {self.login.rate}\n"
            f'window = "{self.login.window * 1000:.0f}ms"\nblock = {ladder}\nfuse = 0\n'
        )

    def users(self, seconds: float) -> int | None:
        """Return how many clients there are that long after the start, None at the end."""
        most = sum(self.clients.values())
        if seconds < self.ramp:
            return max(int(most * (int(seconds) + 1) / self.ramp), 1)
        seconds -= self.ramp + self.plateau
        if seconds < 0:
            return most
        if seconds < self.decline:
            return max(int(most * (1 - (int(seconds) + 1) / self.decline)), 1)
        return None


FULL = Plan(
    ramp=22,  # locust starts a hundred clients a second, not more
    plateau=30,
    decline=8,
    login=Rule(rate=10, window=10.0),
    block=(10, 60, 600, 3600),
    clients={
        "Visitor": 100,
        "Heavy": 4,
        "Attacker": 2,
        "Flooder": 1,
        "JustAbove": 1000,
        "JustBelow": 1000,
        "Returning": 5,
    },
)

QUICK = Plan(
    ramp=1,
    plateau=4,
    decline=1,
    login=Rule(rate=10, window=1.0),
    block=(1, 60),
    clients={
        "Visitor": 20,
        "Heavy": 4,
        "Attacker": 1,
        "Flooder": 1,
        "JustAbove": 20,
        "JustBelow": 20,
        "Returning": 2,
    },
)
