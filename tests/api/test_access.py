"""Who is let in, and what no page of another origin can do."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from structlog.testing import capture_logs

from ratelimit.api import guesses
from ratelimit.api.connections import MAX_CONNECTIONS
from ratelimit.api.routes import ROUTES
from ratelimit.api.server import tokens_of
from ratelimit.api.tokens import Role
from ratelimit.config import load
from ratelimit.exceptions import ConfigError
from ratelimit.process.log import AUDIT
from tests.helpers.running import running, until
from tests.helpers.tokens import ANN, BOB, BODY, NEXT, TOKENS, bearer, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.running import Running


async def is_empty(api: Running, **headers: str) -> bool:
    answer = await api.client.get("/v1/blocks", headers=headers)
    return not answer.json()["blocks"]


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"[ops]\ntoken_file = '{tmp_path}/none'\n")
    with pytest.raises(ConfigError, match=r"ops\.token_file: .*/none: No such file"):
        tokens_of(load(path))


@pytest.mark.integration
def test_each_token_may_what_its_role_may(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            ask = api.client
            for open_path in ("/healthz", "/readyz", "/"):
                assert (await ask.get(open_path)).status_code == 200
            for closed in ("/metrics", "/openapi.json", "/v1/status", "/v1/nothing"):
                answer = await ask.get(closed)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Bearer")
            for wrong in ("Basic " + ANN, "Bearer", "Bearer x", f"Bearer {ANN}x", ANN):
                answer = await ask.get("/v1/status", headers={"Authorization": wrong})
                assert answer.status_code == 401
            assert (await ask.get("/v1/status", headers=bearer(BOB))).status_code == 200
            answer = await ask.post("/v1/blocks", json=BODY, headers=bearer(BOB))
            assert answer.status_code == 403
            assert (await ask.delete("/v1/blocks/a", headers=bearer(BOB))).status_code == 403
            assert (await ask.post("/v1/reload", json={}, headers=bearer(BOB))).status_code == 403
            answer = await ask.delete("/v1/limits/default/fuse", headers=bearer(BOB))
            assert answer.status_code == 403
            assert await is_empty(api, **bearer(BOB))
            answer = await ask.post("/v1/blocks", json=BODY, headers=bearer(ANN))
            assert (answer.status_code, answer.json()["by"]) == (201, "ann")

    asyncio.run(main())


@pytest.mark.integration
def test_a_reload_changes_the_tokens_unless_they_are_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:

            async def reload(token: str) -> int:
                answer = await api.client.post("/v1/reload", json={}, headers=bearer(token))
                return answer.status_code

            write(tmp_path, TOKENS + f"ann:operate:{NEXT}")
            assert [await reload(NEXT), await reload(ANN), await reload(NEXT)] == [401, 200, 200]
            write(tmp_path, f"ann:operate:{NEXT}")
            async with api.client.stream("GET", "/v1/events", headers=bearer(ANN)) as listening:
                assert [await reload(NEXT), await reload(ANN)] == [200, 401]
                lines = (await listening.aread()).decode().splitlines()  # to its end
            (last,) = re.findall(r"id: (\d+)", lines[0])
            again = {"Last-Event-ID": last, **bearer(NEXT)}
            async with api.client.stream("GET", "/v1/events", headers=again) as listening:
                texts = listening.aiter_lines()
                assert "event: reload" in [await anext(texts) for _ in range(6)]
                assert await reload(NEXT) == 200  # the same tokens end no stream
                assert "event: reload" in [await anext(texts) for _ in range(4)]
            write(tmp_path, "ann:operate:short")
            answer = await api.client.post("/v1/reload", json={}, headers=bearer(NEXT))
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "ops.token_file"
            state = (await api.client.get("/v1/status", headers=bearer(NEXT))).json()
            assert state["reload"]["ok"] is False

    asyncio.run(main())


@pytest.mark.integration
def test_a_forwarded_address_is_believed_of_trusted_proxies_only(tmp_path: Path) -> None:
    async def main() -> None:
        config = "[agent]\ntrusted_proxies = ['127.0.0.1', '198.51.100.0/24']\n"
        async with running(tmp_path, config) as api:
            address = f"http://127.0.0.1:{api.port}/v1/blocks/192.0.2.7"
            for source in ("127.0.0.1", "127.0.0.2"):
                transport = httpx.AsyncHTTPTransport(local_address=source)
                async with httpx.AsyncClient(transport=transport) as client:
                    for forwarded in (
                        "192.0.2.1",
                        "203.0.113.1, 192.0.2.2, 198.51.100.7",
                        "2001:DB8::1",
                        "192.0.2.1, nonsense",
                        "198.51.100.7",
                        "",
                    ):
                        await client.delete(address, headers={"X-Forwarded-For": forwarded})

    with capture_logs() as lines:
        asyncio.run(main())
    audit = [line for line in lines if line["event"] == AUDIT]
    assert [line["forwarded"] for line in audit if line["peer"] == "127.0.0.1"] == [
        *("192.0.2.1", "192.0.2.2", "2001:db8::1", "", "", ""),
    ]
    assert [line["forwarded"] for line in audit if line["peer"] == "127.0.0.2"] == [""] * 6


@pytest.mark.integration
def test_the_role_blocks_may_block_and_lift_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, f"desk:blocks:{NEXT}\n")

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            api.client.headers.update(bearer(NEXT))
            assert (await api.client.get("/v1/status")).status_code == 200
            made = await api.client.post("/v1/blocks", json=BODY)
            assert (made.status_code, made.json()["by"]) == (201, "desk")
            assert (await api.client.delete("/v1/blocks/192.0.2.7")).status_code == 204
            for route in ROUTES:
                if route.role is Role.OPERATE:
                    place = route.path.format(key="a", name="default", backend="b", server="s")
                    answer = await api.client.request(route.method, place, json={})
                    assert answer.status_code == 403, route.path
                    assert "has the role blocks, not operate" in answer.json()["detail"]

    asyncio.run(main())


@pytest.mark.integration
@pytest.mark.parametrize("change", [{"state": "drain"}, {"weight": 0}])
def test_no_role_may_take_the_agents_away(tmp_path: Path, change: dict[str, object]) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            answer = await api.client.post("/v1/haproxy/servers/spoa/agent", json=change)
            assert answer.status_code == 403
            assert "with them the limits" in answer.json()["detail"]
            # Others are asked for, and not there.
            answer = await api.client.post("/v1/haproxy/servers/app/agent", json=change)
            assert answer.status_code == 404
            answer = await api.client.post("/v1/haproxy/servers/spoa/agent", json={"weight": 1})
            assert answer.status_code == 404

    asyncio.run(main())


@pytest.mark.integration
def test_a_peer_that_guesses_waits_and_a_right_token_is_not_locked_out(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            waits = []

            async def pause(_request: object, seconds: float) -> None:
                waits.append(seconds)

            api.server.access._pause = pause
            for number in range(20):
                answer = await api.client.get("/v1/status", headers=bearer(f"{number:032}"))
                assert answer.status_code == 401
            assert waits == [0.125, 0.25, 0.5, 1] + [2] * 12
            waits.clear()
            # Who shows no token learns nothing by it.
            assert (await api.client.get("/v1/status")).status_code == 401
            assert waits == []
            assert (await api.client.get("/v1/status", headers=bearer(ANN))).status_code == 200
            assert waits == [2]
            # Another peer does not wait.
            transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
            async with httpx.AsyncClient(transport=transport) as client:
                address = f"http://127.0.0.1:{api.port}/v1/status"
                assert (await client.get(address, headers=bearer(ANN))).status_code == 200
            assert waits == [2]

    asyncio.run(main())


@pytest.mark.integration
def test_guesses_that_wait_keep_no_operator_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, TOKENS)
    monkeypatch.setattr(guesses, "FIRST", 600.0)
    monkeypatch.setattr(guesses, "LONGEST", 600.0)
    asked = f"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {NEXT}\r\n\r\n"

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            for _ in range(guesses.FREE + 1):
                api.server.access._guesses.note("127.0.0.3", time.monotonic())
            writers = []
            for _ in range(MAX_CONNECTIONS):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", api.port, local_addr=("127.0.0.3", 0)
                )
                writer.write(asked.encode())
                writers.append(writer)
            connections = api.server.connections
            await until(
                lambda: sum(not one.reading for one in connections.open()) == MAX_CONNECTIONS
            )
            for _ in range(20):
                answer = await api.client.get("/v1/status", headers=bearer(ANN))
                assert answer.status_code == 200
            assert connections.cut == 1
            for writer in writers:
                writer.close()

    asyncio.run(main())


PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
]


@pytest.mark.integration
def test_a_page_of_another_origin_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            ask = api.client
            for headers in PAGES:
                assert (await ask.post("/v1/blocks", json=BODY, headers=headers)).status_code == 403
                assert (await ask.delete("/v1/blocks/a", headers=headers)).status_code == 403
                assert (await ask.post("/v1/reload", json={}, headers=headers)).status_code == 403
            # What a form can send without the browser asking first.
            for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
                for path in ("/v1/blocks", "/v1/reload"):
                    answer = await ask.post(
                        path,
                        content=b'{"key":"192.0.2.7","ttl":60}',
                        headers={"Content-Type": kind},
                    )
                    assert answer.status_code == 415
            assert (await ask.post("/v1/reload")).status_code == 415
            answer = await ask.options("/v1/blocks", headers={"Origin": "https://evil.example"})
            assert answer.status_code in (403, 405)
            assert not [h for h in answer.headers if h.lower().startswith("access-control")]
            assert await is_empty(api)
            assert api.control.reloaded is None

    asyncio.run(main())


@pytest.mark.integration
def test_a_page_of_another_origin_reads_nothing_but_a_link_may_be_followed(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for headers in PAGES[:-1]:
                assert (await api.client.get("/v1/blocks", headers=headers)).status_code == 403
            assert (await api.client.get("/", headers=PAGES[-1])).status_code == 200
            own = {"Origin": f"http://127.0.0.1:{api.port}", "Sec-Fetch-Site": "same-origin"}
            answer = await api.client.post("/v1/blocks", json=BODY, headers=own)
            assert answer.status_code == 201
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["x-content-type-options"] == "nosniff"

    asyncio.run(main())


@pytest.mark.integration
def test_on_loopback_a_foreign_name_is_not_answered_to(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for host in (
                "evil.example",
                "evil.example:9191",
                "192.0.2.1",
                "127.0.0.1.evil.example",
                "localhost.evil.example",
                "[::2]",
                "[",
                "",
            ):
                answer = await api.client.get("/v1/blocks", headers={"Host": host})
                assert answer.status_code in (400, 421), host
            for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:9191"):
                answer = await api.client.get("/v1/blocks", headers={"Host": host})
                assert answer.status_code == 200, host

    asyncio.run(main())
