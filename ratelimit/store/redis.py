"""The shared store: one blocklist and one count for all nodes, in Redis or Valkey.

One task keeps the store: it connects, subscribes, writes what is unwritten, loads the blocklist,
and then announces the node every second, which also says what time it is. Whatever fails, at
whichever request, ends that life of the connections; the next one begins with all of that again.
So there is one way to begin, and after it nothing has been missed.

Keys: ``PREFIX:{fleet}:nodes`` and ``PREFIX:{fleet}:blocks``, and for counts
``PREFIX:{LIMIT.SHARD}:counts:GENERATION``; channels ``PREFIX:{fleet}:news`` and
``PREFIX:{fleet}:hot``. What is in them and what the scripts do with it: ``scripts/``.

A request that got no answer in time may have been carried out. Counts are therefore not sent again
(see ``StoreError.unsent``); blocks are, for writing them twice changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import random
import re
import secrets
import time
from dataclasses import asdict, replace
from importlib import resources
from typing import Any

import structlog
from redis.exceptions import NoScriptError, ResponseError

from ratelimit.exceptions import ConfigError
from ratelimit.model import Block
from ratelimit.store.base import (
    Change,
    Events,
    Node,
    SharedStore,
    StoreError,
    block_from_json,
    block_to_json,
)
from ratelimit.store.clock import Clock
from ratelimit.store.explain import explain, too_old
from ratelimit.store.link import Link
from ratelimit.store.routes import Routes
from ratelimit.store.url import Target

PREFIX = r"[A-Za-z0-9_.:-]{1,64}"
"""What a prefix may be; braces would change where a cluster keeps the keys."""

RECORD_SIZE = 92
"""Bytes of one client in a batch: id (16), tick (8), 17 deltas of 4."""

STATE_SIZE = 76
"""Bytes of one client in the answer: tick (8), 17 totals of 4."""

HEARTBEAT = 1.0
"""Seconds between announcements."""

NODE_LIFE = 3000
"""Milliseconds after the last heartbeat until a node counts as gone."""

TIMEOUT = 0.5
"""Seconds for a connection, and for a request other than ``exchange()``."""

EXCHANGE_TIMEOUT = 0.25
"""Seconds for ``exchange()``."""

BACKOFF = (0.05, 0.5)
"""Seconds until the first new attempt, doubled for each later one up to the second; each is
shortened by a random part of up to a half, so that nodes do not come back in step."""

_START_TIMEOUT = 5.0
_BEGIN_TIMEOUT = 30.0  # for all of a beginning; a list of 200,000 entries takes about 2
_STEADY = 5.0  # seconds without an outage after which the back-off starts over
_BATCH = 100  # entries in one request
_PAGE = 1000
_SECRET = 32  # characters of an era that outlive it, if any node does
_CLOSE_TIMEOUT = 1.0

log = structlog.get_logger()


class Script:
    """A Lua script and the hash by which the server knows it."""

    def __init__(self, name: str) -> None:
        folder = resources.files("ratelimit.store") / "scripts"
        parts = [(folder / f"{part}.lua").read_text("utf-8") for part in ("own", name)]
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_ANNOUNCE, _BLOCK, _EXCHANGE, _LIFT, _LOAD = map(
    Script, ("announce", "block", "exchange", "lift", "load")
)


class RedisStore(SharedStore):
    """What the nodes share.

    Attributes:
        clock: the store's time.
        strays: messages on our channels that nobody of us has sent.
        exchanges: calls of ``exchange()`` that were answered.
        server: what is connected to, such as ``redis 7.2.4``.
    """

    def __init__(
        self,
        target: Target,
        prefix: str = "ratelimit",
        events: Events | None = None,
        *,
        node: Node | None = None,
        timeout: float = TIMEOUT,
        exchange_timeout: float = EXCHANGE_TIMEOUT,
    ) -> None:
        super().__init__(events or Events())
        self.clock = Clock()
        self.strays = 0
        self.exchanges = 0
        self.server = ""
        self.node = node or Node(secrets.token_hex(8), "", int(time.time()))
        self._target = target
        self._timeout = timeout
        self._exchange_timeout = exchange_timeout
        self._prefix = prefix
        self._nodes = f"{prefix}:{{fleet}}:nodes".encode()
        self._blocks = f"{prefix}:{{fleet}}:blocks".encode()
        self._news = f"{prefix}:{{fleet}}:news".encode()
        self._hot = f"{prefix}:{{fleet}}:hot".encode()
        self._routes: Routes | None = None
        self._known = target.endpoints[:0]
        self._subscription: Link | None = None
        self._subscribed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._tried = asyncio.Event()
        self._closing = False
        self._failure = ""
        self._lost_at = 0.0
        self._back_at = math.inf
        self._began = 0.0
        self._era = b""
        self._emptied = False
        self._reload = False
        self._forget_at = b"0"
        # News that came while the list was being read; None for what was lifted.
        self._meanwhile: dict[tuple[str, str], Block | None] | None = None
        # Keys and life of the counts that an exchange failed for: the store is back when these can
        # be used again.
        self._suspect: tuple[tuple[bytes, ...], int] | None = None
        if not re.fullmatch(PREFIX, prefix):
            raise ConfigError(["store.prefix: has 1 to 64 of the characters A-Z a-z 0-9 _ . : -"])

    @property
    def clock_offset(self) -> int:
        return self.now() - time.time_ns() if self.clock.known else 0

    def now(self) -> int:
        """Return the store's time in nanoseconds since the epoch, or ours until it is known."""
        local = time.monotonic_ns()
        return local + self.clock.offset(local) if self.clock.known else time.time_ns()

    @property
    def secret(self) -> bytes:
        return hashlib.blake2b(self._era[:_SECRET], digest_size=16).digest()

    async def start(self) -> None:
        """Try to reach the store once; if that fails, an outage begins."""
        self._task = asyncio.create_task(self._run(), name="store")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT):
                await self._tried.wait()

    async def close(self) -> None:
        self._closing = True
        self._work.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_CLOSE_TIMEOUT)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._hang_up()
        self.up = False
        if len(self.outbox):
            log.warning("blocks are lost, for the store stops first", count=len(self.outbox))

    def announce(self, node: Node) -> None:
        self.node = replace(node, id=self.node.id)

    async def nodes_list(self) -> list[Node]:
        try:
            answer = await self._call(self._timeout, self._nodes, "HGETALL", self._nodes)
            now = self.now() // 1_000_000
            nodes = []
            for field, value in answer.items():
                gone, _, text = value.partition(b" ")
                if field and int(gone) > now:
                    nodes.append(Node(**(json.loads(text) | {"id": field.decode()})))
        except (AttributeError, ValueError, TypeError):
            raise self._odd("the list of nodes") from None
        return nodes

    async def load(self) -> list[Block]:
        blocks = {}
        cursor: Any = b"0"
        while True:
            answer = await self._run_script(
                self._timeout, _LOAD, (self._blocks,), self._new_era(), cursor, _PAGE
            )
            try:
                cursor, *texts = answer
                for text in texts:
                    block = block_from_json(text)
                    blocks[block.limit, block.key] = block
            except (ValueError, TypeError):
                raise self._odd("the blocklist") from None
            if cursor == b"0":
                return list(blocks.values())

    async def exchange(
        self,
        limit: str,
        shard: int,
        generation: int,
        ttl: int,
        batch: bytes,
        hot: bytes = b"",
    ) -> bytes:
        """Add what this node has counted, and return what all have; see ``exchange.lua``.

        ``ttl`` is in milliseconds. ``hot`` goes to every node's ``on_hot``.

        Raises StoreError; if that does not say ``unsent``, the batch may have been counted.
        """
        if not self.up:
            raise StoreError(self.problem or "not started", unsent=True)
        keys = tuple(
            f"{self._prefix}:{{{limit}.{shard}}}:counts:{number}".encode()
            for number in (generation, generation - 1)
        )
        try:
            answer = await self._run_script(
                self._exchange_timeout, _EXCHANGE, keys, b"-", ttl, batch, self._hot, hot
            )
            if not isinstance(answer, bytes) or (
                len(answer) * RECORD_SIZE != len(batch) * STATE_SIZE
            ):
                raise self._odd("the answer to an exchange")
        except StoreError:
            self._suspect = keys, ttl
            raise
        self.exchanges += 1
        return answer

    async def publish_hot(self, ids: bytes) -> None:
        """Tell all nodes that these clients are hot, apart from any exchange."""
        await self._call(self._exchange_timeout, self._nodes, "PUBLISH", self._hot, ids)

    def _wake(self) -> None:
        self._work.set()

    # The life of the store.

    async def _run(self) -> None:
        delay = BACKOFF[0]
        while not self._closing:
            self._failure = ""
            self._back_at = math.inf
            try:
                async with asyncio.timeout(_BEGIN_TIMEOUT):
                    await self._begin()
                self._tried.set()
                await self._keep()
            except StoreError as error:
                self._lost(str(error))
            except TimeoutError:
                self._lost(f"no beginning within {_BEGIN_TIMEOUT:.0f} s")
            except Exception as error:
                # A fault of ours: better to go on with local counts than to stop.
                log.exception("the store failed")
                self._lost(f"internal error: {error!r}")
            finally:
                await self._hang_up()
                self._tried.set()
            if self._closing:
                return
            if time.monotonic() - self._back_at >= _STEADY:
                delay = BACKOFF[0]
            await self._sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - not a secret
            delay = min(2 * delay, BACKOFF[1])

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless the store closes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._closing:
                    self._work.clear()
                    await self._work.wait()

    async def _begin(self) -> None:
        """Connect, and come to know all that the store knows."""
        self._routes = Routes(self._target, self._timeout)
        await self._routes.open(self._known)
        await self._see_server()
        self._began = time.monotonic()
        self.clock.forget()
        self._meanwhile = {}
        await self._subscribe(self._routes)
        await self._heartbeat()
        if self._suspect is not None:
            # Without a record it only checks, and marks what is not there.
            keys, ttl = self._suspect
            await self._run_script(self._timeout, _EXCHANGE, keys, b"-", ttl, b"", self._hot, b"")
            self._suspect = None
        await self._write_all()
        await self._load_all()
        self._back()

    async def _load_all(self) -> None:
        """Have the owner replace its list, by one that nothing is missing from."""
        meanwhile = self._meanwhile = {} if self._meanwhile is None else self._meanwhile
        try:
            blocks = {(block.limit, block.key): block for block in await self.load()}
        finally:
            self._meanwhile = None
        for place, block in meanwhile.items():
            if block is None:
                blocks.pop(place, None)
            else:
                blocks[place] = block
        self.outbox.apply(blocks)
        if self._failure:
            raise StoreError(self._failure)
        self._reload = False
        self.events.on_loaded(list(blocks.values()))

    async def _keep(self) -> None:
        """Announce the node and write blocks until something fails."""
        due = time.monotonic() + HEARTBEAT
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, due - time.monotonic())):
                    await self._work.wait()
            self._work.clear()
            if self._failure:
                raise StoreError(self._failure)
            await self._write_all(None if self._closing else due)
            if self._closing:
                await self._leave()
                return
            if self._reload:
                await self._load_all()
            if time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT
                await self._heartbeat()
                if self._routes is not None and self._routes.moved:
                    await self._routes.refresh()

    async def _see_server(self) -> None:
        answer = await self._call(self._timeout, self._nodes, "HELLO")
        try:
            name, version = answer[b"server"].decode(), answer[b"version"].decode()
        except (AttributeError, KeyError, TypeError):
            raise self._odd("the answer to HELLO") from None
        self.server = f"{name} {version}"
        problem = too_old(name, version)
        if problem:
            raise self._fail(problem)

    async def _subscribe(self, routes: Routes) -> None:
        self._subscribed.clear()
        link = await routes.subscribe(self._nodes, self._hear)
        self._subscription = link
        try:
            # It is confirmed by messages, one for each channel, so the next answer comes after.
            await link.send(self._timeout, "SUBSCRIBE", self._news, self._hot)
            await link.call(self._timeout, "PING")
        except ResponseError as error:
            raise self._fail(explain(error, link.endpoint)) from error
        if not self._subscribed.is_set():
            raise self._fail("SUBSCRIBE was not confirmed")

    async def _heartbeat(self) -> None:
        about = json.dumps(asdict(self.node), separators=(",", ":"))
        sent = time.monotonic_ns()
        answer = await self._announce(about)
        received = time.monotonic_ns()
        try:
            seconds, microseconds, live, era, forget_at = answer
            self.clock.sample(sent, received, (seconds * 1_000_000 + microseconds) * 1000)
            self._count_nodes(int(live))
            self._forget_at = bytes(forget_at)
        except (ValueError, TypeError):
            raise self._odd("the answer to a heartbeat") from None
        if self._subscription is not None:
            try:
                await self._subscription.call(self._timeout, "PING")
            except ResponseError as error:
                raise self._fail(explain(error, self._subscription.endpoint)) from error
        if self._era and era != self._era:
            if self.up:
                log.warning("the store has lost its memory; the blocklist is written again")
            self._emptied = not self.up
            self._reload = self.up
            self.outbox.overflowed = True
            self._work.set()
        self._era = era

    def _new_era(self) -> str:
        """Return the era of the blocklist if it begins now."""
        return (
            self._era[:_SECRET].decode() or secrets.token_hex(_SECRET // 2)
        ) + secrets.token_hex(8)

    def _count_nodes(self, live: int) -> None:
        # After an outage the others need a while to come back too.
        settled = time.monotonic() - self._began > NODE_LIFE / 1000
        self.nodes = max(live, 1 if settled else self.nodes)

    async def _announce(self, about: str) -> Any:
        return await self._run_script(
            self._timeout,
            _ANNOUNCE,
            (self._nodes, self._blocks),
            self._new_era(),
            self.node.id,
            about,
            NODE_LIFE,
            self._forget_at,
        )

    async def _leave(self) -> None:
        with contextlib.suppress(StoreError):
            await self._announce("")

    async def _hang_up(self) -> None:
        routes, self._routes = self._routes, None
        link, self._subscription = self._subscription, None
        if routes is not None:
            self._known = routes.known or self._known
            await routes.close()
        if link is not None:
            await link.close()

    def _fail(self, problem: str) -> StoreError:
        """End this life of the connections."""
        if not self._failure:
            self._failure = problem
            if self.up:
                self._lost(problem)
            self._work.set()
        return StoreError(problem)

    def _odd(self, what: str) -> StoreError:
        """An answer of the wrong shape counts as an outage."""
        where = self._routes.home(self._nodes) if self._routes is not None else self.server
        return self._fail(f"{where}: {what} has an unknown form; is this Redis?")

    def _lost(self, problem: str) -> None:
        if self.up or not self.problem:
            self.outages += 1
            self._lost_at = time.monotonic()
            log.error("store lost", why=problem)
            if self.up:
                self.up = False
                self.problem = problem
                self.events.on_lost()
        self.problem = problem

    def _back(self) -> None:
        if self.problem:
            seconds = round(time.monotonic() - self._lost_at, 3)
            log.info("store back", server=self.server, seconds=seconds, emptied=self._emptied)
        else:
            log.info("store reached", server=self.server)
        self.problem = ""
        self.up = True
        self._back_at = time.monotonic()
        self.events.on_back()

    # Requests.

    async def _call(self, timeout: float, key: bytes, *args: bytes | str | int) -> Any:
        """Send a command that belongs to a key; whatever goes wrong is a StoreError."""
        if self._routes is None:
            raise StoreError(self.problem or "not started", unsent=True)
        routes = self._routes
        try:
            return await routes.call(timeout, key, *args)
        except NoScriptError:
            raise
        except ResponseError as error:
            # An error is an answer: nothing has been done, but by a script that began well.
            problem = explain(error, routes.home(key))
            raise self._failed(routes, problem, unsent=True) from error
        except StoreError as error:
            raise self._failed(routes, str(error), error.unsent) from error

    def _failed(self, routes: Routes, problem: str, unsent: bool) -> StoreError:
        # A late answer of a former life says nothing about this one.
        if routes is self._routes:
            self._fail(problem)
        return StoreError(problem, unsent)

    async def _run_script(
        self, timeout: float, script: Script, keys: tuple[bytes, ...], *args: bytes | str | int
    ) -> Any:
        try:
            return await self._call(
                timeout, keys[0], "EVALSHA", script.sha, len(keys), *keys, *args
            )
        except NoScriptError:
            # Also loads it; a server forgets scripts when it starts or fails over.
            return await self._call(timeout, keys[0], "EVAL", script.text, len(keys), *keys, *args)

    # Blocks.

    async def _write_all(self, until: float | None = None) -> None:
        """Write what is unwritten; first, if anything was dropped or lost, all that is held.

        The heartbeat, due at ``until``, must not wait for a flood of blocks.
        """
        if self.outbox.overflowed:
            self.outbox.overflowed = False
            held = list(self.events.held())
            try:
                for start in range(0, len(held), _BATCH):
                    await self._write_blocks(held[start : start + _BATCH])
            except StoreError:
                self.outbox.overflowed = True
                raise
        # No more than there is now, or a flood of blocks would keep it here.
        left = len(self.outbox)
        while left > 0 and (changes := self.outbox.first(_BATCH)):
            left -= len(changes)
            if changes[0].block is None:
                results = await self._write_lifts(changes)
            else:
                await self._write_blocks([change.block for change in changes if change.block])
                results = [True] * len(changes)
            self.outbox.written(changes, results)
            if until is not None and time.monotonic() >= until:
                break
        if len(self.outbox):
            self._work.set()

    async def _write_blocks(self, blocks: list[Block]) -> None:
        args: list[bytes | str | int] = []
        for block in blocks:
            args += (
                _field(block.limit, block.key),
                _encoded(block_to_json(block)),
                self.events.forget(block.limit),
            )
        await self._run_script(
            self._timeout, _BLOCK, (self._blocks,), self._new_era(), self._news, *args
        )

    async def _write_lifts(self, changes: list[Change]) -> list[bool]:
        answer = await self._run_script(
            self._timeout,
            _LIFT,
            (self._blocks,),
            self._new_era(),
            self._news,
            *(_field(change.limit, change.key) for change in changes),
        )
        if not isinstance(answer, list) or len(answer) != len(changes):
            raise self._odd("the answer to a lift")
        return [found == 1 for found in answer]

    # Messages.

    def _hear(self, message: list[Any]) -> None:
        if not message:
            # The end of the subscription.
            if self._subscription is not None:
                self._fail(self._subscription.broken)
            return
        match message:
            case [b"subscribe", self._hot, _]:
                self._subscribed.set()
            case [b"message", self._hot, bytes(ids)]:
                self.events.on_hot(ids)
            case [b"message", self._news, bytes(text)]:
                self._hear_news(text)

    def _hear_news(self, text: bytes) -> None:
        try:
            news = json.loads(text)
            blocks = [block_from_json(json.dumps(block)) for block in news.get("blocks", ())]
            lifts = [_unfield(field) for field in news.get("lifts", ())]
        except (ValueError, TypeError, AttributeError):
            self.strays += 1
            if self.strays == 1:
                log.warning("another program publishes on our channel", channel=self._news.decode())
            return
        for block in blocks:
            if self._meanwhile is not None:
                self._meanwhile[block.limit, block.key] = block
            self.events.on_block(block)
        for limit, key in lifts:
            if self._meanwhile is not None:
                self._meanwhile[limit, key] = None
            self.outbox.forget_block(limit, key)
            self.events.on_lift(limit, key)


def _field(limit: str, key: str) -> bytes:
    return _encoded(f"{limit}|{key}")


def _unfield(field: str) -> tuple[str, str]:
    limit, bar, key = field.partition("|")
    if not bar:
        raise ValueError("not a field")
    return limit, key


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
