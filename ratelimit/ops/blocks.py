"""The blocklist over the API: read a page at a time, blocked and lifted by hand."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from urllib.parse import quote

from ratelimit.control import Control, ListFullError
from ratelimit.keys import canonical, has_host_bits, wider_keys
from ratelimit.model import EVERY_LIMIT, Block
from ratelimit.ops import models
from ratelimit.ops.call import Call, Reply
from ratelimit.ops.listing import listing
from ratelimit.ops.problems import ProblemError
from ratelimit.runtime import Fault
from ratelimit.store import StoreError
from ratelimit.turns import paced


async def list_blocks(call: Call) -> Reply:
    """Answer with a page."""
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
    key = canonical(body.key)
    try:
        block, faults = await call.control.block(key, body.ttl, body.reason, call.caller.name)
    except ListFullError as error:
        what = f"nothing was blocked: {error}; lift some, or block whole networks"
        raise ProblemError(507, what) from error
    except StoreError as error:
        raise _store_problem(error, "blocked") from error
    (entry,) = entries(call.control, [block])
    edges = _edges(call.control, faults)
    made = models.MadeBlock(**dict(entry), note=note_of(body.key, key), edges=edges)
    return Reply(made, 201, {"Location": f"/v1/blocks/{quote(key, safe='')}"})


async def show_block(call: Call) -> Reply:
    """Answer with all entries of a key."""
    key = key_of(call)
    blocks = call.control.blocks_of(key)
    if not blocks:
        raise _not_blocked(call.control, key)
    return Reply(models.KeyBlocks(key=key, blocks=entries(call.control, blocks)))


async def lift_block(call: Call) -> Reply:
    """Lift all blocks of a key."""
    key = key_of(call)
    try:
        found, faults = await call.control.unblock(key, call.caller.name)
    except StoreError as error:
        raise _store_problem(error, "lifted") from error
    if not found:
        raise _not_blocked(call.control, key)
    if faults:
        return Reply(models.Lifted(edges=_edges(call.control, faults)))
    return Reply(status=204)


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
                404, "key", f"no block is its own; the network {wider} that it is in is blocked"
            )
    return ProblemError.field(404, "key", "is not on the blocklist")


def _store_problem(error: StoreError, done: str) -> ProblemError:
    if error.unsent:
        return ProblemError(503, f"nothing was {done}: {error}", headers={"Retry-After": "1"})
    return ProblemError(
        503,
        f"{done} on this node; the others follow when the store is back: {error}",
        headers={"Retry-After": "1"},
    )


def entries(control: Control, blocks: list[Block]) -> list[models.BlockEntry]:
    """Return blocks as they are shown."""
    now = control.now()
    return [
        models.BlockEntry(
            key=block.key,
            limit=block.limit,
            reason=block.reason,
            strikes=block.strikes,
            since=block.since,
            until=block.until,
            by=block.by,
            node=block.node,
            active=block.until > now,
            shadow=block.shadow,
        )
        for block in blocks
    ]


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
        raise ProblemError.field(422, "cursor", "is not one that was given here")
    return limit, key


def key_of(call: Call) -> str:
    """Return the key in the path, canonical. Raises ProblemError."""
    text = call.names["key"]
    if len(text) > models.MAX_SHOWN_KEY:
        raise ProblemError.field(422, "key", f"has at most {models.MAX_SHOWN_KEY} characters")
    try:
        return canonical(text)
    except ValueError as error:
        if call.control.blocks_of(text):
            return text  # nobody would write it, but a client sent it, and a limit blocked that
        raise ProblemError.field(422, "key", str(error)) from None


def note_of(written: str, key: str) -> str:
    """Return what was corrected in a key as it was written, if anything."""
    if has_host_bits(written):
        return f"{written} has host bits; the network is {key}"
    return f"{written} is {key}" if written != key else ""
