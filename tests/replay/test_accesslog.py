"""Access logs: lines as HAProxy, Apache, nginx and syslog daemons write them."""

from __future__ import annotations

import gzip
import sys
from typing import TYPE_CHECKING

import pytest

from ratelimit.exceptions import RatelimitError
from ratelimit.replay import accesslog
from ratelimit.replay.accesslog import AccessLog, Unread

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
MS = 1_000_000
NOON = 1_795_521_600  # 24 November 2026, 12:00:00 UTC

HTTPLOG = (
    "192.0.2.7:40112 [24/Nov/2026:12:00:00.978] web app/app1 0/0/0/1/1 200 104 - - ---- "
    '1/1/0/0/0 0/0 "GET / HTTP/1.1"'
)
COMMON = '192.0.2.7 - - [24/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 104'
IN_HAPROXY_S = (NOON * SECOND + 978 * MS, b"192.0.2.7")
IN_COMMON = (NOON * SECOND, b"192.0.2.7")


def read(path: Path, content: str | bytes) -> tuple[AccessLog, list[tuple[int, bytes]]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with AccessLog(str(path)) as log:
        return log, [request for requests in log for request in requests]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.mark.parametrize(
    "line",
    [
        HTTPLOG,
        HTTPLOG + " allow - 0 -",
        HTTPLOG + " 0/0000000000000000/0/0/0 site.example/TLSv1.3/TLS_AES_256_GCM_SHA384",
        HTTPLOG.replace("0/0/0/1/1 200 104", "0/-1/-1/-1/+0 -1 +0"),
        HTTPLOG.replace("web app/app1", "web~ web/<NOSRV>"),
        HTTPLOG.replace('0/0 "', '0/0 {site.example|Mozilla/5.0 (X11)} {} "'),
        HTTPLOG.replace("GET /", 'GET /x:1 [24/Nov/2020:00:00:00.000] a b/c 0/0/0/0/0 200 "'),
        "<134>Nov 24 12:00:01 haproxy[21178]: " + HTTPLOG,
        "<134>Nov 24 12:00:01 localhost haproxy[21178]: " + HTTPLOG,
        "Nov  4 12:00:01 lb-1.example haproxy[21178]: " + HTTPLOG,
        "2026-11-24T12:00:01.584431+00:00 lb1 haproxy[21178]: " + HTTPLOG,
        "<134>1 2026-11-24T12:00:01.584431+00:00 - haproxy 21178 - - " + HTTPLOG,
        '<134>1 2026-11-24T12:00:01Z lb1 haproxy 21178 - [x@1 iut="3" b="c"] ' + HTTPLOG,
        "2026-11-24T12:00:01.584437+00:00 " + HTTPLOG,
        "<6>2026-11-24T12:00:01.584438+00:00 " + HTTPLOG,
        "<6>" + HTTPLOG,
        "haproxy-1  | " + HTTPLOG,
    ],
)
def test_haproxy_s_http_log(path: Path, line: str) -> None:
    log, requests = read(path, f"{line}\n")
    assert requests == [IN_HAPROXY_S]
    assert (log.format.name, log.format.grain, log.zone) == ("HAProxy HTTP log", MS, None)
    assert (log.lines, log.unread) == (1, 0)


@pytest.mark.parametrize(
    ("line", "zone"),
    [
        (COMMON, 0),
        (COMMON + ' "https://a.example/" "Mozilla/5.0 (X11; Linux x86_64)"', 0),
        # HAProxy 2.6, "option httplog clf"; the milliseconds are not those of the request.
        (
            COMMON
            + ' "" "" 57050 898 "web" "web" "<NOSRV>" 0 -1 -1 -1 0 LR-- 1 1 0 0 0 0 0 "" "" ',
            0,
        ),
        (COMMON.replace("- - [", "- john doe ["), 0),
        (COMMON.replace("- - [", "-  ["), 0),
        (COMMON.replace("12:00:00 +0000", "17:30:00 +0530"), 19_800),
        (COMMON.replace("12:00:00 +0000", "04:00:00 -0800"), -28_800),
        ("<190>Nov 24 12:00:01 web1 nginx: " + COMMON, 0),
    ],
)
def test_the_common_formats(path: Path, line: str, zone: int) -> None:
    log, requests = read(path, f"{line}\n")
    assert requests == [IN_COMMON]
    assert (log.format.name, log.format.grain, log.zone) == ("common or combined", SECOND, zone)


@pytest.mark.parametrize("client", ["2001:db8::1", "::ffff:192.0.2.1", "host.example", "unix"])
def test_clients_of_every_kind(path: Path, client: str) -> None:
    assert read(path, HTTPLOG.replace("192.0.2.7", client))[1][0][1] == client.encode()
    assert read(path, COMMON.replace("192.0.2.7", client))[1][0][1] == client.encode()


def test_requests_that_haproxy_found_invalid_are_none(path: Path) -> None:
    log, requests = read(path, HTTPLOG.replace("GET / HTTP/1.1", "<BADREQ>") + "\n" + HTTPLOG)
    assert requests == [IN_HAPROXY_S]
    assert (log.lines, log.invalid, log.unread) == (2, 1, 0)


@pytest.mark.parametrize(
    "time",
    [
        "31/Apr/2026:12:00:00",
        "24/Nev/2026:12:00:00",
        "24/Nov/1970:12:00:00",
        "24/Nov/2100:12:00:00",
        "24/Nov/2026:24:00:00",
        "24/Nov/2026:12:60:00",
        "00/Nov/2026:12:00:00",
    ],
)
def test_times_that_there_are_not(path: Path, time: str) -> None:
    for line in (HTTPLOG, COMMON):
        wrong = line.replace("24/Nov/2026:12:00:00", time)
        log, requests = read(path, f"{line}\n{wrong}\n")
        assert len(requests) == 1
        assert log.first_unread == Unread(2, wrong)


def test_lines_that_can_not_be_read_are_counted(path: Path) -> None:
    start = "[NOTICE] (1) : New worker (3) forked \x1b[31m\xff"
    connection = (
        "192.0.2.7:40112 [24/Nov/2026:12:00:00.978] tcp app/app1 0/0/1 104 -- 1/1/0/0/0 0/0"
    )
    content = "\n".join([HTTPLOG, "", start, HTTPLOG, connection, "x" * 300, HTTPLOG])
    log, requests = read(path, content.encode("latin-1"))
    assert requests == [IN_HAPROXY_S] * 3
    assert (log.lines, log.unread) == (7, 3)
    shown = "[NOTICE] (1) : New worker (3) forked \\x1b[31m\\xff"
    assert log.first_unread == Unread(3, shown)


def test_a_line_without_end_takes_bounded_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", 1000)
    monkeypatch.setattr(accesslog, "_LONGEST", 500)
    long = HTTPLOG.replace("GET /", "GET /" + "x" * 100_000)
    log, requests = read(path, f"{HTTPLOG}\n{long}\n{HTTPLOG}\n{long}")
    assert requests == [IN_HAPROXY_S] * 4
    assert log.lines == 4


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_lines_are_whole_however_they_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", chunk)
    monkeypatch.setattr(accesslog, "_SNIFFED", 1)
    for content in (f"{HTTPLOG}\n" * 9, "\n".join([HTTPLOG] * 9), f"{HTTPLOG}\r\n" * 9):
        log, requests = read(path, content)
        assert requests == [IN_HAPROXY_S] * 9
        assert log.lines == 9


def test_gzip_is_known_by_its_content(path: Path) -> None:
    content = f"{HTTPLOG}\n".encode() * 1000
    log, requests = read(path, gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert requests == [IN_HAPROXY_S] * 1000
    assert log.lines == 1000


def test_the_format_is_that_of_most_lines(path: Path) -> None:
    log, requests = read(path, f"{COMMON}\n{HTTPLOG}\n{HTTPLOG}")
    assert log.format.name == "HAProxy HTTP log"
    assert requests == [IN_HAPROXY_S] * 2
    assert log.first_unread == Unread(1, COMMON)


PACKED = gzip.compress(f"{HTTPLOG}\n".encode() * 1000, mtime=0)  # the same bytes at each run


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
        (PACKED[:-4], "the gzip file is truncated"),
        (PACKED[:30], "the gzip file is truncated"),
        (PACKED[:2], "the gzip file is truncated"),
        (PACKED[:-8] + b"\0" * 8, "invalid gzip file: CRC check failed"),
        (PACKED[:12] + b"\xff" * 20, "invalid gzip file: Error"),
        (b"\x1f\x8bxxxxxxxxxxxxxxxx", "invalid gzip file: "),
        (b"to be\nor not\n", "unknown format; "),
        (b"\x28\xb5\x2f\xfd\0\x01", "First line: (\\xb5/\\xfd\\x00\\x01"),
    ],
)
def test_logs_that_can_not_be_read(path: Path, content: bytes, what: str) -> None:
    with pytest.raises(RatelimitError) as error:
        read(path, content)
    assert str(error.value).startswith(f"{path}: ")
    assert what in str(error.value)


def test_files_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RatelimitError, match="no: No such file or directory"):
        AccessLog(str(tmp_path / "no"))
    with pytest.raises(RatelimitError, match="Is a directory"):
        AccessLog(str(tmp_path))


def test_how_far_a_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "_CHUNK", 1000)
    monkeypatch.setattr(accesslog, "_SNIFFED", 1)
    path.write_text(f"{HTTPLOG}\n" * 100)
    with AccessLog(str(path)) as log:
        steps = [log.done for _ in log]
        assert steps == sorted(steps)
        assert 0 < steps[0] < steps[-1] == log.size


def test_a_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it then
    with pytest.raises(RatelimitError, match="standard input: closed"):
        AccessLog("-")
