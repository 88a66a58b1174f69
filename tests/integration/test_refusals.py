"""What is exempt, and how a refusal is told to browsers, older clients and gRPC."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.helpers.world import Answer, Client, World, run, until

pytestmark = pytest.mark.integration

FEW = "[limits.default]\nrate = 3\nwindow = '30s'\n"
ONE = f"{FEW}[limits.unknown]\nrate = 1\nwindow = '30s'\n"


async def reasons(w: World, client: Client, **headers: str) -> list[tuple[str, Answer]]:
    """Return the refusal of each reason, one after the other."""
    for _ in range(3):
        assert (await client.get(**headers)).status == 200
    by_agent = await client.get(**headers)
    at_edge = await client.get(**headers)
    w.stop_agent()
    await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
    await w.runtime("clear table t_block")
    alone = await client.get(**headers)
    while alone.status == 200 and not alone.headers.get("grpc-status"):
        alone = await client.get(**headers)
    return [("agent", by_agent), ("edge", at_edge), ("local", alone)]


@pytest.mark.parametrize("agent", [True, False])
def test_what_is_exempt_is_neither_counted_nor_refused(tmp_path: Path, agent: bool) -> None:
    """In one line for all parts; the README has further lines."""

    async def test(w: World) -> None:
        bot, other = w.client("127.2.0.1"), w.client("127.6.0.1")
        for client in (bot, other):
            found = [(await client.get("/robots.txt", X_API_Key="k")).status for _ in range(30)]
            assert found == [200] * 30
        await other.get("/robots.txt", X_Forwarded_Proto="https")
        assert "x-forwarded-proto: https\r\n" in w.head, "our load balancer is believed"
        assert 429 in [(await bot.send("POST", "/login")).status for _ in range(5)], (
            "nothing else is"
        )
        while (await bot.get()).status == 200:
            pass
        assert (await bot.get("/robots.txt")).status == 200, "though it is blocked"
        assert (await bot.get("/healthz")).status == 200
        assert (await bot.send("OPTIONS", "/")).status == 200
        assert (await bot.get(User_Agent="Mozilla/5.0 (compatible; UptimeRobot/2.0)")).status == 200
        if agent:
            assert (await bot.get(User_Agent="Mozilla/5.0")).status == 429
            assert "used:1" in await w.runtime("show table t_block")
        else:
            assert "used:1" in await w.runtime("show table t_alone")

        def verdicts() -> Counter[str]:
            lines = [line for line in w.haproxy_log().splitlines() if "GET /robots.txt" in line]
            return Counter(line.rsplit('"', 1)[1].split()[0] for line in lines)

        await until(lambda: verdicts() == {"exempt": 62}, "the log says so")

    def edit(files: Path) -> None:
        (files / "lb.lst").write_text("127.6.0.0/24\n")
        config = files / "haproxy.cfg"
        mark = "    .if defined(RATELIMIT_EXEMPT)\n"
        text = config.read_text()
        assert mark in text
        lines = re.findall("`(acl rl_exempt .*?)` \\|", (files / "README.md").read_text())
        assert len(lines) == 3
        more = "".join(f"    {line}\n" for line in lines)
        config.write_text(text.replace(mark, more + mark))

    limits = f"{ONE}[limits.login]\nrate = 2\nwindow = '30s'\n[limits.api_key]\nrate = 2\n"
    run(
        tmp_path,
        test,
        limits,
        agent=agent,
        edit=edit,
        RATELIMIT_EXEMPT="path /robots.txt /favicon.ico",
        RATELIMIT_ALONE_RATE="3",
        RATELIMIT_UNKNOWN_RATE="3",
        RATELIMIT_LOGIN_PATH="/login",
        RATELIMIT_API_KEYS="1",
    )


@pytest.mark.parametrize("allowed", ["*", "https://a.example https://b.example"])
def test_pages_of_other_sites_may_read_a_refusal(tmp_path: Path, allowed: str) -> None:
    every = allowed == "*"

    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        preflight = {
            "Access_Control_Request_Method": "PUT",
            "Access_Control_Request_Headers": "x-a",
        }
        answer = await client.send("OPTIONS", "/", Origin="https://b.example", **preflight)
        assert "access-control-allow-origin" not in answer.headers, "it is the application's"
        client = w.client("127.2.0.2")
        for reason, answer in await reasons(w, client, Origin="https://b.example"):
            assert answer.status == 429
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
            origin = answer.headers["access-control-allow-origin"]
            assert origin == ("*" if every else "https://b.example"), reason
            assert answer.headers.get("vary") == (None if every else "Origin")
            credentials = answer.headers.get("access-control-allow-credentials")
            assert credentials == (None if every else "true")
        answer = await client.get(Origin="https://c.example")
        assert answer.status == 429
        assert answer.headers.get("access-control-allow-origin") == ("*" if every else None)

        # What asks whether it may ask is answered, for a client that is refused, too.
        answer = await client.send("OPTIONS", "/", Origin="https://b.example", **preflight)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["access-control-allow-methods"] == "PUT"
        assert answer.headers["access-control-allow-headers"] == "x-a"
        assert answer.headers["access-control-allow-origin"] == origin
        assert (await client.send("OPTIONS", "/", Origin="https://b.example")).status == 429

    run(tmp_path, test, FEW, RATELIMIT_CORS=allowed, RATELIMIT_ALONE_RATE="3")


def test_older_header_fields(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        allowed = await client.get()
        told = {k: v for k, v in allowed.headers.items() if k.startswith("x-ratelimit")}
        assert told == {
            "x-ratelimit-limit": "4",
            "x-ratelimit-remaining": "3",
            "x-ratelimit-reset": allowed.headers["ratelimit"].rpartition("=")[2],
        }
        for reason, answer in await reasons(w, client):
            assert answer.status == 429
            assert answer.headers["x-ratelimit-remaining"] == "0"
            assert answer.headers["x-ratelimit-reset"] == answer.headers["retry-after"]
            assert answer.headers.get("x-ratelimit-limit") == ("4" if reason == "agent" else None)

    limits = FEW.replace("3\n", "4\nheaders = true\n", 1)
    run(tmp_path, test, limits, RATELIMIT_X_HEADERS="1", RATELIMIT_ALONE_RATE="3")


def test_a_grpc_client_gets_a_status_of_grpc(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        grpc = {"Content_Type": "application/grpc+proto"}
        for reason, answer in await reasons(w, client, **grpc):
            assert (answer.status, answer.headers["grpc-status"]) == (200, "8"), reason
            assert answer.headers["content-type"] == "application/grpc"
            assert int(answer.headers["retry-after"]) > 0
            assert answer.body == b""
        assert (await client.get()).status == 429, "to others as ever"

    run(tmp_path, test, FEW, RATELIMIT_GRPC="1", RATELIMIT_ALONE_RATE="3")


def test_the_answer_to_a_grpc_client_has_trailers_only(tmp_path: Path) -> None:
    """All of it in one HEADERS frame that ends the stream (gRPC over HTTP/2, "Responses")."""

    async def test(w: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        http.initiate_connection()
        seen: list[Any] = []
        for _ in range(5):
            stream = http.get_next_available_stream_id()
            fields = {":method": "POST", ":path": "/", ":scheme": "http", ":authority": "x"}
            fields |= {"content-type": "application/grpc", "te": "trailers"}
            http.send_headers(stream, list(fields.items()), end_stream=True)
            writer.write(http.data_to_send())
            seen = []
            while not any(isinstance(one, h2.events.StreamEnded) for one in seen):
                seen += http.receive_data(await asyncio.wait_for(reader.read(65536), 10))
                writer.write(http.data_to_send())
        writer.close()
        assert not any(isinstance(one, h2.events.DataReceived) for one in seen)
        (response,) = (one for one in seen if isinstance(one, h2.events.ResponseReceived))
        assert response.stream_ended is not None
        told = {str(name): str(value) for name, value in response.headers}
        assert (told[":status"], told["grpc-status"]) == ("200", "8")
        assert told["grpc-message"] == "too many requests"

    run(tmp_path, test, FEW, RATELIMIT_GRPC="1")
