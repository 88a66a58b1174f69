"""Sessions with a real HAProxy: tables of all kinds, teaching in both directions, errors."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ratelimit.peers.constants import DataType as D
from ratelimit.peers.constants import KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.session import Session
from tests.helpers.peers_wire import Recorder, Update, ack
from tests.helpers.world import HAPROXY, PATIENCE, free_port, haproxy_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

CLIENT = bytes(10) + b"\xff\xff\x7f\0\0\1"

PLAIN = (
    "server_id,gpt0,gpc0,gpc0_rate(9s),conn_cnt,conn_rate(9s),conn_cur,sess_cnt,sess_rate(9s),"
    "http_req_cnt,http_req_rate(9s),http_err_cnt,http_err_rate(9s),bytes_in_cnt,bytes_in_rate(9s),"
    "bytes_out_cnt,bytes_out_rate(9s),gpc1,gpc1_rate(9s),server_key,http_fail_cnt,"
    "http_fail_rate(9s)"
)
ARRAYS = "http_req_cnt,gpt(3),gpc(2),gpc_rate(2,9s)"

CONFIG = """
global
    localpeer hap1
    stats socket {folder}/stats.sock mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
peers ratelimit
    bind 127.0.0.1:{own}
    server hap1
    server agent 127.0.0.1:{agent}
backend plain
    stick-table type ipv6 size 1k expire 10m peers ratelimit store {plain}
backend arrays
    stick-table type string len 64 size 1k expire 10m peers ratelimit store {arrays}
backend number
    stick-table type integer size 1k expire 10m peers ratelimit store http_req_cnt
backend ipv4
    stick-table type ip size 1k expire 10m peers ratelimit store http_req_cnt
backend bytes
    stick-table type binary len 32 size 1k expire 10m peers ratelimit store http_req_cnt
backend verdicts
    stick-table type ipv6 size 1k expire 10m peers ratelimit store gpt(3)
frontend web
    bind 127.0.0.1:{web}
    http-request track-sc0 src table plain
    http-request track-sc1 req.hdr(x-key) table arrays if {{ req.hdr(x-key) -m found }}
    http-request track-sc1 int(77) table number if {{ path /number }}
    http-request track-sc1 src table ipv4 if {{ path /ipv4 }}
    http-request track-sc1 path,sha2(256) table bytes if {{ path /bytes }}
    http-request sc-inc-gpc0(0)
    acl blocked src,table_gpt(2,verdicts) gt 0
    http-request return status 429 hdr x-until "%[src,table_gpt(0,verdicts)]" if blocked
    default_backend site
backend site
    stick on src table plain
    server app 127.0.0.1:{app}
listen app
    bind 127.0.0.1:{app}
    http-request return status 404 content-type text/plain string missing if {{ path /missing }}
    http-request return status 200 content-type text/plain string fine
