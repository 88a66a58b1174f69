"""A HAProxy for tests of the agent's side: the other end of a session, without sockets.

It announces tables, tells counts, and keeps what it is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit.limiter.limiter import Limiter
from ratelimit.peers.constants import PLACE, DataType, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.hub import Hub
from ratelimit.peers.link import CAPS, LIMITS
from ratelimit.peers.listener import Listener
from ratelimit.peers.session import Session
from ratelimit.peers.updates import UpdateReader
from ratelimit.steps import finish

GPT = PLACE[DataType.GPT]
HOUR = 3_600_000
ROUNDS = 50


def counts(
    name: str = "rl_default",
    types: Sequence[DataType] = (),
    period: int = 1_000,
    number: int = 1,
) -> Definition:
    """Return a count table of addresses."""
    kinds = {DataType.HTTP_REQ_CNT, DataType.HTTP_REQ_RATE, *types}
    return Definition(
        number,
        name,
        KeyType.IPV6,
        16,
        tuple(sorted(kinds)),
        {DataType.HTTP_REQ_RATE: period},
        {DataType.GPT: 1} if DataType.GPT in kinds else {},
        120_000,
    )


def verdicts(
    name: str = "rlv_default", key: KeyType = KeyType.IPV6, size: int = 16, tags: int = 3
) -> Definition:
    """Return a table of verdicts."""
    return Definition(2, name, key, size, (DataType.GPT,), {}, {DataType.GPT: tags}, HOUR)


def limits(tags: int = 4) -> Definition:
    """Return the table of the limits."""
    return Definition(
        3, LIMITS, KeyType.STRING, 65, (DataType.GPT,), {}, {DataType.GPT: tags}, HOUR
    )


def caps(number: int) -> Definition:
    """Return the table of the caps."""
    return Definition(
        number, CAPS, KeyType.STRING, 65, (DataType.GPT,), {}, {DataType.GPT: 1}, 3_000
    )


TABLES = (counts(), verdicts(), limits())


class FakeHaproxy(Listener):
    """One HAProxy that is connected to the hub; ``entries`` are what it was told, by table and key.

    ``told`` counts updates. An entry has its values and the milliseconds until it expires.
    """

    def __init__(
        self,
        hub: Hub,
        now: int,
        name: str = "haproxy",
        pid: int = 1,
        tables: Sequence[Definition] = TABLES,
        address: str = "unix",
        agent: str = "agent",
    ) -> None:
        self.hub = hub
        self.entries: dict[str, dict[bytes, list[int]]] = {}
        self.told = 0
        self.finished = 0
        self.woken = 0
        self._reply = b""
        self.tables = tables
        self.ours = Session(hub, hub.name, now)
        self.link = hub.begin(self.ours, address, self._wake)
        self.session = Session(self, name, now, agent, pid)

    def _wake(self) -> None:
        self.woken += 1

    def on_table(self, session: Session, definition: Definition) -> object:
        self.entries.setdefault(definition.name, {})
        return True

    def on_update(self, session: Session, definition: Definition, update: UpdateReader) -> None:
        self.told += 1
        width = definition.sizes[DataType.GPT]
        values = [update.value(GPT + i) for i in range(width)]
        self.entries[definition.name][update.key()] = [*values, update.expiry]

    def on_synced(self, session: Session, whole: bool) -> None:
        self.finished += 1

    def connect(self, now: int, finished: bool = True) -> None:
        """Shake hands, announce the tables, and if ``finished`` tell that all entries were told."""
        self.pump(now)
        for table in self.tables:
            self.session.define(table)
        if finished:
            self.session.finished()
        self.pump(now)

    def pump(self, now: int) -> None:
        """Pass on what both sides have to say, until nothing is left."""
        for _ in range(ROUNDS):
            sent = self._reply + self.session.take()
            self.hub.begin_read(now, now)
            answer = self.ours.receive_data(sent, now) if sent else b""
            finish(self.hub.rebuild())
            self.link.fill()
            answer += self.ours.take()
            if not sent and not answer:
                return
            self._reply = self.session.receive_data(answer, now)
        raise AssertionError("the sessions do not come to rest")

    def verdict(self, key: bytes, table: str = "rlv_default") -> list[int]:
        """Return end, milliseconds too late, kind and expiry of a verdict; nothing without one."""
        return self.entries.get(table, {}).get(key, [])


def hub_of(limiter: Limiter, now: int, **options: object) -> Hub:
    """Return a hub whose clock is that of this machine."""
    hub = Hub(limiter, "agent", capacity=1_000, **options)  # type: ignore[arg-type]
    hub.tick(now, 0)
    return hub


def ipv4(text: str) -> bytes:
    """Return the key of an IPv4 address in a table of IPv6 addresses."""
    return bytes(10) + b"\xff\xff" + bytes(map(int, text.split(".")))
