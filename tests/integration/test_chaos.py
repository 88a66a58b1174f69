"""Two HAProxies and agents, Sentinel and two Redis: anything may be restarted at any moment.

Operators block and unblock, visitors come, and meanwhile one moment follows another: a server is
killed, restored from an old snapshot, demoted, an agent handed over, killed, reloaded, an HAProxy
reloaded. ``RATELIMIT_TEST_MOMENTS`` says how many moments (3), ``RATELIMIT_TEST_SEED`` which ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import redis

from tests.helpers.servers import Server
from tests.helpers.world import SHIPPED, Client, World, free_port, until, world
from tests.store.redis.test_sentinel import watch

pytestmark = pytest.mark.integration

MOMENTS = int(os.environ.get("RATELIMIT_TEST_MOMENTS", "3"))
SEED = int(os.environ.get("RATELIMIT_TEST_SEED", "1"))
VISITORS = 10
PACE = 0.05  # seconds between the requests of a visitor: a fifth of its limit
PAUSE = 0.2, 0.8  # seconds from a moment to the next


@dataclass
class Site:
    """An HAProxy with its agent."""

    world: World
    ops: str
    config: Path

    def pids(self) -> list[int]:
        """Return the agents of this site, of which a hand-over has two."""
        wanted = str(self.config).encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return sorted(found)

    def alive(self) -> bool:
        if self.world.agent is not None:
            self.world.agent.poll()
        return bool(self.pids())

    def start(self) -> None:
        if self.world.agent is not None:
            self.world.agent.wait()
        with open(self.world.folder / "agent.log", "ab") as log:
            self.world.agent = subprocess.Popen(
                [sys.executable, "-m", "ratelimit", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Ledger:
    """What was acknowledged. A change without an answer may have happened or not."""

    blocked: set[str] = field(default_factory=set)
    lifted: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0


class Stores:
    """A primary and a replica that keep nothing by themselves, and the Sentinel of both."""

    def __init__(self, folder: Path) -> None:
        self.servers = [Server(folder), Server(folder)]
        self.sentinel = Server(folder)
        self._folder = folder
        self._snapshot = folder / "old.rdb"

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/main"

    async def start(self) -> None:
        first, second = (server.start() for server in self.servers)
        second.do("REPLICAOF", "127.0.0.1", first.port)
        watch(self.sentinel, first)
        await until(self.whole, "Sentinel knows both servers")

    def primary(self) -> Server:
        with self.sentinel.client() as client:
            _, port = client.sentinel_get_master_addr_by_name("main")
        return next(server for server in self.servers if server.port == int(port))

    def whole(self) -> bool:
        """Tell whether the primary answers and the replica is in step with it."""
        primary = self.primary()
        try:
            with primary.client() as client:
                found = client.info("replication")
        except redis.RedisError:
            return False
        in_step = found["role"] == "master" and found.get("slave0", {}).get("state") == "online"
        with self.sentinel.client() as client:
            return in_step and len(client.sentinel_slaves("main")) == 1

    def kill(self) -> None:
        """Kill the primary; it comes back without its memory, as the replica of the other."""
        self.primary().kill()

    def failover(self) -> None:
        with contextlib.suppress(redis.ResponseError):  # one is under way
            self.sentinel.do("SENTINEL", "FAILOVER", "main")

    def save(self) -> None:
        """Keep a snapshot for later."""
        shutil.copy(self.primary().save(), self._snapshot)

    def restore(self) -> None:
        """Kill both, and start them from the snapshot."""
        for server in self.servers:
            server.kill()
        for server in self.servers:
            shutil.copy(self._snapshot, self._folder / f"{server.port}.rdb")
            server.start()

    def revive(self) -> None:
        """Start what was killed."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is not None:
                (self._folder / f"{server.port}.rdb").unlink(missing_ok=True)
                server.start()

    def stop(self) -> None:
        for server in (self.sentinel, *self.servers):
            server.kill()


async def visit(clients: list[Client], ledger: Ledger, end: asyncio.Event) -> None:
    for number in range(1_000_000):
        if end.is_set():
            return
        try:
            answer = await clients[number % len(clients)].get()
        except (OSError, asyncio.IncompleteReadError) as error:
            ledger.answers[repr(error)] += 1
        else:
            ledger.answers[str(answer.status)] += 1
            ledger.slowest = max(ledger.slowest, answer.seconds)
        await asyncio.sleep(PACE)


async def operate(sites: list[Site], ledger: Ledger, end: asyncio.Event, seed: int) -> None:
    """Block and unblock; what got no clear answer is of no key that is looked at in the end."""
    choice = random.Random(seed)
    keys = (f"127.{seed}.{n >> 8}.{n & 255}" for n in range(1, 1 << 16))
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while not end.is_set():
            url = f"{choice.choice(sites).ops}/v1/blocks"
            lifts = ledger.blocked and choice.random() < 0.4
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                if lifts:
                    key = choice.choice(sorted(ledger.blocked))
                    if not key.startswith(f"127.{seed}."):
                        continue
                    ledger.blocked.discard(key)
                    async with session.delete(f"{url}/{key}") as answer:
                        if answer.status in (200, 204):
                            ledger.lifted.add(key)
                else:
                    key = next(keys)
                    body = {"key": key, "ttl": "1h", "reason": "chaos"}
                    async with session.post(url, json=body) as answer:
                        if answer.status == 201:
                            ledger.blocked.add(key)
            await asyncio.sleep(0.02)


