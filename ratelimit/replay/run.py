"""Replays an access log against a limit, with the times of the log.

The requests pass through a ``Limiter``. A second limiter that never refuses counts all hits of each
client, for the peak rates.

A log is written when requests end, so its times are slightly out of order. The replay holds
``_HELD`` requests back and sorts them; a request that comes later than that is ignored and counted.
Times in whole seconds are spread evenly over their second, in the log's order; otherwise they would
look like a burst.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from ratelimit.limiter.keys import counted_key
from ratelimit.limiter.limiter import Limiter
from ratelimit.model import MAX_RATE, Verdict
from ratelimit.notation import SECOND
from ratelimit.replay.accesslog import printable
from ratelimit.replay.report import Offender, ReplayReport
from ratelimit.steps import finish

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimit.config import Config
    from ratelimit.model import Block, Limit
    from ratelimit.replay.accesslog import AccessLog

_HELD = 1 << 16
_MAX_OFFENDERS = 100_000
_KEYS_KNOWN = 1 << 16


def run(
    log: AccessLog,
    config: Config,
    name: str = "default",
    rows: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> ReplayReport:
    """Replay a log against the configured limit ``name``.

    ``progress`` is called from time to time. Raises RatelimitError.
    """
    replay = _Replay(log, config, name)
    for requests in log:
        replay.take(requests)
        progress()
    return replay.finish(rows)


def _limiter(config: Config, limit: Limit) -> Limiter:
    # A replay shows the effect of the limit, so that shadow mode is off.
    limit = replace(limit, shadow=False, headers=False)
    return Limiter([limit], config.agent.max_clients, lists=config.read_lists())


class _Replay:
    def __init__(self, log: AccessLog, config: Config, name: str) -> None:
        limit = next(limit for limit in config.limits_in_force() if limit.name == name)
        self._log = log
        self._report = ReplayReport(log.name, log.format.name, log.format.grain, limit)
        self._limiter = _limiter(config, limit)
        self._limiter.on_block.append(self._block)
        self._made: Block | None = None
        demand = replace(limit, rate=MAX_RATE, block=(), strict=False, headers=False)
        self._demand = Limiter([demand], config.agent.max_clients)
        self._key = lru_cache(_KEYS_KNOWN)(self._network)
        self._held: list[tuple[int, bytes]] = []
        self._offenders: dict[str, Offender] = {}
        self._now = 0
        self._ticked = 0

    def take(self, requests: list[tuple[int, bytes]]) -> None:
        """Hold more requests back; replay those that were held long enough."""
        self._held += requests
        if len(self._held) < 2 * _HELD:
            return
        self._held.sort(key=itemgetter(0))
        cut = len(self._held) - _HELD
        if self._report.grain == SECOND:
            # Spread a second as a whole, unless it has more requests than are held.
            while cut > 0 and self._held[cut - 1][0] == self._held[cut][0]:
                cut -= 1
            cut = cut or len(self._held)
        self._pass(self._held[:cut])
        del self._held[:cut]

    def finish(self, rows: int) -> ReplayReport:
        """Replay the remaining requests; return the report."""
        self._held.sort(key=itemgetter(0))
        self._pass(self._held)
        report, log, table = self._report, self._log, self._demand.engine.table
        report.lines, report.zone, report.invalid = log.lines, log.zone, log.invalid
        report.unread, report.first_unread = log.unread, log.first_unread
        report.clients, report.clients_exact = table.entries, not table.evictions
        report.blocks, report.last = self._limiter.blocks, self._now
        report.offending = len(self._offenders)
        worst = sorted(self._offenders.values(), key=lambda o: (-o.refused, o.first, o.key))
        report.offenders = worst[:rows]
        return report

    def _pass(self, requests: list[tuple[int, bytes]]) -> None:
        past = self._now - self._now % self._report.grain
        kept = [request for request in requests if request[0] >= past]
        self._report.late += len(requests) - len(kept)
        if self._report.grain == SECOND:
            kept = _spread(kept)
        self._report.requests += len(kept)
        if kept and not self._report.first:
            self._report.first = kept[0][0]
        for now, client in kept:
            self._ask(max(now, self._now), client)

    def _ask(self, now: int, client: bytes) -> None:
        if now - self._ticked >= SECOND:
            self._limiter.tick(now)
            finish(self._limiter.tidy())
            self._ticked = now
        engine = self._limiter.engine
        if now != self._now:
            self._now = now
            engine.at(now)
            self._demand.engine.at(now)
        verdict = engine.ask(engine.rules[0], client, 1)
        counter = self._demand.engine
        rule = counter.rules[0]
        rule.at(now)
        demand = counter.table.count(counter.slot(rule, client), rule, 1)
        if verdict != Verdict.ALLOW:
            self._refused(client, demand, verdict == Verdict.THROTTLE)

    def _refused(self, client: bytes, demand: int, throttled: bool) -> None:
        made, self._made = self._made, None
        if throttled:
            self._report.throttled += 1
        else:
            self._report.blocked += 1
        key = self._key(client)
        offender = self._offenders.get(key)
        if offender is None:
            if len(self._offenders) >= _MAX_OFFENDERS:
                self._report.nameless += 1
                return
            offender = self._offenders[key] = Offender(key, self._now)
        offender.last = self._now
        if throttled:
            offender.throttled += 1
        else:
            offender.blocked += 1
        if made is not None:
            offender.blocks += 1
            offender.blocked_for += made.until - made.since
        offender.peak = max(offender.peak, demand)

    def _network(self, client: bytes) -> str:
        """Return the key under which this client is counted, as the blocklist writes it."""
        return counted_key(printable(client), self._report.limit)

    def _block(self, block: Block) -> None:
        self._made = block


def _spread(requests: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Spread sorted requests of whole seconds evenly over their second."""
    spread = []
    for second, group in groupby(requests, key=itemgetter(0)):
        clients = [client for _, client in group]
        spread += [
            (second + place * SECOND // len(clients), client)
            for place, client in enumerate(clients)
        ]
    return spread
