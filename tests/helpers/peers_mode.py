"""HAProxy with haproxy/peers.cfg and a scripted agent, and what tests tell and read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.scripted_peer import (
    ScriptedPeer,
    scripted_peer,
)
from tests.helpers.world import (
    LONGEST,
    PEERS_FILE,
    Answer,
    World,
    until,
    world,
)

THROTTLE, BLOCK, DENYLIST, SHADOW_THROTTLE, SHADOW_BLOCK = range(1, 6)
ENFORCE, SHADOW, FUSED, NO_CAP = range(1, 5)


@contextlib.asynccontextmanager
async def peered(
    folder: Path,
    env: dict[str, str],
    edit: Callable[[Path], object] = lambda files: None,
    port: int | None = None,
) -> AsyncIterator[tuple[World, ScriptedPeer]]:
    """Yield HAProxy with the file, and the agent that it is connected to."""
    made = world(folder, agent=False, port=port, edit=edit, env=env, file=PEERS_FILE)
    async with scripted_peer(folder / "peers.sock") as agent, made as w:
        await agent.connected()
        yield w, agent


def behind_balancer(files: Path) -> None:
    """Make 127.6.0.0/24 the network of a load balancer."""
    (files / "lb.lst").write_text("127.6.0.0/24\n")


def peers(
    folder: Path,
    test: Callable[[World, ScriptedPeer], Awaitable[None]],
    edit: Callable[[Path], object] = lambda files: None,
    port: int | None = None,
    **env: str,
) -> None:
    """Run ``test`` with HAProxy and the agent that it is connected to."""

    async def main() -> None:
        async with asyncio.timeout(LONGEST), peered(folder, env, edit, port) as (w, agent):
            await test(w, agent)

    asyncio.run(main())


@dataclass(frozen=True)
class Verdict:
    """A verdict as it is told: its end in milliseconds of the epoch, and its kind."""

    end: int
    kind: int

    def values(self) -> tuple[int, int, int]:
        seconds = -(-self.end // 1000)
        return seconds, seconds * 1000 - self.end, self.kind


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def later(kind: int, seconds: float = 600) -> Sequence[int]:
    """Return the values of a verdict that ends in ``seconds``."""
    return Verdict(now_ms() + round(seconds * 1000), kind).values()


async def tell(
    w: World, agent: ScriptedPeer, table: str, key: str | bytes, values: Sequence[int]
) -> None:
    """Tell an entry, and wait until HAProxy has it."""
    agent.tell(table, key, values)
    shown = " ".join(f"gpt{number}={value}" for number, value in enumerate(values))

    async def there() -> bool:
        return shown in await w.runtime(f"show table ratelimit/{table}")

    await until(there, f"HAProxy has {shown} in {table}")


async def limit(
    w: World, agent: ScriptedPeer, name: str, rate: int, mode: int = ENFORCE, age: int = 0
) -> None:
    """Tell the limit of ``name``, with a window of 10 s, as ``age`` seconds ago.

    The cap of an agent that is not connected has expired.
    """
    if not age:
        await tell(w, agent, "rlc_caps", name, (2**32 - 1 if mode == NO_CAP else 2 * rate,))
    await tell(w, agent, "rlc_limits", name, (rate, mode, int(time.time()) - age, 10))


def fields(w: World) -> list[list[str]]:
    """Return the last fields of each request in HAProxy's log, from the verdict on."""
    lines = [line for line in w.haproxy_log().splitlines() if ' HTTP/1.1" ' in line]
    return [line.rsplit('"', 1)[1].split() for line in lines]


async def logged(w: World, *expected: str) -> None:
    """Wait until the last request is logged with ``expected`` as the last fields."""
    await until(lambda: fields(w)[-1:] == [list(expected)], f"the log ends with {expected}")


def ratelimit(answer: Answer) -> dict[str, str]:
    """Return what a refusal says, without the fields of HTTP."""
    return {**answer.headers, "body": answer.body.decode(), "status": str(answer.status)}
