"""The journals of the agents of a machine in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.store import journal
from tests.helpers.servers import Server, until
from tests.store.conftest import at_both, by_hand, listed, make_node, nodes, run

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.integration


def test_agents_of_a_machine_share_a_folder(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(server.url, 3, state=tmp_path) as fleet:
            paths = {store.journal for store, _ in fleet}
            assert len(paths) == 3
            # Another fleet has files of its own.
            async with nodes(server.url, prefix="other", state=tmp_path) as [(other, _)]:
                assert other.journal not in paths
                await other.save(by_hand("of another fleet"))
            await fleet[2][0].save(by_hand("a"))
            await at_both(fleet, {"a"})
            # One that takes over, while its predecessor still runs, and then does not.
            async with nodes(server.url, state=tmp_path) as [(heir, _)]:
                assert heir.journal not in paths
        assert len(list(tmp_path.iterdir())) == 5
        server.do("FLUSHALL")
        async with nodes(server.url, state=tmp_path) as [(store, seen)]:
            assert seen.clients() == {"a"}
            assert len(list(tmp_path.glob("*.sqlite3"))) == 2, "it has taken over what was left"
            assert [entry.key for entry in await listed(store)] == ["a"]

    run(main)


def test_files_that_are_left_are_taken_over_while_the_agent_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_PURGE", 0)

    async def main() -> None:
        old, of_old = make_node(server.url, "old", state=tmp_path)
        await old.start()
        server.pause()
        await until(lambda: not old.up)
        async with nodes(server.url, state=tmp_path) as [(heir, seen)]:
            of_old.list.apply(entry := by_hand("unsent"))
            old.put(entry)
            await old.close()
            await until(lambda: seen.clients() == {"unsent"})
            await until(lambda: len(list(tmp_path.glob("*.sqlite3"))) == 1)
            server.resume()
            await until(lambda: heir.up)
            assert [entry.key for entry in await listed(heir)] == ["unsent"]

    run(main)
