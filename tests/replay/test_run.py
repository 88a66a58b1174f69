"""``ratelimit replay``: whom a limit would have refused, when, how often, for how long."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ratelimit.replay import accesslog, report
from ratelimit.replay import run as replay
from tests.replay.conftest import ATTACK, Desk, combined, haproxy, run

if TYPE_CHECKING:
    from pathlib import Path


THROTTLE = "[limits.default]\nblock = []\n"
ATTACKER = {
    "key": "192.0.2.7",
    "first": "2026-11-24T12:00:00.100",
    "last": "2026-11-24T12:00:10.999",
    "throttled": 0,
    "blocked": 51,
    "refused": 51,
    "blocks": 1,
    "blocked_for": 10,
    "peak": 150,
}


def test_a_block(desk: Desk) -> None:
    others = [haproxy(n * 100, "192.0.2.8") for n in range(20)]
    found = desk.found([*ATTACK, *others])
    assert found == {
        "log": str(desk.log),
        "format": "HAProxy HTTP log",
        "limit": {
            "name": "default",
            "rate": 100,
            "window": 1.0,
            "block": [10, 60, 600, 3600],
            "forget": 86400,
            "strict": False,
            "ipv4_prefix": 32,
            "ipv6_prefix": 64,
            "shadow": False,
            "headers": False,
            "fuse": 0.2,
            "secret": True,
            "table": "",
            "counts": "requests",
            "open": 0,
            "count_refused": True,
        },
        "lines": 172,
        "unread": 0,
        "first_unread": None,
        "invalid": 0,
        "late": 0,
        "requests": 172,
        "clients": 2,
        "clients_exact": True,
        "first": "2026-11-24T12:00:00.000",
        "last": "2026-11-24T12:00:11.000",
        "throttled": 0,
        "blocked": 51,
        "refused": 51,
        "blocks": 1,
        "offending": 1,
        "nameless": 0,
        "offenders": [ATTACKER],
    }


def test_the_next_block_is_longer(desk: Desk) -> None:
    again = [haproxy(20_000 + n) for n in range(101)]
    (offender,) = desk.found([*ATTACK, *again])["offenders"]
    assert offender == ATTACKER | {
        "last": "2026-11-24T12:00:20.100",
        "blocked": 52,
        "refused": 52,
        "blocks": 2,
        "blocked_for": 70,
    }


def test_strikes_are_forgotten_by_the_log_s_time(desk: Desk) -> None:
    again = [haproxy(86_500_000 + n) for n in range(101)]
    (offender,) = desk.found([*ATTACK, *again])["offenders"]
    assert (offender["blocks"], offender["blocked_for"]) == (2, 20)


def test_without_a_ladder_clients_are_throttled(desk: Desk) -> None:
    found = desk.found([haproxy(n) for n in range(150)] + [haproxy(2000)], THROTTLE)
    (offender,) = found["offenders"]
    assert offender == ATTACKER | {
        "last": "2026-11-24T12:00:00.149",
        "throttled": 50,
        "blocked": 0,
        "refused": 50,
        "blocks": 0,
        "blocked_for": 0,
    }
    assert (found["throttled"], found["blocked"], found["blocks"]) == (50, 0, 0)


def test_lists_and_shadow(desk: Desk) -> None:
    """A limit in shadow is tried as if it were in force; who is allowed is never counted."""
    lines = [haproxy(n, client) for n in range(150) for client in ("192.0.2.7", "192.0.2.8")]
    lines.append(haproxy(200, "192.0.2.9"))
    config = (
        '[limits.default]\nshadow = true\n[lists]\nallow = ["192.0.2.8"]\ndeny = ["192.0.2.9"]\n'
    )
    found = desk.found(lines, config)
    refused = {one["key"]: one["blocked"] for one in found["offenders"]}
    assert refused == {"192.0.2.7": 50, "192.0.2.9": 1}


def test_another_limit(desk: Desk) -> None:
    config = '[limits.login]\nrate = 5\nwindow = "1m"\nblock = ["5m"]\n'
    lines = [haproxy(n * 5000) for n in range(8)]
    found = desk.found(lines, config, "--limit", "login")
    assert found["limit"]["window"] == 60
    (offender,) = found["offenders"]
    assert offender["first"] == "2026-11-24T12:00:25.000", "the sixth"
    assert (offender["blocked"], offender["blocked_for"], offender["peak"]) == (3, 300, 8)
    assert desk.found(lines, config)["refused"] == 0, "of the limit default"


def test_a_network_is_one_client(desk: Desk) -> None:
    lines = [haproxy(n, f"2001:db8:0:1::{n % 7:x}") for n in range(150)]
    lines += [haproxy(n, f"::ffff:192.0.2.{n % 2}") for n in range(150)]
    lines += [haproxy(n, f"2001:db8:0:{n % 2 + 2}::1") for n in range(150)]
    found = desk.found(lines, THROTTLE)
    assert found["clients"] == 5
    assert [(o["key"], o["refused"]) for o in found["offenders"]] == [("2001:db8:0:1::/64", 50)]
    found = desk.found(lines, THROTTLE + "ipv6_prefix = 48\nipv4_prefix = 24\n")
    assert [(o["key"], o["refused"]) for o in found["offenders"]] == [
        ("2001:db8::/48", 200),
        ("192.0.2.0/24", 50),
    ]


def test_names_are_clients_of_their_own(desk: Desk) -> None:
    lines = [
        line for n in range(101) for line in (haproxy(n, "a.example"), haproxy(n, "b\x1b\xe4"))
    ]
    found = desk.found(lines)
    assert [(o["key"], o["blocked_for"]) for o in found["offenders"]] == [
        ("a.example", 10),
        ("b\\x1b\\xc3\\xa4", 10),
    ]


def test_whole_seconds_are_no_bursts(desk: Desk) -> None:
    steady = [combined(n // 99) for n in range(99 * 20)]
    found = desk.found(steady, THROTTLE)
    assert (found["requests"], found["refused"]) == (1980, 0)
    assert (found["first"], found["last"]) == (
        "2026-11-24T12:00:00+00:00",
        "2026-11-24T12:00:19+00:00",
    )


def test_whole_seconds_are_counted(desk: Desk) -> None:
    found = desk.found([combined(0)] * 150, THROTTLE)
    (offender,) = found["offenders"]
    assert (offender["throttled"], offender["peak"]) == (50, 150)


@pytest.mark.parametrize("line", [haproxy, combined])
def test_order_does_not_matter_within_what_is_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, line: Any
) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", 1000)
    monkeypatch.setattr(replay, "_HELD", 500)
    step = 2 if line is haproxy else 0.005
    lines = [line(int(n * step), f"192.0.2.{n % 3}") for n in range(3000)]
    shuffled = list(lines)
    for start in range(0, 3000, 100):
        piece = shuffled[start : start + 150]
        random.Random(start).shuffle(piece)
        shuffled[start : start + 150] = piece
    assert shuffled != lines
    expected = desk.found(lines, "[limits.default]\nrate = 40\n")
    found = desk.found(shuffled, "[limits.default]\nrate = 40\n")
    assert found["late"] == 0
    assert expected["blocks"] >= 3
    if line is haproxy:
        assert found == expected
    else:  # what is spread over a second keeps the log's order in it
        assert [o["first"] for o in found["offenders"]] == [
            o["first"] for o in expected["offenders"]
        ]


def test_what_is_too_late_is_left_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", 1000)
    monkeypatch.setattr(replay, "_HELD", 20)
    today = [haproxy(86_400_000 + n * 1000) for n in range(100)]
    yesterday = [haproxy(n * 1000) for n in range(100)]
    found = desk.found(today + yesterday)
    assert (found["lines"], found["refused"]) == (200, 0)
    assert found["requests"] + found["late"] == 200
    assert 70 <= found["late"] <= 100
    assert f"{found['late']} requests ignored" in run(str(desk.log)).stdout


def test_a_second_with_more_requests_than_are_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", 1000)
    monkeypatch.setattr(replay, "_HELD", 10)
    found = desk.found([combined(n // 150) for n in range(450)], THROTTLE)
    assert (found["late"], found["requests"]) == (0, 450)
    assert found["offenders"][0]["peak"] >= 150
    assert found["last"] == "2026-11-24T12:00:02+00:00"


def test_unread_lines_are_shown(desk: Desk) -> None:
    desk.write(["[NOTICE] started", *ATTACK, "what?"])
    result = run(str(desk.log))
    assert result.exit_code == 0
    assert "2 lines could not be read; the first is line 1: [NOTICE] started" in result.stdout


def test_only_invalid_requests(desk: Desk) -> None:
    desk.write([haproxy(0).replace("GET / HTTP/1.1", "<BADREQ>")])
    result = run(str(desk.log))
    assert result.exit_code == 0
    assert "1 lines, 0 requests of 0 clients\n" in result.stdout
    assert "1 lines of invalid requests" in result.stdout


def test_offenders_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MAX_OFFENDERS", 2)
    lines = [haproxy(n * 1000, f"192.0.2.{n}") for n in range(3) for _ in range(101)]
    found = desk.found(lines)
    assert (found["offending"], found["nameless"], found["refused"]) == (2, 1, 3)
    assert "1 refusals belong to clients that" in run(str(desk.log)).stdout


def test_a_table_that_is_too_small_is_told(desk: Desk) -> None:
    desk.write([haproxy(n * 1000, f"192.0.2.{n}") for n in range(50)])
    desk.config.write_text("[agent]\nmax_clients = 8\n")
    result = run(str(desk.log), "--config", str(desk.config))
    assert "50 requests of 8 or more clients" in result.stdout


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(desk: Desk, pack: Any) -> None:
    desk.write(ATTACK)
    ran = subprocess.run(
        [sys.executable, "-m", "ratelimit", "replay", "-", "--json", "--config", desk.config],
        input=pack(desk.log.read_bytes()),
        capture_output=True,
        check=True,
    )
    found = json.loads(ran.stdout)
    assert found["offenders"] == [ATTACKER]
    assert found["log"] == "standard input"


def test_progress_is_shown_where_a_person_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.write(ATTACK)
    monkeypatch.setattr(report, "_PATIENCE", 0)
    assert run(str(desk.log), "--json").stderr == "", "no terminal"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal can't show it, wherever this runs
    result = run(str(desk.log), "--json")
    assert "152 lines" in result.stderr
    assert json.loads(result.stdout)["offenders"] == [ATTACKER]


def test_a_log_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"ratelimit: {path}: No such file or directory\n"
    path.write_bytes(gzip.compress("\n".join(ATTACK).encode())[:-4])
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"ratelimit: {path}: the gzip file is truncated\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "Missing argument 'LOG'"),
        (["x", "--limit", "login"], "no such limit; the limits are default"),
        (["x", "-n", "0"], "0 is not in the range"),
        (["x", "--config", "no/such/file"], "no/such/file: No such file or directory"),
    ],
)
def test_wrong_use(arguments: list[str], what: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert what in result.stderr
