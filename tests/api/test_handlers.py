"""Answers about the state of a node."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

from ratelimit.config import load
from ratelimit.store import MemoryStore
from tests.helpers.running import running

pytestmark = pytest.mark.integration


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
