"""``ratelimit up`` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from ratelimit.haproxy import process as haproxy
from tests.helpers.command import command, line
from tests.helpers.world import PATIENCE, free_port

pytestmark = pytest.mark.integration

OPERATORS = r"operators +(http://\S+)"
"""The line with the address of the API."""


def unix_sockets() -> list[str]:
    """Return what the kernel tells of each unix socket that is connected (proc(5))."""
    connected = "03"
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return [read for read in lines if read.split()[5] == connected]


def test_up_runs_the_main_job_from_any_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # In a window in which a machine that does much else can exceed the limit, too.
    config.write_text(f"{config.read_text()}[limits.default]\nwindow = '1m'\n")
    listen = f"127.0.0.1:{free_port()}"
    with command("up", "--listen", listen, "--config", str(config)) as process:
        url = line(process, r"limiter +(http://\S+)")[1]
        assert url == f"http://{listen}/"
        line(process, r"limit +default: 100 in 1m")
        line(process, "curl .*1-300")

        found: Counter[int] = Counter()
        for _ in range(300):
            try:
                with urllib.request.urlopen(url) as answer:
                    assert b"Hello 127.0.0.1" in answer.read()
                    found[answer.status] += 1
            except urllib.error.HTTPError as refusal:
                refusal.close()
                found[refusal.code] += 1
        assert found == {200: 100, 429: 200}
        # HAProxy and agent are on one machine, so they speak over a unix socket.
        assert any("/ratelimit-" in read and "/spop.sock" in read for read in unix_sockets())

        process.send_signal(signal.SIGINT)
        line(process, 'agent stops.*"blocks": 1')
        assert process.wait(PATIENCE) == 0
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "spop.sock").exists()


def test_up_in_peers_mode(config: Path) -> None:
    config.write_text(
        f"{config.read_text()}[limits.default]\nrate = 20\nwindow = '1m'\nopen = 9\n"
        "[limits.scanners]\ntable = 'rl_default'\ncounts = 'errors'\n"
    )
    listen = f"127.0.0.1:{free_port()}"
    arguments = ("up", "--mode", "peers", "--listen", listen, "--config", str(config))
    with command(*arguments) as process:
        url = line(process, r"limiter +(http://\S+)")[1]
        with urllib.request.urlopen(f"{line(process, OPERATORS)[1]}v1/status") as answer:
            (peer,) = json.load(answer)["peers"]
        assert (peer["refused"], peer["taught"]) == ({}, True)
        tables = {table["name"]: table for table in peer["tables"]}
        assert {"rl_default", "rlv_default", "rlv_scanners"} <= set(tables)
        assert {"http_err_cnt", "conn_cur"} <= set(tables["rl_default"]["stores"])
        found: list[int] = []
        for _ in range(60):
            try:
                with urllib.request.urlopen(url) as answer:
                    assert b"Hello 127.0.0.1" in answer.read()
                    found.append(answer.status)
            except urllib.error.HTTPError as refusal:
                refusal.close()
                found.append(refusal.code)
        admitted = found.count(200)
        # HAProxy's own cap is twice the rate in the limit's window, which HAProxy was given.
        assert 20 <= admitted <= 40
        assert found == [200] * admitted + [429] * (60 - admitted)
        process.send_signal(signal.SIGINT)
        line(process, 'agent stops.*"blocks": 1')
        assert process.wait(PATIENCE) == 0


def test_up_in_peers_mode_needs_the_name_that_the_file_has(config: Path) -> None:
    config.write_text(f"{config.read_text()}peer_name = 'one'\n")
    with command("up", "--mode", "peers", "--config", str(config)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "agent.peer_name: must be 'agent'" in output


def test_up_keeps_no_right_of_root_in_haproxy(config: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with command("up", "--listen", listen, "--config", str(config)) as process:
        url = line(process, r"limiter +(http://\S+)")[1]
        child = child_named("haproxy", process.pid)
        account, own = haproxy.unprivileged(), child.stat().st_uid
        assert own == (account.pw_uid if account else os.geteuid())
        status = (child / "status").read_text()
        assert set(re.findall(r"(?m)^Uid:\s+(.*)$", status)[0].split()) == {str(own)}
        groups = re.findall(r"(?m)^(?:Gid|Groups):[ \t]*(.*)$", status)
        if account:
            assert set(" ".join(groups).split()) == {str(account.pw_gid)}
            assert os.listdir(child / "root") == ["spop.sock"], "all that it can see"
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        line(process, 'agent stops.*"checks": 1')
        assert process.wait(PATIENCE) == 0


def child_named(name: str, parent: int) -> Path:
    """Return the folder of a child process in /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found, _, fields = (folder / "stat").read_text().partition(") ")
            if found.endswith(f"({name}") and int(fields.split()[1]) == parent:
                return folder
    raise AssertionError(f"{parent} has no child {name}")


def test_up_with_a_backend_of_ones_own(config: Path) -> None:
    listen, backend = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with command(
        "up", "--listen", listen, "--backend", backend, "--config", str(config)
    ) as process:
        assert line(process, r"application +(\S+)")[1] == f"http://{backend}/"
        with pytest.raises(urllib.error.HTTPError) as nobody:
            urllib.request.urlopen(f"http://{listen}/")
        assert nobody.value.code == 503
        nobody.value.close()


def test_up_ends_when_haproxy_can_not_listen(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with command("up", "--listen", listen, "--config", str(config)) as process:
            output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "HAProxy ended with code 1" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'HAProxy version 2.4.22 2023'", "is 2.4, but 2.6 or later is required"),
        ("echo nonsense", "is of an unknown version, but 2.6 or later is required"),
    ],
)
def test_up_says_what_is_wrong_with_haproxy(
    config: Path, tmp_path: Path, script: str, words: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "haproxy").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "haproxy").chmod(0o755)
    with command("up", "--config", str(config), PATH=str(programs)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert words in output
    assert "Traceback" not in output


def test_up_ends_when_haproxy_never_listens(config: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = 'case $1 in -v) echo "HAProxy version 2.6.12";; *) exec sleep 30;; esac'
    (programs / "haproxy").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "haproxy").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    with command(
        "up", "--config", str(config), "--listen", f"127.0.0.1:{free_port()}", PATH=path
    ) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "HAProxy does not accept connections on 127.0.0.1:" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_up_leaves_nobody_behind(config: Path, number: signal.Signals) -> None:
    port = free_port()
    with command("up", "--listen", f"127.0.0.1:{port}", "--config", str(config)) as process:
        line(process, "limiter +http")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
