"""Who is let in, and what no page of another origin can do."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from ratelimit.config import load
from ratelimit.exceptions import ConfigError
from ratelimit.ops.server import tokens_of
from ratelimit.ops.tokens import Role, read_tokens
from tests.ops.running import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ops.running import Running

ANN, BOB, NEXT = "a" * 32, "b" * 32, "n" * 32

TOKENS = f"""
# Who may do what.
ann:operate:{ANN}
bob:view:{BOB}
"""

BODY = {"key": "192.0.2.7", "ttl": "1m"}


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def is_empty(api: Running, **headers: str) -> bool:
    answer = await api.client.get("/v1/blocks", headers=headers)
    return not answer.json()["blocks"]


# Tokens.


def test_tokens_are_read(tmp_path: Path) -> None:
    tokens = read_tokens(write(tmp_path, TOKENS + f"ann:operate:{NEXT}\n"))
    ann, bob, later = (tokens.find(token) for token in (ANN, BOB, NEXT))
    assert ann is not None and bob is not None and later is not None
    assert (ann.name, ann.role) == ("ann", Role.OPERATE) == (later.name, later.role)
    assert (bob.name, bob.role) == ("bob", Role.VIEW)
    for other in ("", ANN[:-1], ANN + "a", "ü", "\udcff"):
        assert tokens.find(other) is None
    assert ANN not in repr(tokens)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no token in it"),
        ("# ann:operate:" + ANN, "there is no token in it"),
        (ANN, "line 1 is not NAME:view:TOKEN"),
        (f"\nann:admin:{ANN}", "line 2 is not NAME:view:TOKEN"),
        (f"an n:view:{ANN}", "line 1 is not"),
        ("ann:view:short", "a token of 16 to 512 characters"),
        (f"ann:view:{ANN}\nbob:view:{ANN}", "line 2 has the token of another line"),
    ],
)
def test_tokens_that_can_not_be_meant(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        read_tokens(write(tmp_path, text))
    assert ANN not in str(caught.value)


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
def test_every_change_is_in_the_log_without_a_secret(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            await api.client.post("/v1/blocks", json=BODY, headers=bearer(ANN))
            await api.client.get("/v1/blocks", headers=bearer(ANN))
            await api.client.delete("/v1/blocks/192.0.2.7", headers=bearer(ANN))
            await api.client.delete("/v1/blocks/a%0Ab%1B[2J", headers=bearer(ANN))
            await api.client.post("/v1/blocks", json=BODY, headers=bearer("wrong" * 5))

    with capture_logs() as lines:
        asyncio.run(main())
    audit = [line for line in lines if line["event"] == "audit"]
    assert [(a["who"], a["peer"], a["what"], a["key"], a["status"]) for a in audit] == [
        ("ann", "127.0.0.1", "add_block", "192.0.2.7", 201),
        ("ann", "127.0.0.1", "lift_block", "192.0.2.7", 204),
        ("ann", "127.0.0.1", "lift_block", "'a\\nb\\x1b[2J'", 404),
    ]
    assert (audit[0]["ttl"], audit[0]["reason"]) == (60, "")
    (refused,) = (line for line in lines if line["event"] == "API request refused")
    assert refused["path"] == "'/v1/blocks'"
    for secret in (ANN, BOB, "wrong" * 5):
        assert secret not in str(lines)


# Browsers.

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
