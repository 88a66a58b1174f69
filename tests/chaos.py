"""Kills, restores, failovers and promotions at random moments: real agents and servers under load.

``python -m tests.chaos --moments 100 [--seed N]`` runs two fleets, one after the other: one whose
Redis is found by a Sentinel, one whose Redis is behind an address that moves. Operators block and
lift on all agents all the while, and clients exceed a limit. At each moment something breaks;
afterwards every agent and the server must have every block that the API has acknowledged, and none
that it has acknowledged to have lifted. Servers save only when a snapshot is taken, so a restart
loses much.

Ends with 1 if anything was lost or came back.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import redis

from tests.helpers.fleet import Node, until
from tests.helpers.servers import PROGRAM, Server

if TYPE_CHECKING:
    from collections.abc import Callable

AGENTS = 3
OPERATORS = 4
PACE = 0.02
"""Seconds from one change of an operator to the next."""

SETTLED = 120
"""Seconds in which all agents must be back and agree."""

CONFIG = """
[ops]
listen = "127.0.0.1:0"
[store]
url = "{url}"
state_dir = "{state}"
[limits.default]
rate = 5
window = "1m"
block = ["1h"]
fuse = 0
"""

State = Literal["blocked", "lifted", "unknown"]


@dataclass
class Key:
    """What is known of a key: what was acknowledged last, and how often that has changed."""

    state: State = "unknown"
    version: int = 0

    def become(self, state: State) -> None:
        self.version += 1
        self.state = state


class Agent:
    """An agent and its API."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        self.node = Node(folder, name, CONFIG.format(url=url, state=folder / f"{name}-state"))
        self.lock = threading.Lock()  # one asks at a time, and none while it is started again
        self.port = 0

    def start(self) -> None:
        with self.lock:
            self.node.start()
            self.port = int(self.node.ops().rpartition(":")[2])

    def stop(self, number: signal.Signals) -> None:
        self.port = 0
        with self.lock:
            self.node.stop(number)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Return status and body; 0 if nothing of it can have happened."""
        api = http.client.HTTPConnection("127.0.0.1", self.port or 1, timeout=5)
        try:
            api.connect()
        except OSError:
            return 0, b""
        try:
            text = None if body is None else json.dumps(body)
            headers = {"content-type": "application/json"} if text else {}
            api.request(method, path, text, headers)
            answer = api.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return -1, b""
        finally:
            api.close()

    def is_up(self) -> bool:
        status, body = self.call("GET", "/v1/status")
        return status == 200 and bool(json.loads(body)["store"]["up"])

    def blocks(self) -> set[str] | None:
        """Return the keys that are blocked, by hand or by the limit; None without an answer."""
        found: set[str] = set()
        cursor = ""
        while True:
            status, body = self.call("GET", f"/v1/blocks?limit=1000&cursor={cursor}")
            if status != 200:
                return None
            page = json.loads(body)
            found.update(entry["key"] for entry in page["blocks"])
            cursor = page["next"]
            if not cursor:
                return found


def follows(server: Server) -> bool:
    """Tell whether a server is a replica, and has all that its master has."""
    with server.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


class World(ABC):
    """Servers, agents, and those who block and lift; ``moments`` are what can happen."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], object]) -> None:
        self.chance = random.Random(seed)
        self.say = say
        self.folder = folder
        self.keys: dict[str, Key] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        # A replica has everything at once, not five seconds later.
        self.servers = [Server(folder, "--repl-diskless-sync-delay", "0") for _ in range(2)]
        self.snapshots: list[Path] = []
        self.agents: list[Agent] = []
        self.now = ""
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._moments: dict[str, Callable[[], object]] = {
            "an agent is killed": self._kill_agent,
            "an agent is restarted": self._restart_agent,
            "restored from a snapshot": self._restore,
            "restored from a snapshot while an agent is killed": self._restore_and_kill,
            "restored from a snapshot while all agents are killed": self._restore_and_kill_all,
            "emptied": self._empty,
        }

    # What differs between the fleets.

    url = ""

    @abstractmethod
    def open(self) -> None:
        """Start the servers."""

    @abstractmethod
    def master(self) -> Server:
        """Return the server that the agents should use."""

    def close(self) -> None:
        for agent in self.agents:
            agent.stop(signal.SIGKILL)
        for server in self.servers:
            server.kill()

    # The run.

    def run(self, moments: int) -> None:
        """Let so many moments pass; raise AssertionError if the fleet does not come back."""
        try:
            self.open()
            for number in range(AGENTS):
                agent = Agent(self.folder, f"agent{number}", self.url)
                self.agents.append(agent)
                agent.start()
            work = [self._operate] * OPERATORS + [self._exceed]
            for number, one in enumerate(work):
                chance = random.Random(f"{self.chance.random()}")
                thread = threading.Thread(target=one, args=(number, chance), daemon=True)
                self._threads.append(thread)
                thread.start()
            for number in range(1, moments + 1):
                self._stop.wait(self.chance.uniform(0.1, 1))
                if self.chance.random() < 0.5 or not self.snapshots:
                    self._snapshot()
                    self._stop.wait(self.chance.uniform(0.1, 1))
                name = self.chance.choice(sorted(self._moments))
                began = time.monotonic()
                self.now = name
                self._moments[name]()
                self._check()
                self.counts[name] += 1
                blocked, lifted = (
                    sum(key.state == state for key in self.keys.values())
                    for state in ("blocked", "lifted")
                )
                self.say(
                    f"{number:4}  {name:53} {time.monotonic() - began:5.1f} s  "
                    f"{blocked:5} blocked {lifted:5} lifted  {len(self.faults)} faults"
                )
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)
            self.close()

    def _check(self) -> None:
        """Wait until all agents and the server agree with what was acknowledged."""
        until(
            lambda: all(agent.is_up() for agent in self.agents),
            "all agents have the store",
            SETTLED,
        )
        wrong: dict[str, str] = {}
        deadline = time.monotonic() + SETTLED / 3
        while time.monotonic() < deadline:
            before = {name: (key.state, key.version) for name, key in list(self.keys.items())}
            self._stop.wait(0.3)  # until the next comparison
            lists = {agent.node.name: agent.blocks() for agent in self.agents}
            lists["the server"] = self._stored()
            wrong = {}
            for where, found in lists.items():
                for name, (state, version) in before.items():
                    if self.keys[name].version != version or state == "unknown":
                        continue
                    if found is None:
                        wrong[where] = "no answer"
                    elif (name in found) != (state == "blocked"):
                        wrong[f"{name} at {where}"] = f"{state}, but it is not"
            if not wrong:
                self.counts["checked"] += sum(state != "unknown" for state, _ in before.values())
                return
        for what, fault in wrong.items():
            self.faults.append(f"{what}: {fault}")
            name = what.partition(" ")[0]
            if name in self.keys:
                self.keys[name].become("unknown")

    def _stored(self) -> set[str] | None:
        try:
            with self.master().client() as client:
                fields = cast("list[bytes]", client.hkeys("ratelimit:{fleet}:blocks"))
        except redis.RedisError:
            return None
        return {field.decode().partition("|")[2] for field in fields if field}

    # The load.

    def _operate(self, number: int, chance: random.Random) -> None:
        """Block and lift keys of one's own, one after the other, on any agent."""
        mine: list[str] = []
        while not self._stop.wait(PACE):
            if not mine or (len(mine) < 300 and chance.random() < 0.3):
                name = f"2001:db8:{number + 1}::{len(mine) + 1:x}"
                mine.append(name)
                self.keys[name] = Key()
            name = chance.choice(mine)
            self._change(name, chance)

    def _change(self, name: str, chance: random.Random) -> None:
        key, agent = self.keys[name], chance.choice(self.agents)
        before = key.state
        key.become("unknown")
        place = name.replace(":", "%3A")
        if before == "lifted" or (before == "unknown" and chance.random() < 0.5):
            status, _ = agent.call("POST", "/v1/blocks", {"key": name, "ttl": "1h"})
            state: State = "blocked" if status == 201 else "unknown"
        else:
            status, _ = agent.call("DELETE", f"/v1/blocks/{place}")
            state = "lifted" if status == 204 else "unknown"
        if status == 0:
            state = before
        self.counts[state if status > 0 else "no answer"] += 1
        key.become(state)

    def _exceed(self, _number: int, chance: random.Random) -> None:
        """Have clients exceed the limit, and lift some of them again."""
        struck: list[str] = []
        while not self._stop.wait(PACE):
            agent = chance.choice(self.agents)
            name = f"198.51.100.{chance.randrange(256)}"
            if name in struck and chance.random() < 0.5:
                self.keys.setdefault(name, Key()).become("unknown")
                if agent.call("DELETE", f"/v1/blocks/{name}")[0] == 204:
                    self.keys[name].become("lifted")
                    struck.remove(name)
                continue
            if not agent.lock.acquire(blocking=False):
                continue
            self.keys.setdefault(name, Key()).become("unknown")
            try:
                if agent.node.ask(name, 10).reason == "block":
                    struck.append(name)
            except (AssertionError, OSError, ValueError, struct.error):
                pass  # it was killed meanwhile
            finally:
                agent.lock.release()

    # What happens.

    def _snapshot(self) -> None:
        """Keep what the master has now; of several, one of the last few is restored."""
        try:
            saved = self.master().save()
        except redis.RedisError:
            return
        copy = self.folder / f"snapshot-{len(self.snapshots)}.rdb"
        shutil.copy(saved, copy)
        self.snapshots.append(copy)

    def _kill_agent(self) -> None:
        self._end_agent(signal.SIGKILL)

    def _restart_agent(self) -> None:
        self._end_agent(signal.SIGTERM)

    def _end_agent(self, number: signal.Signals) -> None:
        agent = self.chance.choice(self.agents)
        agent.stop(number)
        self._stop.wait(self.chance.uniform(0, 0.5))
        agent.start()

    def _restore(self) -> None:
        """Kill the servers, and start them from one of the last snapshots."""
        snapshot = self.chance.choice(self.snapshots[-4:])
        for server in self.servers:
            server.kill()
        for server in self.servers:
            shutil.copy(snapshot, self.folder / f"{server.port}.rdb")
            server.start()

    def _restore_and_kill(self) -> None:
        agent = self.chance.choice(self.agents)
        agent.stop(signal.SIGKILL)
        self._restore()
        agent.start()

    def _restore_and_kill_all(self) -> None:
        for agent in self.agents:
            agent.stop(signal.SIGKILL)
        self._restore()
        for agent in self.chance.sample(self.agents, len(self.agents)):
            agent.start()

    def _empty(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self.master().do("FLUSHALL")


class WithSentinel(World):
    """A master, a replica, and a Sentinel that knows of both."""

    def open(self) -> None:
        first, second = self.servers
        self.sentinel = Server(self.folder)
        first.start()
        second.start()
        second.do("REPLICAOF", "127.0.0.1", first.port)
        # It looks for replicas at its start, and then every ten seconds.
        until(lambda: follows(second), "a replica is there", SETTLED)
        port = self.sentinel.port
        path = self.folder / f"{port}.conf"
        path.write_text(
            f"port {port}\nbind 127.0.0.1\nunixsocket {self.sentinel.socket}\n"
            f"dir {self.folder}\nsentinel monitor main 127.0.0.1 {first.port} 1\n"
            "sentinel down-after-milliseconds main 400\nsentinel failover-timeout main 3000\n"
        )
        assert PROGRAM is not None
        self.sentinel._command = [*PROGRAM, str(path), "--sentinel"]
        self.sentinel.start()
        self.url = f"redis+sentinel://127.0.0.1:{port}/main"
        until(self._whole, "the Sentinel knows the replica", SETTLED)
        self._moments |= {
            "a planned failover": self._fail_over,
            "the master is killed": self._kill_master,
            "the master is killed, and an agent": self._kill_both,
        }

    def close(self) -> None:
        super().close()
        self.sentinel.kill()

    def master(self) -> Server:
        with self.sentinel.client() as client:
            port = client.sentinel_get_master_addr_by_name("main")[1]
        return next(server for server in self.servers if server.port == port)

    def _whole(self) -> bool:
        """Tell whether there is a master, and a replica that is fit to follow it."""
        try:
            master = self.master()
            (other,) = (server for server in self.servers if server is not master)
            with self.sentinel.client() as client:
                known = client.sentinel_slaves("main")
            fit = [one for one in known if one["port"] == other.port and not one["is_sdown"]]
            return follows(other) and bool(fit)
        except (redis.RedisError, KeyError, ValueError):
            return False

    def _fail_over(self) -> None:
        until(self._whole, "a replica that is fit", SETTLED)

        def begun() -> bool:
            try:
                self.sentinel.do("SENTINEL", "FAILOVER", "main")
            except redis.ResponseError:
                return False
            return True

        before = self.master()
        until(begun, "a failover begins", SETTLED)
        until(lambda: self.master() is not before, "a failover ends", SETTLED)

    def _kill_master(self) -> None:
        until(self._whole, "a replica that is fit", SETTLED)
        before = self.master()
        before.kill()
        until(lambda: self.master() is not before, "a failover ends", SETTLED)
        # From nothing, or from what it saved.
        before.start()

    def _kill_both(self) -> None:
        agent = self.chance.choice(self.agents)
        agent.stop(signal.SIGKILL)
        self._kill_master()
        agent.start()


class BehindAnAddress(World):
    """A master and a replica, behind an address that moves from one to the other."""

    def open(self) -> None:
        for server in self.servers:
            server.start()
        self.current = 0
        self._follow()
        self.url = f"unix://{self.folder}/master.sock"
        self._move()
        self._moments |= {
            "a replica is promoted by hand": self._promote,
            "a replica is promoted by hand, and an agent is killed": self._promote_and_kill,
            "killed": self._kill,
        }

    def master(self) -> Server:
        return self.servers[self.current]

    def _move(self) -> None:
        """Have the address lead to the master; connections that are open stay with the old one."""
        address, new = self.folder / "master.sock", self.folder / "next.sock"
        new.symlink_to(self.master().socket)
        new.replace(address)

    def _restore(self) -> None:
        super()._restore()
        self._follow()

    def _follow(self) -> None:
        other = self.servers[1 - self.current]
        other.do("REPLICAOF", "127.0.0.1", self.master().port)

    def _promote(self) -> None:
        old = self.master()
        self.servers[1 - self.current].do("REPLICAOF", "NO", "ONE")
        # What the old one takes from here on, the new one never hears of.
        time.sleep(self.chance.uniform(0, 1.5))
        self.current = 1 - self.current
        self._move()
        time.sleep(self.chance.uniform(0, 0.5))
        if self.chance.random() < 0.5:
            old.do("CLIENT", "KILL", "TYPE", "normal")
        self._follow()

    def _promote_and_kill(self) -> None:
        agent = self.chance.choice(self.agents)
        self._promote()
        agent.stop(signal.SIGKILL)
        agent.start()

    def _kill(self) -> None:
        """Kill the master; it comes back with what it saved last."""
        master = self.master()
        master.kill()
        time.sleep(self.chance.uniform(0, 1))
        master.start()


def run(moments: int, seed: int, say: Callable[[str], object]) -> list[str]:
    """Let so many moments pass, half of them in each fleet; return what was wrong."""
    faults: list[str] = []
    for number, kind in enumerate((WithSentinel, BehindAnAddress)):
        with tempfile.TemporaryDirectory(prefix="rl-") as folder:
            say(f"{kind.__name__}, seed {seed + number}")
            world = kind(Path(folder), seed + number, say)
            try:
                world.run((moments + 1 - number) // 2)
            except BaseException:
                sys.stderr.write(f"while {world.now}\n")
                for agent in world.agents:
                    sys.stderr.write(f"{agent.node.name}: {agent.node.log()[-4000:]}\n")
                raise
            say("      " + ", ".join(f"{n} {name}" for name, n in sorted(world.counts.items())))
            faults += world.faults
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    options = parser.parse_args()
    began = time.monotonic()
    faults = run(options.moments, options.seed, lambda line: print(line, flush=True))
    for fault in faults:
        print(fault)
    print(f"{options.moments} moments in {time.monotonic() - began:.0f} s: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
