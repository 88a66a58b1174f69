"""What is wrong in a list of trusted proxies."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ratelimit.haproxy.trusted_proxies import judge, read, write
from tests.helpers.world import HAPROXY

NOW = datetime(2026, 11, 24, 9, 10, 3, tzinfo=UTC)


def findings(text: str, private: bool = False) -> list[str]:
    return [str(finding) for finding in judge(read(text), NOW, private)]


def test_a_sound_list() -> None:
    text = "# a comment\n\n104.16.0.0/13\n 131.0.72.0/22\n2a06:98c0::/29\n1.1.1.1\n"
    assert findings(text) == []
    found = read(text)
    assert (found.count(4), found.count(6), found.date, found.sources) == (3, 1, None, ())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("104.16.0.1/13", "line 1: 104.16.0.1/13 has bits set beyond its prefix: HAProxy reads"),
        ("2606:4700::1/32", "line 1: 2606:4700::1/32 has bits set beyond its prefix"),
        ("104.16.0.0/13\n104.16.8.0/24", "line 2: 104.16.8.0/24 is in 104.16.0.0/13, see line 1"),
        ("1.1.1.1\n8.8.8.0/24\n1.1.1.1", "line 3: 1.1.1.1/32 is duplicate, see line 1"),
        ("2606:4700:1::/48\n2606:4700::/32", "line 1: 2606:4700:1::/48 is in 2606:4700::/32"),
        ("104.0.0.0/11", "line 1: 104.0.0.0/11 is too wide"),
        ("2600::/27", "line 1: 2600::/27 is too wide"),
        ("10.1.0.0/16", "line 1: 10.1.0.0/16 is not a public range"),
        ("fd00:1::/32", "line 1: fd00:1::/32 is not a public range"),
        ("100.64.0.0/16", "line 1: 100.64.0.0/16 is not a public range"),
        ("127.0.0.1", "line 1: 127.0.0.1/32 is not a public range"),
        ("8.8.8.0/24 # theirs", "line 1: HAProxy accepts comments only on separate lines"),
        ("proxy.example.org", "line 1: not an address or a network: 'proxy.example.org'"),
        ("8.8.8.0-8.8.8.9", "line 1: not an address or a network"),
        ("2606::1%eth0", "line 1: not an address or a network"),
        ("# date: yesterday", "line 1: not a date"),
        ("# date: 2026-10-24T09:10:03Z\n1.1.1.1", "31 days old"),
        ("# date: 2026-12-24T09:10:03Z\n1.1.1.1", "its date, 2026-12-24, is in the future"),
    ],
)
def test_what_is_wrong(text: str, problem: str) -> None:
    (found,) = findings(text)
    assert found.startswith(problem)


def test_everything_wrong_is_told_at_once() -> None:
    found = findings("0.0.0.0/0\n10.0.0.1/8\nx\n10.0.0.0/16\n")
    assert [line.partition(":")[0] for line in found] == [
        *("line 1", "line 1", "line 2", "line 2", "line 2", "line 2", "line 3", "line 4", "line 4")
    ]
    assert "line 4: 10.0.0.0/16 is in 10.0.0.0/8, see line 2" in found


def test_private_ranges_may_be_meant() -> None:
    assert findings("10.1.0.0/16\nfd00:1::/32\n", private=True) == []
    (wide,) = findings("10.0.0.0/8", private=True)
    assert "too wide" in wide


def test_a_list_that_was_written_is_read() -> None:
    networks = [network for _, network in read("104.16.0.0/13\n2a06:98c0::/29\n").networks]
    sources = ("https://cdn.example/4", "https://cdn.example/6")
    found = read(write(networks, NOW, sources))
    assert [network for _, network in found.networks] == networks
    assert (found.date, found.sources, found.findings) == (NOW, sources, ())
    assert judge(found, NOW + timedelta(days=30)) == []
    assert len(judge(found, NOW + timedelta(days=31))) == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    "line",
    [
        *("8.8.8.0/24", " 8.8.8.0/24", "8.8.8.1/24", "2606::/32", "# x"),
        *("8.8.8.0/24 # x", " # x", "x.y", "[2606::1]", "2606::1%eth0", "8.8.8.0/33"),
    ],
)
def test_haproxy_can_read_what_we_can(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"{line}\n")
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n timeout client 1s\n timeout connect 1s\n timeout server 1s\n"
        "listen a\n bind 127.0.0.1:1\n"
        f" tcp-request connection reject if {{ src -f {tmp_path}/list }}\n"
    )
    ran = subprocess.run(
        [*HAPROXY, "-c", "-f", str(tmp_path / "haproxy.cfg")], check=False, capture_output=True
    )
    unreadable = [one for one in read(line).findings if "beyond its prefix" not in one.problem]
    assert (ran.returncode == 0) == (not unreadable), ran.stderr
