"""What is asked and answered, as typed and checked models; OpenAPI is generated from them.

Times are epoch seconds by the time that all nodes go by, durations are text as in the
configuration.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from ratelimit.haproxy.api import EdgeEntry, Report
from ratelimit.limiter.typed import MAX_GIVEN
from ratelimit.node.top import MAX_BUSIEST, BusyClient
from ratelimit.notation import DAY, SECOND, parse_duration

MAX_TTL = 30 * DAY // SECOND


def _ttl(value: object) -> int:
    if isinstance(value, str):
        nanoseconds = parse_duration(value)
        if nanoseconds % SECOND:
            raise ValueError("must be whole seconds")
        value = nanoseconds // SECOND
    if type(value) is not int:
        raise ValueError('must be a duration such as "10m", or whole seconds')
    if not 1 <= value <= MAX_TTL:
        raise ValueError("must be from 1s to 30d")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable, without line breaks")
    return text


Ttl = Annotated[
    int,
    BeforeValidator(_ttl),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^[0-9]{1,12}(ms|s|m|h|d)$"},
                {"type": "integer", "minimum": 1, "maximum": MAX_TTL},
            ],
            "examples": ["10m", 600],
            "description": "How long: 1 s to 30 days.",
        }
    ),
]


Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_GIVEN),
    Field(
        description="An address, a network, any other string that is counted, or a key as shown.",
        examples=["192.0.2.7", "2001:db8::/64"],
    ),
]


class Asked(BaseModel):
    """What somebody sends; anything unknown in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class NewBlock(Asked):
    """A block to be made by hand."""

    model_config = ConfigDict(strict=True)

    key: Key
    ttl: Ttl
    reason: Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)] = ""
    force: bool = Field(
        False, description="Also a very wide network, or a string that is nearly an address."
    )


class GivenKey(Asked):
    """A key in any form."""

    model_config = ConfigDict(strict=True)

    key: Key


class Nothing(Asked):
    """An empty object, for what needs no arguments."""


class BlocksQuery(Asked):
    """Which part of the blocklist."""

    limit: int = Field(100, ge=1, le=1000, description="Entries of a page.")
    cursor: str = Field("", max_length=2048, description="`next` of the page before.")
    q: str = Field(
        "",
        max_length=2048,
        description="Only what has this in its key, limit, reason or by, or is of this string.",
    )
    ended: bool = Field(
        False, description="Also those that have ended and whose strikes still count."
    )


class ClientsQuery(Asked):
    """Which of the busiest clients."""

    n: int = Field(20, ge=1, le=MAX_BUSIEST, description="How many.")
    sort: Literal["rate", "share", "blocked"] = Field(
        "rate",
        description="By hits a second, by hits to the limit, or the blocked by the end of it.",
    )


class NoQuery(Asked):
    """No parameters."""


class BlockEntry(Answer):
    """An entry of the blocklist; `limit` is `*` for one that a person made."""

    key: str = Field(
        description="An address or a network; of another string its hash, behind a hint, unless "
        "the limit says `secret = false`. Any key that is shown can be given back."
    )
    limit: str
    reason: str
    strikes: int = Field(description="Blocks that are not forgotten yet, this one included.")
    since: int
    until: int
    by: str = Field(description="The person who made it; empty for a limit's own.")
    node: str
    active: bool = Field(description="It has not ended.")
    shadow: bool = Field(description="The limit only watches: this refuses nothing.")


class EdgeAnswer(Answer):
    """Whether a HAProxy beside the node has taken a change; `problem` says why not."""

    socket: str
    ok: bool
    problem: str


class MadeBlock(BlockEntry):
    """The block that was made."""

    note: str = Field(
        description="What was corrected in the key, and how the block differs from what the limits "
        "count, if it does."
    )
    edges: list[EdgeAnswer] = Field(
        description="The HAProxy processes beside the node. One that has not taken it asks the "
        "agent, which refuses."
    )


class Lifted(Answer):
    """What was lifted, while some HAProxy beside the node may go on refusing."""

    edges: list[EdgeAnswer]


class ShownKey(Answer):
    """A key as it is shown, and what was corrected in it."""

    key: str
    note: str


class BlocksPage(Answer):
    """A part of the blocklist, in the order of limit and key."""

    blocks: list[BlockEntry]
    next: str = Field(description="`cursor` of the next page; empty on the last.")


class KeyBlocks(Answer):
    """All entries of a key, those included that have ended and whose strikes still count."""

    key: str
    blocks: list[BlockEntry]


class BusyClients(Answer):
    """The busiest clients of this node."""

    clients: list[BusyClient]


class LimitOf(Answer):
    """How a client stands with a limit, on this node."""

    limit: str
    key: str = Field(description="What the limit counts it as.")
    hits: int
    rate: int
    window: str
    remaining: int
    until: int = Field(description="When its block ends or ended; 0 without one.")
    strikes: int
    block: BlockEntry | None


