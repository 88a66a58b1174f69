"""Who asks the containers: machines outside, and operators inside."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.images.stack import Container, Stack

RATE = 100
"""Requests a second of a client, of the default limit."""


@dataclass
class Client:
    """A machine with an address of its own."""

    namespace: str
    address: str

    def curl(self, *arguments: str) -> list[str]:
        """Return the lines that curl prints."""
        name = Path(self.namespace).name
        command = ("ip", "netns", "exec", name, "curl", "-s", "--max-time", "20", *arguments)
        return subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.splitlines()

    def statuses(self, server: Container, count: int = 1) -> Counter[str]:
        """Send requests as the README does, and count their answers."""
        url = f"http://{server.address}:8080/[1-{count}]"
        return Counter(self.curl("-o", "/dev/null", "-w", "%{http_code}\\n", url))


def client(up: Stack) -> Client:
    return Client(*up.switch.port())


def one(up: Stack, name: str) -> Container:
    (found,) = up.of(name)
    return found


def ask(agent: Container, *words: str) -> str:
    """Run a command of ours inside the agent's container."""
    return agent.execute("ratelimit", *words, "--token-file", "/run/secrets/operator_token")


def blocked(agent: Container) -> set[str]:
    return {block["key"] for block in json.loads(ask(agent, "blocks", "--json"))}


def block(agent: Container, key: str) -> None:
    """Block an address for longer than any test takes."""
    ask(agent, "blocks", "add", key, "--ttl", "1h")


def uses_store(agent: Container) -> bool:
    up: bool = json.loads(ask(agent, "status", "--json"))["store"]["up"]
    return up


@dataclass
class Visitor:
    """Asks all the time, at a tenth of its limit, and counts the answers."""

    client: Client
    server: Container
    answers: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _visit(self) -> None:
        while not self._over.is_set():
            self.answers += self.client.statuses(self.server)
            self._over.wait(10 / RATE)
