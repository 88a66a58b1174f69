"""The clients of the load test, for locust: ``make loadtest`` starts the servers and then this.

By itself, against a limiter that runs somewhere, from the root of the checkout:

    python -m locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080

Each simulated client has a loopback address of its own and one connection that is kept alive. All
but the visitors are open-loop: their requests are due on a schedule that does not shift, whether or
not answers come, and are timed from when they were due. The clients use sockets, because locust's
own clients neither bind a source address nor send before the last answer.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import socket
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
from gevent.event import Event
from locust import LoadTestShape, User, between, events, task
from locust.env import Environment

from benchmarks import judgement, loadtest
from benchmarks.harness import report
from benchmarks.judgement import ADMITTED, REFUSED, Account, Kind

_PATIENCE = 10.0  # seconds that a visitor waits for an answer, and any client for a connection
_TOGETHER = 0.005  # seconds; an attacker sends the requests that are due within as one piece
_LATER = 0.05  # seconds that a returning client waits after the end of its block

clock = time.perf_counter


class Session:
    """This run of the test."""

    plan = loadtest.FULL
    accounts: ClassVar[list[Account]] = []
    began = dt.datetime.now(dt.UTC)


class NotServedError(Exception):
    """A visitor or another lawful client was refused, or a client got no answer."""


class Client(User):
    """One client: its address, its connection and its account."""

    abstract = True
    kind: ClassVar[Kind]
    network: ClassVar[int]
    """The second octet of its addresses, 127.NETWORK.0.1 and up."""
    numbers: ClassVar[itertools.count[int]]
    request = b"GET / HTTP/1.1\r\nHost: load.invalid\r\n\r\n"

    def __init_subclass__(cls) -> None:
        cls.numbers = itertools.count()

    def on_start(self) -> None:
        self.number = next(self.numbers)
        source = f"127.{self.network}.{self.number // 250 % 250}.{self.number % 250 + 1}"
        self.source = source, 0
        target = urlsplit(self.host or "")
        self.target = target.hostname or "127.0.0.1", target.port or 80
        self.account = Account(self.kind)
        Session.accounts.append(self.account)
        self.answered = Event()
        self.blocked_until = 0.0
        self.sock: socket.socket | None = None

    def on_stop(self) -> None:
        if self.sock is not None:
            self.sock.close()  # its reader ends
            self.sock = None

    def ask(self, dues: Sequence[float]) -> None:
        """Send requests that were due at these times, without waiting for an answer."""
        now = clock()
        for due in dues:
            self.account.send(due, now)
        try:
            if self.sock is None:
                self.sock = socket.create_connection(self.target, _PATIENCE, self.source)
                self.sock.settimeout(None)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                gevent.spawn(self._read, self.sock)
            self.sock.sendall(self.request * len(dues))
        except OSError:
            self._lost()

    def keep_pace(self, rate: float, together: float = 0.0, until_blocked: bool = False) -> None:
        """Send ``rate`` requests a second, until locust ends this client or it is blocked."""
        start = clock() + random.random() / rate
        number = 0
        while not (until_blocked and self.blocked_until):
            gevent.sleep(max(start + number / rate - clock(), together))
            ready = int((clock() - start) * rate) + 1
            if ready > number:
                self.ask([start + n / rate for n in range(number, ready)])
                number = ready

    def _read(self, sock: socket.socket) -> None:
        """Take the answers of a connection until it is closed."""
        data = b""
        while True:
            try:
                got = sock.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                break
            now = clock()
            data += got
            begin = 0
            while (end := data.find(b"\r\n\r\n", begin)) > 0:
                head = data[begin:end].lower()
                if not head.startswith(b"http/1.1 "):
                    sock.close()  # not HTTP: the requests without an answer are lost
                    break
                body = end + 4 + _field(head, b"\r\ncontent-length: ")
                if len(data) < body:
                    break
                self._answer(int(head[9:12]), now, _field(head, b"\r\nretry-after: "))
                begin = body
            data = data[begin:]
        if self.sock is sock:
            self._lost()

    def _answer(self, status: int, now: float, retry_after: int) -> None:
        if status == REFUSED:
            self.blocked_until = max(self.blocked_until, now + retry_after)
        took = self.account.answer(status, now, self.blocked_until if status == REFUSED else 0.0)
        self.answered.set()
        outcome = {ADMITTED: "admitted", REFUSED: "refused"}.get(status, "failed")
        served = outcome == "admitted" or (outcome == "refused" and not self.kind.lawful)
        self.environment.events.request.fire(
            request_type=outcome,
            name=self.kind.name,
            response_time=took * 1000,
            response_length=0,
            exception=None if served else NotServedError(f"status {status}"),
            context={},
        )

    def _lost(self) -> None:
        """Fail the requests that wait on a closed connection."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        while self.account.waiting:
            self._answer(0, clock(), 0)


