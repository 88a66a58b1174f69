"""The HAProxies that tell counts, their tables, and the limits that a table feeds."""

from __future__ import annotations

from array import array

from ratelimit.engine.query import Query
from ratelimit.engine.rule import Rule
from ratelimit.notation import MILLISECOND
from ratelimit.peers.constants import PLACE, DataType, KeyType
from ratelimit.peers.definition import Definition

# Of C's int type when compiled.
_IPV6 = int(KeyType.IPV6)
_REQUESTS = 0  # indices of counters
_ERRORS = 1

COUNTERS = {
    "requests": DataType.HTTP_REQ_CNT,
    "errors": DataType.HTTP_ERR_CNT,
    "failures": DataType.HTTP_FAIL_CNT,
    "refusals": DataType.GPC0,
    "bytes_in": DataType.BYTES_IN_CNT,
    "bytes_out": DataType.BYTES_OUT_CNT,
}
"""The data types that are counted, by ``Limit.counts``; in the order of ``baselines``."""


class Origin:
    """One HAProxy, by the name that it has among its peers.

    ``counting`` is whether its increments count here; otherwise another agent counts them, and
    here they only become baselines.
    """

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.pid = 0
        self.number = 0  # of the session
        self.connected = False
        self.counting = True
        # From this epoch nanosecond on, no former process overwrites its entries.
        self.settled = 0
        # It has told all entries in this session; ``whole`` if it had all of them itself.
        self.synced = False
        self.whole = False
        # Entries without an update since this millisecond are gone.
        self.cleared = False
        self.cleared_at = 0
        self.asked = 0


class Feed:
    """What one limit takes of a table.

    ``at_rate`` is whether a client that has its whole rate is refused before it exceeds it. A
    refused request is no error, so such a client would never exceed a limit of errors, and no
    block would begin.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.query = Query(rule)
        self.counter = list(COUNTERS).index(rule.limit.counts)
        self.open = rule.limit.open
        counted = rule.limit.count_refused and self.counter == _REQUESTS
        self.subtract = self.counter <= _ERRORS and not counted
        self.at_rate = self.counter == _REQUESTS or not rule.limit.block


class Source:
    """A table of an HAProxy in one session, which feeds limits; the owner of its updates.

    ``wrong`` is true if a key had bits beyond the prefix of a limit: such keys are not counted.
    """

    def __init__(
        self,
        origin: Origin,
        definition: Definition,
        ident: int,
        siblings: list[Source],
    ) -> None:
        self.origin = origin
        self.definition = definition
        self.name = definition.name
        self.ident = ident
        self.number = origin.number
        self.expire = definition.expire
        self.feeds: list[Feed] = []
        self.siblings = siblings
        self.key_type = int(definition.key_type)
        self.opens = DataType.CONN_CUR in definition.types
        self.clocks = DataType.GPT in definition.types and DataType.HTTP_REQ_CNT in definition.types
        self.wrong = False
        self.fetches = False
        places = array("i")
        rates = array("i")
        periods = array("Q")
        for kind in COUNTERS.values():
            rate = DataType(kind + 1)
            places.append(PLACE[kind] if kind in definition.types else -1)
            rates.append(PLACE[rate] if rate in definition.types else -1)
            periods.append(definition.periods.get(rate, 0) * MILLISECOND)
        self.places = memoryview(places)
        self.rates = memoryview(rates)
        self.periods = memoryview(periods)

    def feed(self, feeds: list[Feed]) -> None:
        """Feed limits."""
        self.feeds = feeds
        self.fetches = self.key_type == _IPV6 and len(feeds) > 0