class Explained(Answer):
    """Everything known about a key."""

    key: str
    note: str
    lists: str = Field(description="`allow` or `deny` if a list has it.")
    limits: list[LimitOf]
    by_hand: list[BlockEntry] = Field(description="Blocks by hand of it or a network it is in.")
    edge: list[EdgeEntry] = Field(description="What HAProxy's edge tables hold.")


class LimitInForce(Answer):
    """A limit as the configuration has it."""

    name: str
    rate: int
    window: str
    block: list[str]
    forget: str
    strict: bool
    shadow: bool = Field(description="It only watches.")
    headers: bool
    fuse: float
    ipv4_prefix: int
    ipv6_prefix: int
    secret: bool = Field(description="Keys that are not addresses are shown as hashes.")


class Limits(Answer):
    """The limits in force."""

    limits: list[LimitInForce]


class LimitCounters(Answer):
    """What a limit has decided on this node since the start; one in shadow refuses nobody."""

    name: str
    allowed: int
    throttled: int
    blocked: int
    denied: int = Field(description="By the deny list.")
    fuse_blown: bool = Field(description="It would have blocked too many, and only throttles.")


class TableFill(Answer):
    """The table of clients."""

    capacity: int
    entries: int
    evictions: int
    bytes: int


class StoreState(Answer):
    """The store, as this node sees it."""

    kind: str
    up: bool
    problem: str
    outages: int
    unwritten: int = Field(description="Changes of the blocklist that wait for it.")
    dropped: int = Field(description="Changes that found no room to wait.")
    sync_failures: int
    late: int = Field(description="Checks that were answered without it, for it was too slow.")
    journal: str = Field(description="The file in which this node keeps blocks and lifts.")
    journal_problem: str = Field(description="Why that file can't be written, or is not there.")
    unsigned: int = Field(description="Entries without a valid signature, which were ignored.")


class BlocklistState(Answer):
    """The blocklist."""

    entries: int = Field(description="With those that have ended and whose strikes still count.")
    made: int = Field(description="By this node since the start.")
    refused: int = Field(description="Clients throttled instead, since the list was full.")


class EdgeState(Answer):
    """What HAProxy was told."""

    faults: int = Field(description="Changes that an HAProxy did not take at once.")
    dropped: int = Field(description="Of these, those that found no room to wait.")
    corrected: int = Field(
        description="Entries of edge tables that were not as the blocklist says, and are now."
    )


class EventState(Answer):
    """Server-sent events."""

    listeners: int
    dropped: int


class ReloadState(Answer):
    """How a reload went."""

    ok: bool
    at: float
    problems: list[str]
    restart: list[str] = Field(
        description="Fields that differ from what runs and are taken at the next start only."
    )


class LogState(Answer):
    """The log."""

    dropped: int = Field(description="Lines that could not be written and found no room to wait.")
    waiting: int = Field(description="Bytes that are not written yet.")
    problem: str = Field(description="Why nothing can be written at present.")


class TaskState(Answer):
    """Something that the node does next to the answers."""

    name: str
    failures: int = Field(description="Since the start; after each it was started again.")
    problem: str = Field(description="Why it failed, if that was within the last minute.")
    failed_at: float = Field(description="When it failed last; 0 if it never did.")


class Unchecked(Answer):
    """Why questions of HAProxy's could not be checked; `message` is a SPOE message's name."""

    problem: str
    message: str


class Forwarder(Answer):
    """A peer that is in no list of trusted proxies and speaks for many clients."""

    key: str = Field(description="Its address, which is counted as one client.")
    since: int


class Status(Answer):
    """This node."""

    version: str
    compiled: bool
    node: str
    ready: bool
    degraded: bool = Field(description="Requests are answered, by this node's own counts only.")
    started: float
    uptime: float
    checks: int
    unknown: int = Field(description="Questions that named no limit.")
    keyless: int = Field(description="Questions without a key that can be counted.")
    unchecked: list[Unchecked] = Field(description="The first of either, by name.")
    forwarders: list[Forwarder] = Field(
        description="Peers in no list of trusted proxies that speak for many clients."
    )
    connections: int
    connections_refused: int
    connections_untrusted: int = Field(
        description="Connections of peers that are not in `agent.trusted`."
    )
    protocol_errors: int
    nodes: int
    table: TableFill
    limits: list[LimitCounters]
    blocklist: BlocklistState
    store: StoreState
    edges: EdgeState
    events: EventState
    reload: ReloadState | None
    tasks: list[TaskState]
    log: LogState
    haproxy: list[Report]


class NodeState(Answer):
    """A node of the fleet."""

    id: str
    version: str
    since: int
    checks: float = Field(description="A second, lately.")
    here: bool = Field(description="The node that answers.")


class Nodes(Answer):
    """The live nodes of the fleet."""

    nodes: list[NodeState]


class Haproxy(Answer):
    """The HAProxy processes beside this node."""

    haproxy: list[Report]


class Health(Answer):
    """Whether the node lives, or takes requests."""

    status: Literal["ok", "ready", "degraded"]
    detail: str = ""


class FieldProblem(Answer):
    """What is wrong with a field."""

    field: str
    message: str


class Problem(Answer):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