def _field(head: bytes, name: bytes) -> int:
    """Return the number in a field of a response, 0 if it is not there."""
    place = head.find(name)
    return int(head[place + len(name) :].partition(b"\r")[0]) if place >= 0 else 0


class Visitor(Client):
    """A person: loads a page and its parts one after another, and then reads it."""

    kind = Kind("visitor", loadtest.DEFAULT, lawful=True, guest=True)
    network = 10
    wait_time = between(1, 3)

    @task
    def visit(self) -> None:
        for _ in range(5):
            self.answered.clear()
            self.ask([clock()])
            if not self.answered.wait(_PATIENCE):
                self._lost()


class Heavy(Client):
    """80, 85, 90 or 95 requests a second, evenly, which is below the limit."""

    kind = Kind("heavy, lawful", loadtest.DEFAULT, lawful=True)
    network = 20

    @task
    def work(self) -> None:
        self.keep_pace(80 + 5 * (self.number % 4))


class Attacker(Client):
    """Three times the limit, even while refused."""

    kind = Kind("attacker, 300/s", loadtest.DEFAULT)
    network = 30

    @task
    def attack(self) -> None:
        self.keep_pace(300, _TOGETHER)


class Flooder(Client):
    """Thirty times the limit."""

    kind = Kind("attacker, 3,000/s", loadtest.DEFAULT)
    network = 40

    @task
    def attack(self) -> None:
        self.keep_pace(3000, _TOGETHER)


class Login(Client):
    """One address of a swarm that tries passwords."""

    abstract = True
    request = b"POST /login HTTP/1.1\r\nHost: load.invalid\r\nContent-Length: 0\r\n\r\n"
    share: ClassVar[float]
    """Its rate as a share of the limit."""

    @task
    def guess(self) -> None:
        rule = self.account.kind.rule
        self.keep_pace(self.share * rule.rate / rule.window)


class JustAbove(Login):
    kind = Kind("login, 1.1 x limit", loadtest.FULL.login)
    network = 50
    share = 1.1


class JustBelow(Login):
    kind = Kind("login, 0.9 x limit", loadtest.FULL.login, lawful=True)
    network = 60
    share = 0.9


class Returning(Client):
    """Exceeds the limit; stops until the end of its block; returns at half the limit."""

    kind = Kind("stops, comes back", loadtest.DEFAULT)
    network = 70

    @task
    def learn(self) -> None:
        self.keep_pace(150, until_blocked=True)
        gevent.sleep(self.blocked_until - clock() + _LATER)
        self.keep_pace(50)


class Shape(LoadTestShape):
    """Ramp, plateau, decline."""

    def tick(self) -> tuple[int, float] | None:
        run = Session.plan
        users = run.users(self.get_run_time())  # type: ignore[no-untyped-call]
        return None if users is None else (users, sum(run.clients.values()) / run.ramp)


def options(parser: ArgumentParser, **_: Any) -> None:
    """Add our arguments to those of locust."""
    parser.add_argument("--quick", action="store_true", help="a short run with few clients")
    parser.add_argument("--report", metavar="FILE", help="write the results there too")


def prepare(environment: Environment, **_: Any) -> None:
    """Choose the clients."""
    assert environment.parsed_options is not None
    random.seed(1)
    if environment.parsed_options.quick:
        Session.plan = loadtest.QUICK
    for user in environment.user_classes:
        user.weight = Session.plan.clients[user.__name__]
        if issubclass(user, Login):
            user.kind = replace(user.kind, rule=Session.plan.login)


def begin(environment: Environment, **_: Any) -> None:
    Session.accounts.clear()
    environment.process_exit_code = 2  # until the end is reached: locust goes on after an error
    Session.began = dt.datetime.now(dt.UTC)


def end(environment: Environment, **_: Any) -> None:
    """Judge the results of the clients, show them, and set the exit code."""
    assert environment.parsed_options is not None
    found = judgement.judge(Session.accounts)
    found.show()
    if file := environment.parsed_options.report:
        took = (dt.datetime.now(dt.UTC) - Session.began).total_seconds()
        quick = environment.parsed_options.quick
        record = report.Record(found, quick, Session.began, round(took, 1), os.getloadavg()[0])
        report.write(Path(file), "loadtest", record)
    environment.process_exit_code = int(not all(target.reached for target in found.targets))


events.init_command_line_parser.add_listener(options)
events.init.add_listener(prepare)
events.test_start.add_listener(begin)
events.test_stop.add_listener(end)
