"""What every path has in common; slow and broken clients; health."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from ratelimit.api import server as ops
from ratelimit.api.routes import ROUTES
from ratelimit.exceptions import ConfigError
from tests.helpers.running import running, until

pytestmark = pytest.mark.integration


def test_head_answers_as_get_without_the_content(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for route in ROUTES:
                if route.method != "GET":
                    continue
                path = route.path
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
