"""A reload puts all of a configuration in force, or nothing of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import BaseModel

from ratelimit.app import own
from ratelimit.config import Config
from ratelimit.events.load import Load
from ratelimit.events.webhooks import Webhooks
from ratelimit.exceptions import ConfigError
from ratelimit.node import reload
from tests.helpers.running import Running, running

LIMIT = "[limits.default]\nrate = {rate}\n"


def run(test: Any, folder: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), running(folder, LIMIT.format(rate=5)) as it:
            await test(it)

    uvloop.run(main())


def failing(error: Exception) -> Callable[[Config], Callable[[], object]]:
    def part(_: Config) -> Callable[[], object]:
        raise error

    return part


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError(["file: field: is wrong"]), 422, "is wrong"),
        (OSError(24, "Too many open files"), 503, "Too many open files"),
        (MemoryError(), 503, "MemoryError"),
        (TypeError("not thought of"), 503, "internal error"),
    ],
)
def test_whatever_fails_nothing_is_in_force_and_the_api_says_so(
    tmp_path: Path, error: Exception, status: int, said: str
) -> None:
    async def test(it: Running) -> None:
        changed: list[Config] = []
        fails = [failing(error)]
        it.control.reloader.own(lambda new: lambda: changed.append(new))
        it.control.reloader.own(lambda new: fails[0](new) if fails else lambda: None)
        (tmp_path / "api.toml").write_text(LIMIT.format(rate=7))
        answer = await it.client.post("/v1/reload", json={})
        assert answer.status_code == status
        assert said in answer.text
        assert it.control.limiter.engine.rules[0].limit.rate == 5
        assert changed == []
        last = (await it.client.get("/v1/status")).json()["reload"]
        assert not last["ok"] and said in last["problems"][0]
        fails.clear()
        assert (await it.client.post("/v1/reload", json={})).status_code == 200
        assert it.control.limiter.engine.rules[0].limit.rate == 7
        assert [new.limits["default"].rate for new in changed] == [7]

    run(test, tmp_path)


def test_what_needs_a_restart_is_what_the_documents_say(tmp_path: Path) -> None:
    async def test(it: Running) -> None:
        reloader = it.control.reloader
        own(reloader, it.edges, Webhooks((), "here"), Load(0, 0, 1))
        text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
        (said,) = re.findall(r"agent reads the file again\.\n(.*?) change at once", text, re.DOTALL)
        assert set(re.findall(r"`\[*([a-z_.]+)\]*`", said)) == reloader.owned

        # Each field with another value than at the start, those in tables of an owner as well.
        other = object()
        new = it.control.config.model_copy(
            update={
                name: section.model_copy(update=dict.fromkeys(type(section).model_fields, other))
                if isinstance(section, BaseModel)
                else other
                for name, section in it.control.config
            }
        )
        every = {
            f"{name}.{field}"
            for name, section in it.control.config
            if isinstance(section, BaseModel)
            for field in type(section).model_fields
        }
        owned = {one for one in every if {one, one.partition(".")[0]} & reloader.owned}
        assert set(reloader.restart(new)) == every - owned
        assert {"agent.listen", "ops.listen", "store.url", "haproxy.sockets"} <= every - owned
        assert reloader.restart(it.control.config) == ()

    run(test, tmp_path)


def test_files_that_are_not_read_in_time_are_a_reload_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "READ_TIMEOUT", 0.05)

    async def test(it: Running) -> None:
        loop, goes_on = asyncio.get_running_loop(), asyncio.Event()
        hangs = asyncio.run_coroutine_threadsafe

        def part(_: Config) -> Callable[[], object]:
            hangs(goes_on.wait(), loop).result()
            return lambda: None

        it.control.reloader.own(part)
        (tmp_path / "api.toml").write_text(LIMIT.format(rate=7))
        for _ in range(3):
            answer = await it.client.post("/v1/reload", json={})
            assert answer.status_code == 503
            assert "not read within 0.05 s" in answer.text
        assert it.control.limiter.engine.rules[0].limit.rate == 5
        goes_on.set()
        monkeypatch.setattr(reload, "READ_TIMEOUT", 10)
        assert (await it.client.post("/v1/reload", json={})).status_code == 200
        assert it.control.limiter.engine.rules[0].limit.rate == 7

    run(test, tmp_path)
