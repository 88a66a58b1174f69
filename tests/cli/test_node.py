"""The commands that ask a running node: what they print, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from ratelimit.api.client import Client as ApiClient
from ratelimit.cli import node as operate
from ratelimit.cli.main import main
from tests.helpers import wire
from tests.helpers.forms import responder
from tests.helpers.running import EDGE, Running, block, running, until
from tests.helpers.world import LONGEST

LATER = 1 << 31
TOKEN = "t" * 32


@dataclass
class Shell:
    """Runs commands against a node."""

    api: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api.port}"

    async def __call__(self, *words: str, stdin: str = "", **env: str) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, main, words, prog_name="ratelimit", input=stdin,
            env={"RATELIMIT_URL": self.url, "COLUMNS": "120", **env},
        )  # fmt: skip

    async def well(self, *words: str, **env: str) -> str:
        """Return what a command that ends well prints."""
        result = await self(*words, **env)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def fails(self, code: int, *words: str, **env: str) -> str:
        """Return what a command that does not says on standard error, in one line."""
        result = await self(*words, **env)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.stderr


def run(
    folder: Path, test: Callable[[Shell], Awaitable[None]], config: str = "", clients: int = 1000
) -> None:
    async def go() -> None:
        async with asyncio.timeout(LONGEST), running(folder, config, clients) as api:
            await test(Shell(api))

    with capture_logs():  # the node's log would be among what a command prints
        asyncio.run(go())


def hit(api: Running, address: str, times: int) -> None:
    engine = api.control.limiter.engine
    engine.at(api.control.sync.now())
    frame = wire.notify(wire.message("default", key=wire.address(address))) * times
    assert responder(engine).answer(frame, 0, 16_384) == len(frame)
    responder(engine).take()


# ---- blocks --------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_client_is_blocked_shown_and_lifted(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        made = await shell("blocks", "add", "192.0.2.77/24", "--ttl", "2h", "--reason", "scrapes")
        assert made.exit_code == 0
        assert re.fullmatch(r"192\.0\.2\.0/24 is blocked for 2h\n", made.stdout)
        assert made.stderr == "192.0.2.77/24 has host bits; the network is 192.0.2.0/24\n"
        for words in (("blocks",), ("blocks", "list"), ("blocks", "--q", "scrap")):
            shown = await shell.well(*words)
            assert re.search(r"192\.0\.2\.0/24 +\* +(2h|1h 59m) +0 +operator +scrapes", shown)
            assert "1 entry" in shown
        assert "0 entries" in await shell.well("blocks", "--q", "nothing")
        [entry] = json.loads(await shell.well("blocks", "--json"))
        assert (entry["key"], entry["by"], entry["reason"]) == (
            "192.0.2.0/24", "operator", "scrapes"
        )  # fmt: skip
        gone = await shell.well("blocks", "remove", "192.0.2.0/24", "--json")
        edges = [{"socket": EDGE, "ok": True, "problem": ""}]
        assert json.loads(gone) == {"lifted": "192.0.2.0/24", "edges": []}
        assert json.loads(await shell.well("blocks", "--json")) == []
        made_json = json.loads(await shell.well("blocks", "add", "a", "--ttl", "60", "--json"))
        assert made_json["until"] - made_json["since"] == 60
        assert made_json["edges"] == edges
        key = shell.api.control.limiter.string_key(b"a")
        assert await shell.well("blocks", "remove", "a") == f"{key} is unblocked\n"

    run(tmp_path, test)


@pytest.mark.integration
def test_an_edge_that_does_not_confirm_is_named(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        shell.api.edges.fails = True
        why = "it does not answer; it is updated as soon as it answers"
        made = await shell("blocks", "add", "192.0.2.7", "--ttl", "60")
        assert (made.exit_code, made.stdout) == (0, "192.0.2.7 is blocked for 1m\n")
        assert made.stderr == f"HAProxy at {EDGE} will ask the agent about it: {why}\n"
        gone = await shell("blocks", "remove", "192.0.2.7")
        assert (gone.exit_code, gone.stdout) == (1, "192.0.2.7 is unblocked\n")
        assert gone.stderr == f"HAProxy at {EDGE} may still block it: {why}\n"
        await shell("blocks", "add", "192.0.2.7", "--ttl", "60")
        gone = await shell("blocks", "remove", "192.0.2.7", "--json")
        assert gone.exit_code == 1
        failed = {"socket": EDGE, "ok": False, "problem": why}
        assert json.loads(gone.stdout) == {"lifted": "192.0.2.7", "edges": [failed]}

    run(tmp_path, test)


@pytest.mark.integration
def test_a_list_of_several_pages_is_shown_whole(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        for number in range(2500):
            shell.api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
        keys = [entry["key"] for entry in json.loads(await shell.well("blocks", "--json"))]
        assert len(keys) == len(set(keys)) == 2500
        assert "17 entries" in await shell.well("blocks", "-n", "17")

    run(tmp_path, test, clients=8000)


@pytest.mark.integration
def test_a_string_is_in_no_path_and_in_no_output(tmp_path: Path) -> None:
    key = "sk_live_4f1c9b07a2d8e6"

    async def test(shell: Shell) -> None:
        asked: list[str] = []
        real = ApiClient._ask

        def ask(client: Any, method: str, path: str, body: bytes | None = None) -> Any:
            asked.append(path)
            return real(client, method, path, body)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ApiClient, "_ask", ask)
            shown = f"sk_l{shell.api.control.limiter.string_key(key.encode())}"
            made = await shell("blocks", "add", "-", stdin=f"{key}\n")
            assert made.stdout == f"{shown} is blocked for 10m\n"
            known = json.loads(await shell.well("explain", key, "--json"))
            assert known["key"] == shown and len(known["by_hand"]) == 1
            assert shown in await shell.well("explain", shown[4:])
            gone = await shell("blocks", "remove", "-", "--json", stdin=key)
            assert json.loads(gone.stdout)["lifted"] == shown
            failed = await shell.fails(1, "blocks", "remove", key)
        assert key not in failed + made.output + gone.output
        assert not any(key in path for path in asked)

    run(tmp_path, test)


@pytest.mark.integration
def test_what_is_meant_otherwise_has_to_be_said(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        assert "is it 192.0.2.0/24?" in await shell.fails(2, "blocks", "add", "192.0.2.*")
        assert "is it 192.0.2.0/24?" in await shell.fails(2, "explain", "192.0.2.*")
        assert "needs force" in await shell.fails(2, "blocks", "add", "::/0")
        assert "at least 1 character" in await shell.fails(2, "blocks", "add", "")
        assert "at least 1 character" in await shell.fails(2, "blocks", "remove", "")
        assert "::/0 is blocked" in await shell.well("blocks", "add", "::/0", "--force")
        made = await shell("blocks", "add", "2001:db8::7")
        assert "to block the client, block 2001:db8::/64" in made.stderr

    run(tmp_path, test)


@pytest.mark.integration
def test_what_a_client_sent_changes_no_terminal(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        shell.api.control.limiter.apply(block("evil\x1b[2J\n\u202e[red]x", LATER))
        shown = await shell.well("blocks")
        assert "\x1b" not in shown and "\u202e" not in shown
        assert r"evil\x1b[2J\n\u202e[red]x" in shown

    run(tmp_path, test, "[limits.default]\nsecret = false\n")


# ---- looking -------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_busiest(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        hit(shell.api, "192.0.2.1", 30)
        hit(shell.api, "192.0.2.2", 60)
        hit(shell.api, "192.0.2.3", 90)
        hit(shell.api, "192.0.2.4", 150)  # it begins anew when its block ends
        found = json.loads(await shell.well("top", "--json"))
        assert [one["key"] for one in found] == ["192.0.2.3", "192.0.2.2", "192.0.2.1"]
        shown = await shell.well("top", "-n", "2", "--once")
        assert shown.index("192.0.2.3") < shown.index("192.0.2.2") and "192.0.2.1" not in shown
        blocked = json.loads(await shell.well("top", "--sort", "blocked", "--json"))
        assert [one["key"] for one in blocked] == ["192.0.2.4"]
        assert "n: must be" in await shell.fails(2, "top", "-n", "0")

    run(tmp_path, test, "[limits.default]\nwindow = '1h'\n")


@pytest.mark.integration
def test_everything_known_about_a_key(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        hit(shell.api, "192.0.2.1", 150)
        shown = await shell.well("explain", "192.0.2.1")
        assert re.search(r"default +192\.0\.2\.1 +\d+ +100 +1s +\d+ +1 +\d+s", shown)
        assert "over 100 in 1s" in shown
        known = json.loads(await shell.well("explain", "198.51.100.9", "--json"))
        assert known["lists"] == "deny"
        assert "198.51.100.9 is on the deny list" in await shell.well("explain", "198.51.100.9")
        assert "key: must be" in await shell.fails(2, "explain", "1.2.3.400")

    run(tmp_path, test, "[lists]\ndeny = ['198.51.100.0/24']\n")


@pytest.mark.integration
def test_the_state_of_a_node(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        hit(shell.api, "192.0.2.1", 3)
        shown = await shell.well("status")
        for words in ("here", "ready", "memory, up", "1 of 1,000", r"default +3 +0 +0 +0"):
            assert re.search(words, shown), words
        state = json.loads(await shell.well("status", "--json"))
        assert (state["node"], state["checks"]) == ("here", 3)
        assert [node["here"] for node in state["fleet"]] == [True]
        assert state["store"]["journal"] == str(tmp_path / "state" / "blocklist.sqlite3")
        assert "journal" not in shown
        shell.api.control.store.journal_problem = "no space left"
        assert re.search("journal +no space left", await shell.well("status"))

    run(tmp_path, test)


@pytest.mark.integration
def test_a_reload(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        assert await shell.well("reload") == "reloaded\n"
        (tmp_path / "api.toml").write_text("[limits.default]\nrate = 0\n")
        assert "limits.default.rate: must be" in await shell.fails(2, "reload")
        assert "last reload" in await shell.well("status")

    run(tmp_path, test)


# ---- mistakes ------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ("blocks", "add", "1.2.3.400"), "key: must be an IPv4 or IPv6 address or network"),
        (2, ("blocks", "add", "a", "--ttl", "31d"), "ttl: must be from 1s to 30d"),
        (2, ("blocks", "add", "a", "--ttl", "soon"), "ttl: "),
        (2, ("blocks", "add"), "add takes a KEY"),
        (2, ("blocks", "list", "a"), "list takes no KEY"),
        (2, ("blocks", "nonsense"), "nonsense"),
        (1, ("blocks", "remove", "192.0.2.1"), "key: is not on the blocklist"),
        (2, ("status", "--url", "localhost:1"), "must be http://HOST:PORT"),
        (2, ("status", "--url", "http://[::1"), "must be http://HOST:PORT"),
        (2, ("status", "--url", "http://127.0.0.1:99999"), "must be http://HOST:PORT"),
        (2, ("status", "--url", "http://ann:pw@127.0.0.1:1"), "must have no user or password"),
        (2, ("blocks", "remove", "\udcff"), "is not UTF-8"),
        (2, ("blocks", "list", "--q", "\udcff"), "is not UTF-8"),
        (2, ("blocks", "list", "-n", "0"), "0 is not in the range"),
        (1, ("status", "--token-file", "/no/such"), "/no/such: No such file"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    tmp_path: Path, code: int, words: tuple[str, ...], said: str
) -> None:
    async def test(shell: Shell) -> None:
        assert said in await shell.fails(code, *words)

    run(tmp_path, test)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(main, ["status", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"ratelimit: nothing listens on http://127.0.0.1:{port}")


@pytest.mark.parametrize("said", [b"[]", b"null", b"{}", b"<html>", b""])
@pytest.mark.parametrize("words", [("blocks",), ("top",), ("status",), ("haproxy", "servers")])
def test_another_program_is_there(said: bytes, words: tuple[str, ...]) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + said)
        writer.close()

    async def go() -> Result:
        server = await asyncio.start_server(other, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await asyncio.to_thread(CliRunner().invoke, main, [*words, "--url", url])

    result = asyncio.run(go())
    assert result.exit_code == 1
    assert result.stderr.startswith("ratelimit: http://127.0.0.1:")
    assert not result.stdout


@pytest.mark.integration
def test_a_blocklist_is_printed_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "_PAGE", 2)

    async def test(shell: Shell) -> None:
        control = shell.api.control
        for number in range(5):
            control.limiter.apply(block(f"192.0.2.{number}", LATER))
        entries = json.loads(await shell.well("blocks", "--json"))
        assert [entry["key"] for entry in entries] == [f"192.0.2.{n}" for n in range(5)]

        page = control.page

        def first_alone(after: tuple[str, str], *rest: Any) -> Any:
            assert after == ("", "")
            return page(after, *rest)

        monkeypatch.setattr(control, "page", first_alone)
        result = await shell("blocks", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "internal error" in result.stderr

    run(tmp_path, test)


@pytest.mark.integration
def test_a_reader_may_go_and_a_terminal_may_know_few_signs(tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        shell.api.control.limiter.apply(block("\N{SNOWMAN}", LATER))

        async def ends(code: int, *words: str, stdout: int) -> bytes:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ratelimit", *words, "--url", shell.url,
                env={**os.environ, "PYTHONIOENCODING": "ascii"},
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            shown, said = await asyncio.wait_for(process.communicate(), 30)
            assert (process.returncode, said) == (code, b"")
            return shown

        assert b"\\u2603" in await ends(0, "blocks", stdout=asyncio.subprocess.PIPE)
        for words in (("blocks",), ("blocks", "--json"), ("blocks", "--watch", "--json")):
            reader, writer = os.pipe()
            os.close(reader)
            try:
                await ends(1, *words, stdout=writer)
            finally:
                os.close(writer)

    run(tmp_path, test, "[limits.default]\nsecret = false\n")


@pytest.mark.integration
def test_a_token_from_a_file_or_the_environment(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# operators\nann:view:{TOKEN}\n")
    tokens.chmod(0o600)

    async def test(shell: Shell) -> None:
        assert "--token-file or RATELIMIT_TOKEN" in await shell.fails(1, "status")
        await shell.well("status", RATELIMIT_TOKEN=TOKEN)
        await shell.well("status", RATELIMIT_TOKEN=f"{TOKEN}\r\n")
        for wrong in (f"{TOKEN}\nx", f"{TOKEN}ü", f"{TOKEN} x"):
            refused = await shell.fails(2, "status", RATELIMIT_TOKEN=wrong)
            assert "a token must consist of printable ASCII" in refused
            assert TOKEN not in refused
        await shell.well("status", "--token-file", str(tokens))
        refused = await shell.fails(1, "blocks", "add", "a", "--token-file", str(tokens))
        assert "the token of ann has the role view, not blocks" in refused

    run(tmp_path, test, f"[ops]\ntoken_file = '{tokens}'\n")


# ---- live ----------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(shell: Shell, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """Run a command at a terminal; yield what it has written so far too."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    written: list[str] = []
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(OSError):  # it has ended
            written.append(os.read(ours, 1 << 16).decode(errors="replace"))

    # A program that a script runs in the background ignores it, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "ratelimit", *words],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "RATELIMIT_URL": shell.url, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    loop.add_reader(ours, read)
    try:
        yield process, written
    finally:
        loop.remove_reader(ours)
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.integration
@pytest.mark.parametrize(("words", "times"), [(("top",), 50), (("blocks", "list", "--watch"), 150)])
def test_what_is_live_shows_what_comes_until_ctrl_c(
    tmp_path: Path, words: tuple[str, ...], times: int
) -> None:
    async def test(shell: Shell) -> None:
        hit(shell.api, "192.0.2.1", times)
        with terminal(shell, *words) as (process, written):
            await until(lambda: "192.0.2.1" in "".join(written), 20)
            hit(shell.api, "192.0.2.2", times)
            await until(lambda: "192.0.2.2" in "".join(written), 20)
            # A node that is away for a moment is waited for.
            shell.api.control.ready = False
            await shell.api.server.close()
            await until(lambda: "nothing listens" in "".join(written), 20)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            await until(lambda: process.poll() is not None, 20)
            assert process.returncode == 0
            assert "Traceback" not in "".join(written)

    run(tmp_path, test, "[limits.default]\nwindow = '1h'\n")


# ---- completion ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("ratelimit ", {"up", "serve", "blocks", "top", "explain", "status", "doctor", "haproxy"}),
        ("ratelimit haproxy ", {"servers", "drain", "ready", "weight"}),
        ("ratelimit blocks ", {"list", "add", "remove"}),
        ("ratelimit top --s", {"--sort"}),
        ("ratelimit top --sort ", {"rate", "share", "blocked"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes(shell: str, line: str, proposed: set[str]) -> None:
    source = CliRunner().invoke(
        main, [], prog_name="ratelimit", env={"_RATELIMIT_COMPLETE": f"{shell}_source"}
    )
    assert source.exit_code == 0 and "_RATELIMIT_COMPLETE" in source.stdout
    words = line.split(" ")
    env = {"_RATELIMIT_COMPLETE": f"{shell}_complete", "COMP_WORDS": line}
    env["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words) - 1)
    result = CliRunner().invoke(main, [], prog_name="ratelimit", env=env)
    assert result.exit_code == 0
    assert proposed <= set(re.split(r"[\n,\t]", result.stdout))
