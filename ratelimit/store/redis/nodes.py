"""The nodes of a store: heartbeats, which also read the store's time.

It uses the key ``PREFIX:{fleet}:nodes``; see ``scripts/announce.lua``.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from dataclasses import asdict, fields
from math import inf
from typing import Any

import structlog

from ratelimit.store.base import Node, StoreError
from ratelimit.store.redis.blocklist import SharedBlocklist
from ratelimit.store.redis.clock import Clock
from ratelimit.store.redis.session import Life, Script

HEARTBEAT = 1.0
"""Seconds between heartbeats."""

NODE_LIFE = 3000
"""Milliseconds after the last heartbeat after which a node counts as gone."""

_END = 1 << 32  # epoch seconds, the latest end of a block
_MOST = 1 << 16  # nodes
_ANNOUNCE = Script("announce")
_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
_FIELDS = {field.name: _TYPES[str(field.type)] for field in fields(Node)}
_MAX_ODD = 64  # entries that are remembered as logged

log = structlog.get_logger()


def nodes_key(prefix: str) -> bytes:
    """Return the key of a fleet's nodes."""
    return f"{prefix}:{{fleet}}:nodes".encode()


class Members:
    """The live nodes.

    Attributes:
        node: description of this node.
        live: number of live nodes, including this one; during an outage the last known number.
        clock: the store's time.
    """

    def __init__(self, key: bytes, node: Node | None) -> None:
        self.key = key
        self.node = node or Node(secrets.token_hex(8), "", int(time.time()))
        self.live = 1
        self.clock = Clock()
        self._began = 0.0
        self._odd: set[bytes] = set()
        self._forget_at = b"0"

    def begin(self) -> None:
        """Prepare for the nodes and the time of another server."""
        self._began = time.monotonic()
        self.clock.forget()

    async def heartbeat(self, life: Life, blocklist: SharedBlocklist) -> tuple[bytes, int]:
        """Announce this node; return the era of the blocklist and the number of its changes.

        The era is a new one if the blocklist had none.
        """
        about = json.dumps(asdict(self.node), separators=(",", ":"))
        sent = time.monotonic_ns()
        answer = await self._announce(life, blocklist, about)
        received = time.monotonic_ns()
        match answer:
            case [
                int(seconds),
                int(microseconds),
                int(live),
                bytes(era),
                int(changes),
                bytes(forget_at),
            ] if 0 < seconds < _END and 0 <= microseconds < 1_000_000 and 0 <= live < _MOST:
                pass
            case _:
                raise life.odd("the answer to a heartbeat")
        self.clock.sample(sent, received, (seconds * 1_000_000 + microseconds) * 1000)
        self._count(live)
        self._forget_at = forget_at
        await life.ping()
        return era, changes

    async def leave(self, life: Life, blocklist: SharedBlocklist) -> None:
        with contextlib.suppress(StoreError):
            await self._announce(life, blocklist, "")

    async def read(self, life: Life, now: int) -> list[Node]:
        """Return the nodes that are live at a time in milliseconds.

        An unreadable entry is ignored and logged once.
        """
        answer = await life.call(self.key, "HGETALL", self.key)
        if not isinstance(answer, dict):
            raise life.odd("the list of nodes")
        nodes = []
        for field, value in answer.items():
            if not field:
                continue
            try:
                gone, node = _read_node(field, value)
            except (AttributeError, TypeError, ValueError, RecursionError):
                if field not in self._odd and len(self._odd) < _MAX_ODD:
                    self._odd.add(field)
                    log.warning("unreadable entry in the list of nodes", node=ascii(field))
                continue
            if gone > now:
                nodes.append(node)
        return nodes

    async def _announce(self, life: Life, blocklist: SharedBlocklist, about: str) -> Any:
        keys = (self.key, *blocklist.keys)
        era = blocklist.new_era()
        return await life.run(_ANNOUNCE, keys, era, self.node.id, about, NODE_LIFE, self._forget_at)

    def _count(self, live: int) -> None:
        # After an outage the other nodes also need some time to return.
        settled = time.monotonic() - self._began > NODE_LIFE / 1000
        self.live = max(live, 1 if settled else self.live)


def _read_node(field: bytes, value: bytes) -> tuple[int, Node]:
    """Return when a node counts as gone, in milliseconds, and the node; unknown fields are ignored.

    Raises AttributeError, TypeError, ValueError or RecursionError for an invalid entry.
    """
    gone, _, text = value.partition(b" ")
    about = json.loads(text) | {"id": field.decode()}
    known = {name: about[name] for name in _FIELDS if name in about}
    for name, one in known.items():
        if isinstance(one, bool) or not isinstance(one, _FIELDS[name]) or one in (inf, -inf):
            raise TypeError(name)
    return int(gone), Node(**known)