"""

VERDICTS = Definition(1, "verdicts", KeyType.IPV6, 16, (D.GPT,), {}, {D.GPT: 3}, 600_000)


class Agent:
    """A listening socket, and the session of the last HAProxy that connected."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(PATIENCE)
        self.port: int = self.server.getsockname()[1]
        self.peer: socket.socket | None = None
        self.received = b""
        self.listener = Taught()
        self.session = Session(self.listener, "agent", 0)

    def accept(self, name: str = "agent") -> None:
        self.drop()
        self.peer = self.server.accept()[0]
        self.peer.settimeout(0.05)
        self.listener = Taught()
        self.session = Session(self.listener, name, time.monotonic_ns())

    def drop(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def until(self, condition: Callable[[], object]) -> None:
        """Read and write until ``condition`` is true."""
        assert self.peer is not None
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            assert self.session.error is None
            with contextlib.suppress(TimeoutError):
                data = self.peer.recv(65536)
                assert data, "HAProxy closes"
                self.received += data
                self.peer.sendall(self.session.receive_data(data, time.monotonic_ns()))
            self.session.look(time.monotonic_ns())
            self.peer.sendall(self.session.take())

    def of(self, table: str) -> list[Update]:
        return [update for update in self.listener.seen.updates if update.table == table]


class Taught(Recorder):
    """Teaches one verdict to a HAProxy that asks."""

    def on_sync_wanted(self, session: Session) -> None:
        super().on_sync_wanted(session)
        session.update(VERDICTS, CLIENT, (1_900_000_000, 0, 2), 300_000)
        session.finished()


class HAProxy:
    """A running HAProxy with the tables of this file."""

    def __init__(self, folder: Path, agent: int) -> None:
        self.web, self.own = free_port(), free_port()
        plain = PLAIN + (",glitch_cnt,glitch_rate(9s)" if haproxy_version() >= (3, 0) else "")
        config = CONFIG.format(
            folder=folder,
            own=self.own,
            agent=agent,
            web=self.web,
            app=free_port(),
            plain=plain,
            arrays=ARRAYS,
        )
        file = folder / "haproxy.cfg"
        file.write_text(config)
        self.types = [D[name.partition("(")[0].upper()] for name in plain.split(",")]
        self.process = subprocess.Popen(
            [*HAPROXY, "-db", "-f", str(file)], stdin=subprocess.DEVNULL
        )

    def ask(self, path: str = "/", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.web, timeout=PATIENCE)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", path, headers=named)
            response = connection.getresponse()
            response.read()
            return response


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.drop()
    made.server.close()


@pytest.fixture
def haproxy(agent: Agent, tmp_path: Path) -> Iterator[HAProxy]:
    made = HAProxy(tmp_path, agent.port)
    yield made
    made.process.kill()
    made.process.wait()


def test_tables_of_all_kinds_are_told(agent: Agent, haproxy: HAProxy) -> None:
    agent.accept()
    agent.until(lambda: agent.session.synced)
    seen = agent.listener.seen
    assert seen.refused == {}
    assert {name: found.key_type.name for name, found in seen.tables.items()} == {
        "plain": "IPV6",
        "arrays": "STRING",
        "number": "INTEGER",
        "ipv4": "IPV4",
        "bytes": "BINARY",
        "verdicts": "IPV6",
    }
    assert seen.tables["plain"].types == tuple(haproxy.types)
    assert set(seen.tables["plain"].periods.values()) == {9_000}
    assert seen.tables["arrays"].sizes == {D.GPT: 3, D.GPC: 2, D.GPC_RATE: 2}
    assert agent.session.name == "hap1"
    assert agent.session.pid == haproxy.process.pid


def test_a_verdict_is_taught_and_what_haproxy_counts_is_told(
    agent: Agent, haproxy: HAProxy
) -> None:
    agent.accept()
    agent.until(lambda: agent.session.synced and "wanted" in agent.listener.seen.events)
    agent.until(lambda: haproxy.ask().status == 429)
    assert haproxy.ask().getheader("x-until") == "1900000000"
    assert agent.session.update(VERDICTS, CLIENT, (0, 0, 0))
    agent.until(lambda: haproxy.ask().status == 200)
    before = len(agent.of("plain"))
    haproxy.ask("/missing", x_key="gold")
    haproxy.ask("/number")
    haproxy.ask("/ipv4")
    haproxy.ask("/bytes")
    agent.until(lambda: len(agent.of("plain")) > before + 1 and agent.of("bytes"))
    agent.until(lambda: ack(VERDICTS.id, 2) in agent.received)
    assert agent.session.unacknowledged == 0
    assert {update.key for update in agent.of("plain")} == {CLIENT}
    assert agent.of("arrays")[-1].key == b"gold"
    assert agent.of("number")[-1].key == b"\0\0\0M"
    assert agent.of("ipv4")[-1].key == CLIENT[12:]
    assert len(agent.of("bytes")[-1].key) == 32
    agent.until(lambda: b"app" in agent.listener.seen.texts)
    definition = agent.listener.seen.tables["plain"]
    places = [kind for kind in definition.types for _ in range(definition.width(kind))]
    last = agent.of("plain")[-1]
    assert last.values[places.index(D.HTTP_ERR_CNT)] == 1
    assert last.values[places.index(D.HTTP_REQ_CNT)] >= 6
    assert last.values[places.index(D.BYTES_OUT_CNT)] > 0


def test_a_reconnected_haproxy_teaches_what_it_knows_with_the_time_that_is_left(
    agent: Agent, haproxy: HAProxy
) -> None:
    agent.accept()
    agent.until(lambda: agent.session.synced and "wanted" in agent.listener.seen.events)
    agent.until(lambda: haproxy.ask().status == 429)
    agent.accept()
    agent.until(lambda: agent.session.synced)
    (verdict,) = agent.of("verdicts")
    assert (verdict.key, verdict.values, verdict.synced) == (CLIENT, (1_900_000_000, 0, 2), False)
    assert 0 < verdict.expiry <= 600_000
    assert all(update.expiry > 0 for update in agent.of("plain"))


def test_haproxy_is_told_that_its_names_are_wrong(agent: Agent, haproxy: HAProxy) -> None:
    agent.accept("other")
    assert agent.peer is not None
    agent.peer.settimeout(PATIENCE)
    data = agent.peer.recv(65536)
    assert agent.session.receive_data(data, 0) == b"503\n"
    assert str(agent.session.error) == "hap1 expects a peer agent, not other"


def test_the_agent_may_dial_haproxy(agent: Agent, haproxy: HAProxy) -> None:
    agent.accept()
    agent.until(lambda: agent.session.synced)
    agent.drop()
    agent.peer = socket.create_connection(("127.0.0.1", haproxy.own))
    agent.peer.settimeout(0.05)
    agent.listener = Taught()
    agent.session = Session(agent.listener, "agent", time.monotonic_ns(), remote="hap1", pid=1)
    agent.peer.sendall(agent.session.take())
    agent.until(lambda: agent.session.synced)
    assert "plain" in agent.listener.seen.tables
