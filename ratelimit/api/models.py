"""The requests and answers of the API as typed models; OpenAPI is generated from them.

Times are epoch seconds of the fleet's common clock; durations are text as in the configuration.
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

from ratelimit.haproxy.api import EdgeEntry
from ratelimit.haproxy.counted import Counted
from ratelimit.haproxy.stats import Report
from ratelimit.limiter.key_input import MAX_GIVEN
from ratelimit.node.top import MAX_BUSIEST
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
            "description": "Duration, 1 s to 30 days.",
        }
    ),
]


Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_GIVEN),
    Field(
        description="An address, a network, another string that a limit counts, or a key as shown.",
        examples=["192.0.2.7", "2001:db8::/64"],
    ),
]


_COUNTED = (
    "What HAProxies in peers mode have counted themselves, and the verdicts that they have; only "
    "of addresses and networks, and of the HAProxy processes of the node."
)


class Asked(BaseModel):
    """Input from a client; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """Output of the API."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class NewBlock(Asked):
    """A block by hand."""

    model_config = ConfigDict(strict=True)

    key: Key
    ttl: Ttl
    reason: Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)] = ""
    force: bool = Field(
        False, description="Accept a very wide network or a string that resembles an address."
    )


class GivenKey(Asked):
    """A key in any form."""

    model_config = ConfigDict(strict=True)

    key: Key


class Nothing(Asked):
    """An empty object, for operations without arguments."""


class BlocksQuery(Asked):
    """Selects a part of the blocklist."""

    limit: int = Field(100, ge=1, le=1000, description="Entries per page.")
    cursor: str = Field("", max_length=2048, description="`next` of the previous page.")
    q: str = Field(
        "",
        max_length=2048,
        description="Only entries with this text in key, limit, reason or by, or of this string.",
    )
    ended: bool = Field(False, description="Include ended blocks whose strikes still count.")


class ClientsQuery(Asked):
    """Selects the busiest clients."""

    n: int = Field(20, ge=1, le=MAX_BUSIEST, description="Number of clients.")
    sort: Literal["rate", "share", "blocked"] = Field(
        "rate",
        description="By hits per second, by share of the limit, or blocked clients only.",
    )
    counted: bool = Field(False, description="Also ask the HAProxy processes for their counts.")


class NoQuery(Asked):
    """No parameters."""


class BlockEntry(Answer):
    """An entry of the blocklist; `limit` is `*` for a block by hand."""

    key: str = Field(
        description="An address or a network; for another string a hint and its hash, unless the "
        "limit has `secret = false`. Every key that is shown is accepted as input."
    )
    limit: str
    reason: str
    strikes: int = Field(description="Blocks that are not forgotten yet, including this one.")
    since: int
    until: int
    by: str = Field(description="Caller who made a block by hand; empty for a limit's block.")
    node: str
    active: bool = Field(description="Whether the block has not ended.")
    shadow: bool = Field(description="Whether the block has no effect (shadow mode).")


class EdgeAnswer(Answer):
    """Whether an HAProxy of the node applied a change; `problem` says why not."""

    socket: str
    ok: bool
    problem: str


class MadeBlock(BlockEntry):
    """A new block."""

    note: str = Field(
        description="Corrections of the key, and how the block differs from what the limits count."
    )
    edges: list[EdgeAnswer] = Field(
        description="The HAProxy processes of the node. One that did not store the block asks the "
        "agent about the client, and the agent refuses."
    )
    unenforced: str = Field(
        description="Why HAProxies in peers mode, which do not ask, do not refuse this key; empty "
        "if they refuse it, or if there are none."
    )


class Lifted(Answer):
    """A key that was unblocked although some HAProxy of the node may still block it."""

    edges: list[EdgeAnswer]


class ShownKey(Answer):
    """A key as the API shows it, and corrections of the key."""

    key: str
    note: str


class BlocksPage(Answer):
    """A page of the blocklist, ordered by limit and key."""

    blocks: list[BlockEntry]
    next: str = Field(description="`cursor` of the next page; empty on the last page.")


class KeyBlocks(Answer):
    """All entries of a key, including ended blocks whose strikes still count."""

    key: str
    blocks: list[BlockEntry]


class OwnCounts(Answer):
    """What HAProxies in peers mode have counted of a client themselves; null if they do not."""

    requests: int | None = Field(description="`http_req_cnt`: since the entry was made.")
    refused: int | None = Field(description="`gpc0`: of these, refused by a throttle or a cap.")
    open: int | None = Field(description="`conn_cur`: requests that are open now.")


class ListedClient(Answer):
    """One of the busiest clients."""

    key: str
    hashed: bool
    limit: str
    hits: int
    rate: float
    until: int
    haproxy: OwnCounts | None = Field(
        description="With `counted`, the sums of the HAProxy processes of the node that know it."
    )


class BusyClients(Answer):
    """The busiest clients of this node."""

    clients: list[ListedClient]


class LimitOf(Answer):
    """The state of a client in a limit, on this node."""

    limit: str
    key: str = Field(description="Key under which the limit counts the client.")
    hits: int
    rate: int
    window: str
    remaining: int
    until: int = Field(description="End of the block, also if past; 0 without a block.")
    strikes: int
    block: BlockEntry | None


class Explained(Answer):
    """Everything known about a key."""

    key: str
    note: str
    lists: str = Field(description="`allow` or `deny` if the key is on a list.")
    limits: list[LimitOf]
    by_hand: list[BlockEntry] = Field(description="Blocks by hand of the key or of its networks.")
    edge: list[EdgeEntry] = Field(description="Entries of HAProxy's edge tables.")
    counted: list[Counted] = Field(description=_COUNTED)


class LimitInForce(Answer):
    """A limit of the configuration."""

    name: str
    rate: int
    window: str
    block: list[str]
    forget: str
    strict: bool
    shadow: bool = Field(description="Whether verdicts are only counted (shadow mode).")
    headers: bool
    fuse: float
    ipv4_prefix: int
    ipv6_prefix: int
    secret: bool = Field(description="Whether keys that are not addresses are shown as hashes.")
    table: str = Field(description="Stick table of HAProxy whose counts it takes (peers mode).")
    counts: str = Field(description="What it takes of this table, such as `requests`.")
    open: int = Field(description="Requests of a client that may be open at a time; 0 for any.")
    count_refused: bool = Field(description="Whether requests that HAProxy refused count too.")


class Limits(Answer):
    """The limits in force."""

    limits: list[LimitInForce]


class LimitCounters(Answer):
    """Verdicts of a limit on this node since the start; in shadow mode they are not applied."""

    name: str
    allowed: int
    throttled: int
    blocked: int
    denied: int = Field(description="By the deny list.")
    asked: int = Field(description="Questions of HAProxy (SPOE); the rest are counts of peers.")
    fuse_blown: bool = Field(description="Whether the fuse has blown: the limit only throttles.")


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
    unwritten: int = Field(description="Changes of the blocklist that are not written yet.")
    dropped: int = Field(description="Changes that were dropped because the queue was full.")
    sync_failures: int
    late: int = Field(description="Checks answered without the store, which was too slow.")
    journal: str = Field(description="File in which this node keeps its changes of the blocklist.")
    journal_problem: str = Field(description="Why the journal can't be written or does not exist.")
    unsigned: int = Field(description="Entries ignored because their signature is invalid.")


class BlocklistState(Answer):
    """The blocklist."""

    entries: int = Field(description="Includes ended blocks whose strikes still count.")
    made: int = Field(description="Blocks made by this node since its start.")
    refused: int = Field(description="Clients only throttled because the list was full.")


class EdgeState(Answer):
    """Changes sent to HAProxy."""

    faults: int = Field(description="Changes that an HAProxy did not apply at once.")
    dropped: int = Field(description="Changes that were dropped because the queue was full.")
    corrected: int = Field(
        description="Entries of edge tables that differed from the blocklist and were corrected."
    )


class EventState(Answer):
    """Server-sent events."""

    listeners: int
    dropped: int


class ReloadState(Answer):
    """The result of a reload."""

    ok: bool
    at: float
    problems: list[str]
    restart: list[str] = Field(description="Changed fields that need a restart.")


class LogState(Answer):
    """The log."""

    dropped: int = Field(description="Lines that were dropped because the queue was full.")
    waiting: int = Field(description="Bytes that wait to be written.")
    problem: str = Field(description="Why the log can't be written, or empty.")


class TaskState(Answer):
    """A background task of the node."""

    name: str
    failures: int = Field(description="Failures since the start; the task restarts after each.")
    problem: str = Field(description="Error text of a failure within the last minute, or empty.")
    failed_at: float = Field(description="Time of the last failure; 0 if none.")


class Unchecked(Answer):
    """Why messages of HAProxy could not be checked; `message` is the name of the SPOE message."""

    problem: str
    message: str


class Forwarder(Answer):
    """A peer that is in no list of trusted proxies and sends requests of many clients."""

    key: str = Field(description="Address of the peer; all its clients are counted as one.")
    since: int


class PeerTable(Answer):
    """A stick table as HAProxy has announced it to the agent."""

    name: str
    type: str = Field(description="Type of its keys: `ipv6`, `binary` and others.")
    key_size: int = Field(description="Bytes of a key; of a string, the most and one.")
    expire: float = Field(description="Seconds for which HAProxy keeps an unused entry.")
    stores: list[str] = Field(description="Its data types, such as `http_req_cnt`.")
    period: float = Field(description="Seconds of its `http_req_rate`; 0 without it.")


class PeerState(Answer):
    """A HAProxy that is connected as a peer."""

    name: str = Field(description="Its name among its peers (`localpeer`).")
    pid: int
    address: str
    since: int = Field(description="Epoch second at which it connected.")
    taught: bool = Field(description="Whether it has all verdicts.")
    counting: bool = Field(description="Whether this agent counts its requests.")
    counted_by: str = Field(
        description="The `peer_name` of the agent that counts, as the shared store says; or empty."
    )
    updates: int = Field(description="Updates of its tables in this session.")
    waiting: int = Field(description="Verdicts that wait to be sent.")
    clock_offset: float | None = Field(
        description="Seconds by which its clock is ahead of the fleet's; null if not known."
    )
    tables: list[PeerTable]
    refused: dict[str, str] = Field(description="Tables that can't be used, and why.")
    unused: list[str] = Field(description="Tables of limits that the configuration lacks.")


class Status(Answer):
    """This node."""

    version: str
    compiled: bool
    node: str
    ready: bool
    degraded: bool = Field(description="Whether the store is down: only local counts are used.")
    started: float
    uptime: float
    checks: int
    unknown: int = Field(description="Messages that named no limit.")
    keyless: int = Field(description="Messages without a valid key.")
    unchecked: list[Unchecked] = Field(description="The first of these messages, by name.")
    forwarders: list[Forwarder] = Field(
        description="Peers in no list of trusted proxies that send requests of many clients."
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
    peers: list[PeerState]
    events: EventState
    reload: ReloadState | None
    tasks: list[TaskState]
    log: LogState
    haproxy: list[Report]


class NodeState(Answer):
    """A node."""

    id: str
    version: str
    since: int
    checks: float = Field(description="Recent checks per second.")
    here: bool = Field(description="Whether this is the node that answers.")


class Nodes(Answer):
    """The live nodes."""

    nodes: list[NodeState]


class Haproxy(Answer):
    """The HAProxy processes of this node."""

    haproxy: list[Report]


class Health(Answer):
    """Whether the process is alive, or accepts requests."""

    status: Literal["ok", "ready", "degraded"]
    detail: str = ""


class FieldProblem(Answer):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
