"""The audit log: every change and every attempt, no secret, bounded."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from ratelimit.api.audit import LINES_PER_SECOND
from ratelimit.process import log as logs
from ratelimit.process.log import AUDIT
from tests.helpers.running import running
from tests.helpers.tokens import ANN, BOB, BODY, TOKENS, bearer, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.integration
def test_every_change_is_in_the_log_without_a_secret(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)
    hidden = "a-secret-key-4711"
    hashes: list[str] = []

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            hashes.append(f"a-se{api.control.limiter.string_key(hidden.encode())}")
            await api.client.post("/v1/blocks", json=BODY, headers=bearer(ANN))
            await api.client.get("/v1/blocks", headers=bearer(ANN))
            await api.client.delete("/v1/blocks/192.0.2.7", headers=bearer(ANN))
            await api.client.delete(f"/v1/blocks/{hidden}", headers=bearer(ANN))
            await api.client.post("/v1/keys", json={"key": hidden}, headers=bearer(ANN))
            await api.client.delete(f"/v1/blocks/{hidden}", headers=bearer("wrong" * 5))
            await api.client.get(f"/v1/clients/{hidden}", headers=bearer("wrong" * 5))
            await api.client.delete(f"/v1/block/{hidden}", headers=bearer(ANN))
            await api.client.delete(f"/v1/blocks/{hidden}%0A", headers=bearer(ANN))
            await api.client.post("/v1/blocks", json=BODY, headers=bearer("wrong" * 5))
            await api.client.post("/v1/reload", json={}, headers=bearer(BOB))
            await api.client.post("/v1/blocks", json=BODY, headers=bearer(ANN) | {"Host": "evil"})
            await api.client.patch("/v1/blocks", headers=bearer(ANN))
            await api.client.delete("/v1/nothing")
            await api.client.request("MKCOL", "/v1/blocks", headers=bearer(ANN))
            await api.client.post("/v1/blocks", content=b"{", headers=bearer(ANN))
            await api.client.get("/v1/status", headers={"Origin": "http://evil"} | bearer(ANN))

    with capture_logs() as lines:
        asyncio.run(main())
    audit = [line for line in lines if line["event"] == "audit"]
    [key] = hashes
    names = ("who", "role", "method", "path", "what", "key", "status")
    assert [tuple(line[name] for name in names) for line in audit] == [
        ("ann", "operate", "POST", "/v1/blocks", "add_block", "192.0.2.7", 201),
        ("ann", "operate", "DELETE", "/v1/blocks/192.0.2.7", "lift_block", "192.0.2.7", 204),
        ("ann", "operate", "DELETE", f"/v1/blocks/{key}", "lift_block", key, 404),
        ("ann", "operate", "POST", "/v1/keys", "show_key", key, 200),
        ("", "nobody", "DELETE", f"/v1/blocks/{key}", "lift_block", key, 401),
        ("", "nobody", "GET", f"/v1/clients/{key}", "explain", key, 401),
        ("ann", "operate", "DELETE", audit[6]["path"], "", "", 404),
        ("ann", "operate", "DELETE", audit[7]["path"], "lift_block", audit[7]["key"], 422),
        ("", "nobody", "POST", "/v1/blocks", "add_block", "", 401),
        ("bob", "view", "POST", "/v1/reload", "reload", "", 403),
        ("", "nobody", "POST", "/v1/blocks", "add_block", "", 421),
        ("ann", "operate", "PATCH", "/v1/blocks", "", "", 405),
        ("", "nobody", "DELETE", audit[12]["path"], "", "", 401),
        ("ann", "operate", "MKCOL", "/v1/blocks", "", "", 405),
        ("ann", "operate", "POST", "/v1/blocks", "add_block", "", 415),
        ("", "nobody", "GET", "/v1/status", "status", "", 403),
    ]
    assert {line["peer"] for line in audit} == {"127.0.0.1"}
    assert {line["forwarded"] for line in audit} == {""}
    assert [place for place, line in enumerate(audit) if not line["why"]] == [0, 1, 3]
    assert (audit[0]["ttl"], audit[0]["reason"]) == (60, "")
    for secret in (ANN, BOB, "wrong" * 5, hidden, hidden[:5]):
        assert secret not in str(lines)


@pytest.mark.integration
def test_no_flood_hides_a_write_and_its_lines_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, TOKENS)
    written = io.StringIO()
    logs.configure(written)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            # All of it in one second, however long it takes.
            tick = api.server.audit.tick
            monkeypatch.setattr(api.server.audit, "tick", lambda: None)
            for _ in range(300):
                assert (await api.client.get("/v1/status")).status_code == 401
            assert (await api.client.delete("/v1/blocks/192.0.2.7")).status_code == 401
            for _ in range(100):
                await api.client.delete("/v1/blocks/192.0.2.8", headers=bearer(BOB))
            tick()

    try:
        asyncio.run(main())
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    audit = [line for line in lines if line["event"] == AUDIT]
    reads = [line for line in audit if line.get("method") == "GET"]
    counts = [line["count"] for line in audit if "count" in line]
    assert len(reads) == LINES_PER_SECOND
    assert counts == [300 - LINES_PER_SECOND]
    (hidden,) = (line for line in audit if line.get("key") == "192.0.2.7")
    assert (hidden["method"], hidden["status"], hidden["who"]) == ("DELETE", 401, "")
    assert sum(line.get("key") == "192.0.2.8" for line in audit) == 100


@pytest.mark.integration
def test_an_attempt_with_an_unknown_expectation_is_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            strange = {"Expect": "miracles"}
            answer = await api.client.delete("/v1/blocks/192.0.2.7", headers=strange)
            assert answer.status_code == 417

    with capture_logs() as lines:
        asyncio.run(main())
    (line,) = (line for line in lines if line["event"] == AUDIT)
    assert (line["key"], line["status"], line["what"]) == ("192.0.2.7", 417, "lift_block")
