"""The blocklist over the API: pages of it, blocks by hand, unblocking."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from urllib.parse import quote

from ratelimit.api import models
from ratelimit.api.call import Call, Reply
from ratelimit.api.errors import ProblemError
from ratelimit.api.listing import listing
from ratelimit.haproxy.api import Fault
from ratelimit.limiter.key_input import Given, reach, read, too_wide
from ratelimit.limiter.keys import wider_keys
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.node.operations import Control, ListFullError, block_data
from ratelimit.store import StoreError
from ratelimit.turns import paced


async def list_blocks(call: Call) -> Reply:
    """Answer with a page of the blocklist."""
    query: models.BlocksQuery = call.query
    after = _read_cursor(query.cursor)
    steps = call.control.page(after, query.limit, query.q, query.ended)
    blocks, more = await paced(steps)
    following = _cursor(blocks[-1]) if more else ""
    found = itertools.chain.from_iterable(entries(call.control, [block]) for block in blocks)
    page = models.BlocksPage(blocks=[], next=following)
    return Reply(await paced(listing(page, "blocks", found)))


async def add_block(call: Call) -> Reply:
    """Block a key."""
    body: models.NewBlock = call.body
    limiter = call.control.limiter
    given = read_key(call, body.key, body.force)
    if given.key.startswith("~") and not limiter.keyed:
        detail = "nothing was blocked: strings can't be hashed until the store was reached once"
        raise ProblemError(503, detail, headers={"Retry-After": "1"})
    wide = too_wide(given.key)
    if wide and not body.force:
        raise ProblemError.field(422, "key", wide)
    # Read this first: the block itself adds the string to the table.
    note = ". ".join(filter(None, (given.note, reach(limiter, given.key))))
    try:
        block, faults = await call.control.block(
            given.key,
            body.ttl,
            body.reason,
            call.caller.name,
            call.control.shown(given),
            call.control.wire(given),
        )
    except ListFullError as error:
        what = f"nothing was blocked: {error}; unblock some keys or block networks instead"
        raise ProblemError(507, what) from error
    except StoreError as error:
        raise _store_problem(error, "blocked") from error
    (entry,) = entries(call.control, [block])
    edges = _edges(call.control, faults)
    unenforced = call.control.unenforced(given.key)
    made = models.MadeBlock(**dict(entry), note=note, edges=edges, unenforced=unenforced)
    return Reply(made, 201, {"Location": f"/v1/blocks/{quote(block.key, safe='')}"})


async def show_block(call: Call) -> Reply:
    """Answer with all blocks of a key."""
    given = key_of(call)
    blocks = await call.control.blocks_of(given.key)
    if not blocks:
        raise _not_blocked(call.control, given.key)
    shown = call.control.shown(given) or given.key
    return Reply(models.KeyBlocks(key=shown, blocks=entries(call.control, blocks)))


async def lift_block(call: Call) -> Reply:
    """Remove all blocks of a key."""
    key = key_of(call).key
    try:
        found, faults = await call.control.unblock(key, call.caller.name)
    except StoreError as error:
        raise _store_problem(error, "unblocked") from error
    if not found:
        raise _not_blocked(call.control, key)
    if faults:
        return Reply(models.Lifted(edges=_edges(call.control, faults)))
    return Reply(status=204)


async def show_key(call: Call) -> Reply:
    """Answer with a key as the API shows it."""
    given = read_key(call, call.body.key)
    return Reply(models.ShownKey(key=call.control.shown(given) or given.key, note=given.note))


def _edges(control: Control, faults: list[Fault]) -> list[models.EdgeAnswer]:
    problems = {fault.socket: fault.problem for fault in faults}
    return [
        models.EdgeAnswer(socket=path, ok=path not in problems, problem=problems.get(path, ""))
        for path in control.runtime.sockets
    ]


def _not_blocked(control: Control, key: str) -> ProblemError:
    for wider in wider_keys(key):
        if control.limiter.blocklist.get(EVERY_LIMIT, wider) is not None:
            return ProblemError.field(
                404, "key", f"has no block of its own; it is in the blocked network {wider}"
            )
    return ProblemError.field(404, "key", "is not on the blocklist")


def _store_problem(error: StoreError, done: str) -> ProblemError:
    if error.unsent:
        return ProblemError(503, f"nothing was {done}: {error}", headers={"Retry-After": "1"})
    return ProblemError(
        503,
        f"{done} on this node only; the other nodes follow when the store is up again: {error}",
        headers={"Retry-After": "1"},
    )


def entries(control: Control, blocks: list[Block]) -> list[models.BlockEntry]:
    """Return blocks as the API shows them."""
    now = control.now()
    return [models.BlockEntry(**block_data(block), active=block.until > now) for block in blocks]


def _cursor(block: Block) -> str:
    raw = json.dumps([block.limit, block.key]).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[str, str]:
    if not text:
        return "", ""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        limit, key = json.loads(raw)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        limit = key = None
    if not isinstance(limit, str) or not isinstance(key, str):
        raise ProblemError.field(422, "cursor", "must be the next of an earlier answer")
    return limit, key


def key_of(call: Call) -> Given:
    """Return the key in the path. Raises ProblemError."""
    return read_key(call, call.names["key"])


def read_key(call: Call, text: str, force: bool = False) -> Given:
    """Return the key that a text means. Raises ProblemError."""
    try:
        return read(call.control.limiter, text, force)
    except ValueError as error:
        raise ProblemError.field(422, "key", str(error)) from None
