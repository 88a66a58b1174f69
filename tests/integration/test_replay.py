"""The log of a real HAProxy with the shipped configuration, replayed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from ratelimit.cli.main import main
from tests.helpers.world import World, run, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("log", ["stdout format raw", "stdout format rfc5424"])
def test_what_haproxy_logged_is_replayed(tmp_path: Path, log: str) -> None:
    statuses: list[int] = []

    async def attack(world: World) -> None:
        await world.client("127.0.0.1").statuses(5)
        statuses.extend(await world.client("127.0.0.9").statuses(40))
        await world.client("::1").statuses(5)
        await until(lambda: world.haproxy_log().count("GET / HTTP") == 50, "the log is written")

    limit = '[limits.default]\nrate = 20\nwindow = "1h"\n'
    run(tmp_path, attack, limit, RATELIMIT_LOG=f"{log} local0")
    assert statuses == [200] * 20 + [429] * 20

    result = CliRunner().invoke(
        main,
        ["replay", f"{tmp_path}/haproxy.log", "--config", f"{tmp_path}/ratelimit.toml", "--json"],
    )
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["format"] == "HAProxy HTTP log"
    assert (found["requests"], found["clients"], found["blocks"]) == (50, 3, 1)
    assert found["lines"] == found["requests"] + found["unread"], "HAProxy's notices"
    (offender,) = found["offenders"]
    assert (offender["key"], offender["blocked"], offender["peak"]) == ("127.0.0.9", 20, 40)
