"""``ratelimit doctor`` as a command."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.helpers.plant import Installation, Plant, run


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    return Plant(tmp_path, monkeypatch)


@pytest.mark.integration
def test_the_command(plant: Plant) -> None:
    async def doctor(made: Installation, *more: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ratelimit", "doctor", "--config", str(made.config), *more),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def test() -> None:
        async with plant() as made:
            code, text = await doctor(made, "--probe", made.site)
            assert code == 0 and "0 of 11 checks failed" in text
            made.world.stop_agent()
            assert made.world.haproxy is not None
            made.world.haproxy.terminate()
            made.world.haproxy.wait()
            code, text = await doctor(made, "--json")
            assert code == 1
            broken = {one["subject"] for one in json.loads(text) if one["state"] == "broken"}
            assert f"agent unix://{plant.folder}/spop.sock" in broken
            assert f"haproxy {plant.folder}/haproxy.sock" in broken

    run(test())
