"""HAProxy as Debian runs it, with a chroot and a user of its own, and an agent of another user.

The folders are made by the commands of docs/operations.md.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ratelimit.haproxy.process import unprivileged
from tests.helpers.world import World, free_port, run, until

pytestmark = [pytest.mark.integration, pytest.mark.root]

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
AGENT = 54_321
"""User and group of the agent; any that root is not."""

# It takes the other identity when all is imported: the interpreter may be in root's own folders.
_AS = """
import encodings.idna, os, sys
user, *groups = map(int, sys.argv.pop(1).split(","))
from ratelimit import config, store
from ratelimit.cli import main as cli
from ratelimit.haproxy import process as haproxy
from ratelimit import serve as service
from ratelimit.store import embedded as memory
from ratelimit.store.redis import store as redis
from ratelimit.api import openapi
os.setgroups(groups)
os.setgid(user)
os.setuid(user)
cli.main(prog_name="ratelimit")
"""


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that every user can enter, as /var/lib is one."""
    folder = Path(tempfile.mkdtemp(prefix="ratelimit-chroot-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def account() -> pwd.struct_passwd:
    found = unprivileged()
    assert found is not None
    return found


def install(outside: Path) -> str:
    """Do what the document says, below ``outside``; return HAProxy's path of the agent's socket."""
    text = DOCUMENT.read_text()
    _, _, section = text.partition("### HAProxy with `chroot`")
    haproxy = account()
    (command,) = re.findall(r"(?m)^    (install -d .* /var/lib/haproxy/ratelimit)$", section)
    jail = outside / "var/lib/haproxy"
    jail.mkdir(parents=True)
    runs = outside / "run/haproxy"  # d /run/haproxy 2775 haproxy haproxy -
    runs.mkdir(parents=True)
    os.chown(runs, haproxy.pw_uid, haproxy.pw_gid)
    runs.chmod(0o2775)
    words = command.replace("-o ratelimit", f"-o {AGENT}").replace(
        "-g haproxy", f"-g {haproxy.pw_gid}"
    )
    words = words.replace("/var/lib/haproxy", str(jail))
    subprocess.run(words.split(), check=True)
    (listen,) = re.findall(r'listen = \["unix:///var/lib/haproxy(/\S+)"\]', section)
    (spop,) = re.findall("`RATELIMIT_SPOP=unix@(\\S+)`", section)
    assert listen == spop
    return str(spop)


def test_the_sockets_are_reached_by_users_of_their_own(tmp_path: Path, outside: Path) -> None:
    spop = install(outside)
    jail, stats = outside / "var/lib/haproxy", outside / "run/haproxy/admin.sock"
    port = free_port()
    state = outside / "state"
    state.mkdir()
    os.chown(state, AGENT, AGENT)
    config = outside / "ratelimit.toml"
    config.write_text(
        f"[agent]\nlisten = ['unix://{jail}{spop}']\n"
        f"[haproxy]\nsockets = ['{stats}']\n[store]\nstate_dir = '{state}'\n"
        "[limits.default]\nwindow = '30s'\n"
    )

    async def test(w: World) -> None:
        with (outside / "agent.log").open("wb") as log:
            agent = subprocess.Popen(
                [
                    *(sys.executable, "-c", _AS, f"{AGENT},{account().pw_gid}"),
                    *("serve", "--config", str(config)),
                ],
                env={**os.environ, "RATELIMIT_OPS__LISTEN": f"127.0.0.1:{port}"},
                stdout=log,
                stderr=log,
            )
        try:

            async def answers() -> bool:
                assert agent.poll() is None, (outside / "agent.log").read_text()
                return await w.agent_is("UP")

            await until(answers, "HAProxy sees the agent")
            for process in (agent.pid, *workers(w)):
                users = re.findall(
                    r"(?m)^Uid:\s+(.*)$", Path(f"/proc/{process}/status").read_text()
                )
                wanted = AGENT if process == agent.pid else account().pw_uid
                assert set(users[0].split()) == {str(wanted)}
                if process != agent.pid:
                    assert os.path.samefile(f"/proc/{process}/root", jail)
            client = w.client("127.2.0.1")
            assert await client.statuses(103) == [200] * 100 + [429] * 3
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
                block = {"key": "203.0.113.9", "ttl": "1h"}
                assert (await api.post("/v1/blocks", json=block)).status_code == 201

            async def at_the_edge() -> bool:
                return "key=::ffff:203.0.113.9 " in await w.runtime("show table t_block")

            await until(at_the_edge, "the agent opens the stats socket")
        finally:
            agent.terminate()
            agent.wait()

    def edit(folder: Path) -> None:
        # Where World looks for it.
        (folder.parent / "haproxy.sock").symlink_to(stats)

    run(
        tmp_path,
        test,
        agent=False,
        edit=edit,
        RATELIMIT_SPOP=f"unix@{spop}",
        RATELIMIT_STATS_SOCKET=str(stats),
        RATELIMIT_USER=account().pw_name,
        RATELIMIT_GROUP=grp.getgrgid(account().pw_gid).gr_name,
        RATELIMIT_CHROOT=str(jail),
    )


def workers(w: World) -> list[int]:
    """Return the processes of HAProxy but the master, which stays root's."""
    assert w.haproxy is not None
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = status.read_text().partition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.endswith("(haproxy") and int(fields.split()[1]) == w.haproxy.pid:
            found.append(int(status.parent.name))
    assert found
    return found
