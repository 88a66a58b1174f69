"""Who asks the containers: machines outside, and operators inside."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.images.engine import until
from tests.images.stack import Container, Stack

RATE = 100
"""Requests a second of a client, of the default limit."""

_STATUS = "%{http_code}\\n"
_SPOE_ERROR = -2
"""Which word of a line that HAProxy logs (``log-format`` in haproxy.cfg)."""


@dataclass
class Client:
    """A machine with an address of its own."""

    namespace: str
    address: str

    def _inside(self, *command: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", Path(self.namespace).name, *command)

    def curl(self, *arguments: str) -> list[str]:
        """Return the lines that curl prints."""
        command = self._inside("curl", "-s", "--max-time", "20", *arguments)
        return subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.splitlines()

    @contextlib.contextmanager
    def idle(self, server: Container) -> Iterator[None]:
        """Keep a connection open that has had its answer, for as long as the server does."""
        script = (
            f"exec 3<>/dev/tcp/{server.address}/8080;"
            "printf 'HEAD / HTTP/1.1\r\nHost: test.invalid\r\n\r\n' >&3; exec cat <&3"
        )
        command = self._inside("bash", "-c", script)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                assert process.stdout.readline().startswith("HTTP/1.1 200")
                yield
            finally:
                process.kill()

    def floods(
        self,
        server: Container,
        *how: str,
        path: str = "/",
        limit: int = RATE,
        window: float = 1.0,
        requests: int = 3 * RATE,
    ) -> None:
        """Send more requests than a limit allows in a window, some at once, and expect so many to
        pass; ``how`` are arguments of curl.

        On a busy machine windows may end meanwhile, and the agent may answer too late for some of
        the requests. These pass as well; HAProxy logs the latter with an error.
        """
        begun = time.monotonic()
        url = f"http://{server.address}:8080{path}?[1-{requests}]"
        at_once = ("--parallel", "--parallel-max", "10")
        answers = Counter(self.curl(*at_once, *how, "-o", "/dev/null", "-w", _STATUS, url))
        windows = 1 + int((time.monotonic() - begun) / window)
        assert answers.keys() == {"200", "429"}, answers
        assert answers["200"] >= limit

        def explained() -> bool:
            logged = [
                line.split() for line in server.log().splitlines() if f" {self.address}:" in line
            ]
            unanswered = sum(words[_SPOE_ERROR] != "-" for words in logged)
            return answers["200"] <= windows * limit + unanswered

        until(explained, f"HAProxy has logged why {answers} passed in {windows} windows")

    def floods_login(self, server: Container) -> None:
        """Likewise with logins, which HAProxy alone does not limit."""
        post = ("--request", "POST")
        self.floods(server, *post, path="/login", limit=10, window=10.0, requests=30)

    def statuses(self, server: Container, count: int = 1) -> Counter[str]:
        """Send requests as the README does, and count their answers."""
        url = f"http://{server.address}:8080/[1-{count}]"
        return Counter(self.curl("-o", "/dev/null", "-w", _STATUS, url))

    def gets(self, status: str, server: Container) -> None:
        """Wait until a request is answered with a status."""
        until(lambda: self.statuses(server) == {status: 1}, f"{server.name} answers {status}")

    def sees_agent(self, server: Container) -> None:
        """Wait until HAProxy's exporter says that the agent is up."""
        url = f"http://{server.address}:8405/metrics"
        sample = 'haproxy_server_status{proxy="spoa",server="agent",state="UP"} 1'
        until(lambda: sample in self.curl(url), f"{server.name} has its agent for up")


def client(up: Stack) -> Client:
    return Client(*up.switch.port())


def one(up: Stack, name: str) -> Container:
    (found,) = up.of(name)
    return found


def ask(agent: Container, *words: str) -> str:
    """Run a command of ours inside the agent's container."""
    return agent.execute("ratelimit", *words, "--token-file", "/run/secrets/operator_token")


def knows_block(agent: Container, key: str) -> None:
    """Wait until an agent lists a block."""

    def listed() -> bool:
        return key in {block["key"] for block in json.loads(ask(agent, "blocks", "--json"))}

    until(listed, f"{agent.name} knows that {key} is blocked")


def block(agent: Container, key: str) -> None:
    """Block an address for longer than any test takes."""
    _change(agent, "add", key, "--ttl", "1h")


def lift(agent: Container, key: str) -> None:
    _change(agent, "remove", key)


def _change(agent: Container, *words: str) -> None:
    """Change the blocks; Redis may be so busy that the others learn of it later."""
    try:
        ask(agent, "blocks", *words)
    except AssertionError as error:
        if "the other nodes follow when the store is up again" not in str(error):
            raise


def uses_store(agent: Container) -> bool:
    up: bool = json.loads(ask(agent, "status", "--json"))["store"]["up"]
    return up


@dataclass
class Visitor:
    """Asks all the time, at a tenth of its limit, and counts the answers.

    ``asking`` is held while a request is under way.
    """

    client: Client
    server: Container
    answers: Counter[str] = field(default_factory=Counter)
    asking: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def goes_on(self, requests: int = 10) -> None:
        """Wait until it has got some more answers."""
        goal = self.answers.total() + requests
        until(lambda: self.answers.total() >= goal, f"{requests} more answers: {self.answers}")

    def _visit(self) -> None:
        while not self._over.is_set():
            with self.asking:
                self.answers += self.client.statuses(self.server)
            self._over.wait(10 / RATE)
