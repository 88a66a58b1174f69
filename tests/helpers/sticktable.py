"""HAProxies that tell their stick tables to a limiter; the caller gives the time."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.limiter.lists import read_lists
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from ratelimit.peers.constants import DataType, KeyType, Message
from ratelimit.peers.counts import Counts, Verdict
from ratelimit.peers.definition import Definition
from ratelimit.peers.updates import Shared, UpdateReader
from ratelimit.steps import finish
from ratelimit.wire.writer import Writer
from tests.helpers.asking import START

if TYPE_CHECKING:
    from ratelimit.peers.sources import Source

STORED = (
    DataType.GPC0,
    DataType.CONN_CUR,
    DataType.HTTP_REQ_CNT,
    DataType.HTTP_REQ_RATE,
    DataType.HTTP_ERR_CNT,
    DataType.BYTES_IN_CNT,
    DataType.BYTES_OUT_CNT,
    DataType.HTTP_FAIL_CNT,
)
EXPIRE = 60
"""Seconds for which HAProxy keeps an unused entry."""

CLIENT = "192.0.2.1"


def table(
    *types: DataType,
    name: str = "rl_default",
    key_type: KeyType = KeyType.IPV6,
    key_size: int = 16,
    period: int = 1000,
    expire: int = EXPIRE,
    gpt: int = 0,
) -> Definition:
    """Return a count table, with all that limits need by default."""
    stored = tuple(sorted(types or STORED))
    periods = {kind: period for kind in stored if kind.name.endswith("_RATE")}
    sizes = {DataType.GPT: gpt} if gpt else {}
    return Definition(1, name, key_type, key_size, stored, periods, sizes, expire * 1000)


def ipv6(client: str) -> bytes:
    """Return the key of a client in a table of type ipv6."""
    address = ipaddress.ip_address(client)
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed


class Fed:
    """A limiter whose limits are fed by stick tables."""

    def __init__(
        self,
        *limits: Limit,
        capacity: int = 1000,
        max_clients: int = 1000,
        sharing: Sharing = Sharing.NONE,
        allow: tuple[str, ...] = (),
    ) -> None:
        self.limiter = Limiter(
            limits or [Limit()],
            max_clients,
            secret=bytes(range(64)),
            sharing=sharing,
            lists=finish(read_lists(allow, (), [], [])),
        )
        self.counts = Counts(self.limiter.engine, capacity, 64)
        self.counts.at(START, START)

    def hits(self, client: str = CLIENT, limit: int = 0) -> int:
        """Return a client's hits in the window."""
        engine = self.limiter.engine
        rule = engine.rules[limit]
        return engine.hits(rule, engine.slot(rule, client.encode()))

    def verdicts(self) -> list[Verdict]:
        """Return the verdicts to tell."""
        return self.counts.take(1000)

    def ends(self) -> list[float]:
        """Return the ends of the verdicts to tell, in seconds after the start; 0 for none."""
        return [(one.until - START) / SECOND if one.until else 0.0 for one in self.verdicts()]


@dataclass
class Entry:
    """An entry of HAProxy: its counter, its last use, its open requests, and when it was made."""

    counter: int
    used: float
    held: int = 0
    made: float = 0.0


class StickTable:
    """The stick table of a process of HAProxy; times are in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pid = 1
        self.entries: dict[str, Entry] = {}

    def touch(self, client: str, hits: int) -> None:
        """Count requests of a client."""
        entry = self.entries.setdefault(client, Entry(0, self.now, made=self.now))
        entry.counter += hits
        entry.used = self.now

    def expire(self) -> None:
        """Purge the entries that were not used for EXPIRE."""
        self.entries = {
            client: entry
            for client, entry in self.entries.items()
            if self.now - entry.used < EXPIRE
        }

    def restart(self) -> None:
        """Begin again with another process and without entries."""
        self.pid += 1
        self.entries = {}


class Line:
    """One session of an HAProxy with one table, without the bytes around the updates."""

    def __init__(
        self,
        fed: Fed,
        definition: Definition | None = None,
        name: str = "edge",
        pid: int = 1,
        synced: bool = True,
    ) -> None:
        self.counts = fed.counts
        self.definition = definition or table()
        self.origin = self.counts.connect(name, pid)
        self.number = self.origin.number
        self.source: Source | None = self.counts.source(self.origin, self.definition)
        self.reader = UpdateReader(self.definition, Shared())
        self.reader.owner = self.source
        if synced:
            self.synced()

    def synced(self, whole: bool = True) -> None:
        self.counts.synced(self.origin, whole)

    def tell(
        self,
        now: float,
        client: str | bytes = CLIENT,
        since: float | None = None,
        rates: tuple[int, int, int] | None = None,
        **counters: int,
    ) -> None:
        """Tell an entry at ``now``, seconds after the start.

        ``since`` is the previous time at which all was read, a millisecond before by default.
        Counters are named as in HAProxy's "store", ``req`` is ``http_req_cnt``. By default, the
        requests of an entry are recent, unless HAProxy teaches it.
        """
        if rates is None:
            rates = (0, counters.get("req", 0) if self.origin.whole else 0, 0)
        since = now - 0.001 if since is None else since
        self.counts.at(START + round(now * SECOND), START + round(since * SECOND))
        names = {"req": "http_req_cnt"}
        values = {DataType[names.get(name, name).upper()]: n for name, n in counters.items()}
        self.read(ipv6(client) if isinstance(client, str) else client, values, rates)
        self.counts.on_update(None, self.definition, self.reader)

    def read(self, key: bytes, values: dict[DataType, int], rates: tuple[int, int, int]) -> None:
        writer = Writer(1000)
        for kind in self.definition.types:
            for value in rates if kind in self.definition.periods else [values.get(kind, 0)]:
                writer.varint(value)
        data = bytes(4) + key + writer.take()
        self.reader.read(int(Message.UPDATE), data, 0, len(data))