async def differences(sites: list[Site], ledger: Ledger) -> list[str]:
    """Return how the blocklists of the sites differ from what was acknowledged."""
    problems = []
    async with aiohttp.ClientSession() as session:
        for site in sites:
            held = set()
            cursor = ""
            while True:
                params = {"limit": "1000", "cursor": cursor} if cursor else {"limit": "1000"}
                async with session.get(f"{site.ops}/v1/blocks", params=params) as answer:
                    page = await answer.json()
                held |= {block["key"] for block in page["blocks"]}
                if not (cursor := page.get("next") or ""):
                    break
            problems += [f"{site.config}: lost {key}" for key in sorted(ledger.blocked - held)]
            problems += [f"{site.config}: back {key}" for key in sorted(ledger.lifted & held)]
    return problems


async def moment(name: str, stores: Stores, site: Site) -> None:
    match name:
        case "kill":
            stores.kill()
        case "failover":
            stores.failover()
        case "restore":
            stores.restore()
        case "save":
            stores.save()
        case "hand over":
            site.signal(signal.SIGUSR2)
        case "kill agent":
            site.signal(signal.SIGKILL)
            await until(lambda: not site.alive(), "the agent has ended")
            site.start()
        case "reload":
            site.signal(signal.SIGHUP)
        case "haproxy":
            await site.world.reload()


NAMES = ("kill", "failover", "restore", "save", "hand over", "kill agent", "reload", "haproxy")


@contextlib.asynccontextmanager
async def sites(folder: Path, stores: Stores) -> AsyncIterator[list[Site]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in "ab":
            place = folder / name
            place.mkdir()
            ops = f"127.0.0.1:{free_port()}"
            config = (
                f'[ops]\nlisten = "{ops}"\n'
                f'[store]\nurl = "{stores.url}"\nstate_dir = "{place}/state"\n'
                f'[haproxy]\nsockets = ["{place}/haproxy.sock"]\n'
            )
            env = {"RATELIMIT_STATS_LEVEL": "admin"}
            made = await stack.enter_async_context(
                world(place, config, env=env, processing=SHIPPED)
            )
            site = Site(made, f"http://{ops}", place / "ratelimit.toml")
            stack.callback(site.signal, signal.SIGKILL)
            found.append(site)
        yield found


async def _ready(session: aiohttp.ClientSession, site: Site) -> bool:
    try:
        async with session.get(f"{site.ops}/readyz") as answer:
            state = await answer.text()
            return answer.status == 200 and "degraded" not in state
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("seed", [SEED])
def test_nothing_acknowledged_is_lost_and_nothing_lifted_returns(
    folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each agent keeps the address of its file, by which operators find it again.
    monkeypatch.delenv("RATELIMIT_OPS__LISTEN")
    choice = random.Random(seed)
    ledger = Ledger()
    moments = [choice.choice(NAMES) for _ in range(MOMENTS)]
    print(f"seed {seed}: {Counter(moments)}")

    async def main() -> None:
        stores = Stores(folder)
        end = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(stores.stop)
            await stores.start()
            stores.save()
            both = await stack.enter_async_context(sites(folder, stores))
            sources = [f"127.9.0.{number}" for number in range(1, VISITORS + 1)]
            clients = [[site.world.client(source) for site in both] for source in sources]
            tasks = [asyncio.create_task(visit(pair, ledger, end)) for pair in clients]
            tasks += [asyncio.create_task(operate(both, ledger, end, n)) for n in (101, 102)]
            for name in moments:
                await asyncio.sleep(choice.uniform(*PAUSE))
                if name in ("kill", "failover", "restore", "save"):
                    await until(stores.whole, "the stores are whole")
                print(f"{asyncio.get_running_loop().time():.2f} {name}", flush=True)
                await moment(name, stores, choice.choice(both))
                await asyncio.sleep(choice.uniform(*PAUSE))
                stores.revive()
            await until(stores.whole, "the stores are whole")
            end.set()
            await asyncio.gather(*tasks)
            async with aiohttp.ClientSession() as session:
                for site in both:
                    await until(functools.partial(_ready, session, site), "the agent is ready")

            async def agreed() -> bool:
                return not await differences(both, ledger)

            with contextlib.suppress(AssertionError):
                await until(agreed, "the sites hold what was acknowledged")
            problems = await differences(both, ledger)
            assert not problems, f"seed {seed}, {moments}: {problems}"
            assert ledger.blocked and ledger.lifted
            for site in both:
                for key in choice.sample(sorted(ledger.blocked), min(20, len(ledger.blocked))):
                    assert (await site.world.client(key).get()).status == 429, key
                for key in choice.sample(sorted(ledger.lifted), min(20, len(ledger.lifted))):
                    assert (await site.world.client(key).get()).status == 200, key
            print(
                f"{len(moments)} moments, {sum(ledger.answers.values())} requests: "
                f"{dict(ledger.answers)}, slowest {ledger.slowest * 1000:.0f} ms; "
                f"{len(ledger.blocked)} blocked, {len(ledger.lifted)} lifted"
            )
            assert set(ledger.answers) == {"200"}, ledger.answers
            for site in both:
                assert "Traceback" not in site.world.agent_log()

    async def limited() -> None:
        async with asyncio.timeout(120 + 30 * MOMENTS):
            try:
                await main()
            except BaseException:
                for log in sorted(folder.glob("?/agent.log")):
                    print(f"---- {log}\n{log.read_text()[-20_000:]}")
                raise

    asyncio.run(limited())
