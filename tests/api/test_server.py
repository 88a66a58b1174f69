"""What every path has in common; slow and broken clients; health."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.api import connections
from ratelimit.api import server as ops
from ratelimit.api.routes import ROUTES
from ratelimit.config import load
from ratelimit.exceptions import ConfigError
from ratelimit.store import MemoryStore
from tests.helpers.running import block, running, until

if TYPE_CHECKING:
    from aiohttp import web

    from tests.helpers.running import Running

pytestmark = pytest.mark.integration

LATER = 1 << 31

DOCUMENTED = [
    ("GET", "/v1/blocks"),
    ("POST", "/v1/blocks"),
    ("GET", "/v1/blocks/{key}"),
    ("DELETE", "/v1/blocks/{key}"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/clients"),
    ("GET", "/v1/clients/{key}"),
    ("GET", "/v1/limits"),
    ("DELETE", "/v1/limits/{name}/fuse"),
    ("GET", "/v1/status"),
    ("GET", "/v1/nodes"),
    ("GET", "/v1/haproxy"),
    ("POST", "/v1/haproxy/servers/{backend}/{server}"),
    ("GET", "/v1/events"),
    ("POST", "/v1/reload"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/"),
]
"""Of the contract; ``/v1/check`` is none of this address."""


def test_every_path_of_the_contract_is_there_and_described(tmp_path: Path) -> None:
    assert sorted((route.method, route.path) for route in ROUTES) == sorted(DOCUMENTED)
    page = Path(__file__).parents[2] / "docs" / "api.md"
    written = re.findall(r"^\| `(GET|POST|DELETE) ([^`?]+)", page.read_text(), re.MULTILINE)
    assert sorted(written) == sorted(DOCUMENTED)

    async def main() -> None:
        async with running(tmp_path) as api:
            about = (await api.client.get("/openapi.json")).json()
            assert about["openapi"] == "3.1.0"
            described = [
                (method.upper(), path)
                for path, methods in about["paths"].items()
                for method in methods
            ]
            assert sorted(described) == sorted(DOCUMENTED)
            for _, path in DOCUMENTED:
                if path != "/v1/events":
                    there = path.replace("{key}", "192.0.2.1").replace("{name}", "default")
                    answer = await api.client.get(there)
                    assert answer.status_code in (200, 404, 405), path
                    kind = answer.headers["content-type"].partition(";")[0]
                    named = about["paths"][path].get("get", {}).get("responses", {})
                    if named:
                        assert kind in named[str(answer.status_code)]["content"], path

    uvloop.run(main())


def test_head_answers_as_get_without_the_content(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for method, path in DOCUMENTED:
                if method != "GET":
                    continue
                there = path.replace("{key}", "192.0.2.1")
                head = await api.client.head(there)
                assert head.content == b""
                if path == "/v1/events":
                    assert head.status_code == 200
                    assert head.headers["content-type"] == "text/event-stream"
                    continue
                got = await api.client.get(there)
                assert head.status_code == got.status_code
                assert set(head.headers) | {"content-length"} == set(got.headers), path
                assert ("content-length" in head.headers) == bool(got.content), path
                assert head.headers["content-type"] == got.headers["content-type"]
                if "etag" in got.headers:
                    assert head.headers["etag"] == got.headers["etag"]
                    assert head.headers["content-length"] == got.headers["content-length"]
            assert len(api.control.bus) == 0
            for path in ("/v1/reload", "/v1/haproxy/servers/a/b", "/v1/limits/default/fuse"):
                assert (await api.client.head(path)).status_code == 405
            # The connection is in step: what follows an answer without content is the next answer.
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            ask = b" / HTTP/1.1\r\nHost: localhost\r\n"
            writer.write(b"HEAD" + ask + b"\r\nGET" + ask + b"Connection: close\r\n\r\n")
            raw = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            assert raw.count(b"HTTP/1.1 200 OK") == 2
            assert raw.count(b"<html") == 1

    uvloop.run(main())


@pytest.mark.parametrize("token", ["", "Bearer wrong"])
def test_head_needs_the_token_that_get_needs(tmp_path: Path, token: str) -> None:
    (tmp_path / "tokens").write_text(f"ops:view:{'x' * 32}\n")
    (tmp_path / "tokens").chmod(0o600)

    async def main() -> None:
        async with running(tmp_path, f'[ops]\ntoken_file = "{tmp_path}/tokens"\n') as api:
            answer = await api.client.head("/v1/blocks", headers={"Authorization": token})
            assert (answer.status_code, answer.content) == (401, b"")

    uvloop.run(main())


def test_what_may_be_kept_and_what_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for route in ROUTES:
                if route.method != "GET" or "{" in route.path or route.path == "/v1/events":
                    continue
                answer = await api.client.get(route.path)
                if not route.cached:
                    assert answer.headers["cache-control"] == "no-store"
                    assert "etag" not in answer.headers
                    continue
                assert answer.headers["cache-control"] == "private, no-cache"
                tag = answer.headers["etag"]
                known = await api.client.get(route.path, headers={"If-None-Match": tag})
                assert (known.status_code, known.content) == (304, b"")
                assert known.headers["etag"] == tag
                other = await api.client.get(route.path, headers={"If-None-Match": '"x"'})
                assert other.content == answer.content
            for path in ("/v1/nothing", "/v1/blocks/"):
                answer = await api.client.get(path)
                assert answer.status_code == 404
                assert answer.headers["content-type"] == "application/problem+json"
            answer = await api.client.put("/v1/blocks", json={})
            assert answer.status_code == 405
            assert set(answer.headers["allow"].split(",")) >= {"GET", "POST"}

    uvloop.run(main())


def test_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:

            async def health() -> list[tuple[int, str]]:
                answers = [await api.client.get(path) for path in ("/healthz", "/readyz")]
                return [(answer.status_code, answer.json()["status"]) for answer in answers]

            assert await health() == [(200, "ok"), (200, "ready")]
            away = property(lambda store: False, lambda store, up: None)
            monkeypatch.setattr(MemoryStore, "up", away, raising=False)
            assert await health() == [(200, "ok"), (200, "degraded")]
            assert (await api.client.get("/v1/status")).json()["degraded"] is True
            api.control.ready = False
            assert await health() == [(200, "ok"), (503, 503)]

    uvloop.run(main())


def test_a_thousand_slow_clients_disturb_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They send half of a request, or nothing, and hold on for as long as they are let."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.5)

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
                if number % 2:
                    sock.send(b"GET /v1/blocks HTTP/1.1\r\nHost: localhost\r\nX: ")
                if number % 100 == 0:
                    # An operator in between, who connects anew.
                    async with httpx.AsyncClient(trust_env=False) as operator:
                        url = f"http://127.0.0.1:{api.port}/v1/status"
                        assert (await operator.get(url)).status_code == 200
            await until(lambda: api.server.connections.cut >= 1000 - connections.MAX_CONNECTIONS)
            assert len(api.server.connections) <= connections.MAX_CONNECTIONS
            await until(lambda: api.server.connections.cut >= 1000)

    uvloop.run(main())


def test_a_slow_body_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "BODY_TIMEOUT", 0.2)

    async def main() -> None:
        async with running(tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(
                b"POST /v1/blocks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 40\r\n\r\n{"
            )
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert answer.startswith(b"HTTP/1.1 408 ")
            writer.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ("Content-Encoding: gzip\r\nContent-Length: 2", b"{}", 415),
        ("Content-Encoding: deflate\r\nContent-Length: 2", b"{}", 415),
        ("Expect: miracles\r\nContent-Length: 2", b"{}", 417),
        ("Expect: 100-Continue\r\nContent-Length: 2", b"{}", 100),
        ("Content-Length: 3", b"{}", 0),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\n", 0),
    ],
)
def test_a_body_that_is_none(tmp_path: Path, headers: str, body: bytes, status: int) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            head = "POST /v1/blocks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            writer.write(f"{head}\r\n{headers}\r\n\r\n".encode() + body)
            if status:
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert answer.startswith(f"HTTP/1.1 {status} ".encode())
                assert status < 400 or b"Content-Type: application/problem+json\r\n" in answer
            else:
                await until(lambda: any(not one.reading for one in api.server.connections.open()))
            writer.close()
            await until(lambda: not len(api.server.connections))

    with capture_logs() as logs:
        uvloop.run(main())
    assert not [one for one in logs if one["log_level"] == "error"]


class Turns:
    """Notes in which turn of the loop each request is answered, and what is unsent then."""

    def __init__(self, api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turn = 0
        self.answered: list[int] = []
        self.unsent: list[int] = []
        real = api.server._try

        async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
            self.answered.append(self.turn)
            assert request.transport is not None
            self.unsent.append(request.transport.get_write_buffer_size())
            return await real(request, handler)

        monkeypatch.setattr(api.server, "_try", answer)
        self._next()

    def _next(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self._next)


async def connect(
    api: Running, stack: contextlib.AsyncExitStack, receive: int = 0
) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
    return sock


async def operate(api: Running) -> None:
    """Do what an operator does, who connects anew each time."""
    base = f"http://127.0.0.1:{api.port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as operator:
        assert (await operator.get("/v1/status")).status_code == 200
        block = {"key": "192.0.2.1", "ttl": 60}
        assert (await operator.post("/v1/blocks", json=block)).status_code == 201
        assert (await operator.delete("/v1/blocks/192.0.2.1")).status_code == 204


def test_slow_bodies_lock_no_operator_out(tmp_path: Path) -> None:
    slow = (
        b"POST /v1/blocks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 40\r\n\r\n{"
    )

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(600):
                sock = await connect(api, stack)
                sock.send(slow)
                if number % 100 == 99:
                    await operate(api)
            opened = api.server.connections
            assert len(opened) <= connections.MAX_CONNECTIONS
            # One that is still to be accepted would be left open by the server.
            await until(lambda: opened.cut + len(opened) >= 600)
            assert opened.cut >= 600 - connections.MAX_CONNECTIONS

    uvloop.run(main())


@pytest.mark.parametrize("path", [b"/openapi.json", b"/v1/blocks?limit=1000"])
def test_clients_that_ask_much_and_read_nothing_disturb_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT", 0.5)
    ask = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path

    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            turns = Turns(api, monkeypatch)
            for _ in range(300):
                sock = await connect(api, stack, receive=4096)
                with contextlib.suppress(BlockingIOError):
                    sock.send(ask * 100)
            await operate(api)
            await until(lambda: api.server.connections.cut >= 300)
            assert len(turns.answered) > connections.MAX_CONNECTIONS
            assert len(set(turns.answered)) == len(turns.answered), "two in one turn"
            assert not any(turns.unsent), "more is written to a client that does not read"
            await operate(api)

    uvloop.run(main())


def test_what_comes_with_the_connection_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            # Nothing waits here: all of it is there before the server hears of the connection.
            sock = socket.create_connection(("127.0.0.1", api.port))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
            reader, writer = await asyncio.open_connection(sock=sock)
            for _ in range(300):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.close()

    uvloop.run(main())


def test_requests_of_one_read_are_answered_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            turns = Turns(api, monkeypatch)
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
            for _ in range(500):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.close()
            assert len(set(turns.answered)) == 500

    uvloop.run(main())


def test_a_reader_is_let_for_as_long_as_it_reads(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            sock = await connect(api, stack, receive=4096)
            sock.send(b"GET /v1/blocks?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: any(one.stuck for one in api.server.connections.open()))
            [one] = api.server.connections.open()
            limit = connections.WRITE_TIMEOUT
            # It is looked at by a clock that runs ahead, after each part that was read.
            looked = one.since
            while one.stuck:
                left = one.transport.get_write_buffer_size()
                while one.stuck and one.transport.get_write_buffer_size() == left:
                    await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
                looked += 2 * limit
                assert not one.stuck or not one.overdue(looked)

            sock.send(b"GET /v1/blocks?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: one.stuck)
            assert not one.overdue(one.since + limit)
            assert one.overdue(one.since + limit + 1)

    uvloop.run(main())


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\xff\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_what_is_not_http(tmp_path: Path, raw: bytes) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(raw)
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), 5)
                assert answer == b"" or re.match(rb"HTTP/1\.[01] 4\d\d ", answer)
                if answer:
                    assert b"Content-Type: application/problem+json\r\n" in answer
                    assert b"x" * 40 not in answer, "it repeats what was sent"
            writer.close()
            assert (await api.client.get("/healthz")).status_code == 200

    uvloop.run(main())


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        config = f"[ops]\nlisten = '127.0.0.1:{port}'\n"
        with pytest.raises(ConfigError, match=r"ops\.listen: can't listen on 127.0.0.1 port"):
            async with running(tmp_path, config):
                pass

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as taken:
        patch.delenv("RATELIMIT_OPS__LISTEN")
        uvloop.run(main(taken.getsockname()[1]))


def test_a_fault_of_ours_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:

            async def fails() -> None:
                raise RuntimeError("of a test")

            monkeypatch.setattr(api.control.runtime, "report", fails)
            answer = await api.client.get("/v1/haproxy")
            assert answer.status_code == 500
            assert "of a test" not in answer.text
            assert (await api.client.get("/healthz")).status_code == 200

    uvloop.run(main())


def test_the_limits_in_force(tmp_path: Path) -> None:
    config = "[limits.login]\nrate = 5\nwindow = '1m'\nblock = ['5m']\n"
    path = tmp_path / "r.toml"
    path.write_text(config)
    names = ["default", "login", "unknown"]
    assert [limit.name for limit in load(path).limits_in_force()] == names

    async def main() -> None:
        async with running(tmp_path, config) as api:
            limits = (await api.client.get("/v1/limits")).json()["limits"]
            assert [limit["name"] for limit in limits] == names
            assert limits[1]["window"] == "1m"
            assert limits[1]["block"] == ["5m"]
            answer = await api.client.delete("/v1/limits/none/fuse")
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (404, "name")

    uvloop.run(main())
