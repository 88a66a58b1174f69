"""What the log shows: one line for an entry whatever is in it, no secret, and not too many."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from ratelimit.process import log as logs
from ratelimit.process.log import AUDIT, LINES, PERIOD, Bound


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave logging as it was."""
    monkeypatch.setenv("NO_COLOR", "1")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    access = logging.getLogger("aiohttp.access")
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level
    access.disabled = False


@pytest.fixture(params=[False, True], ids=["json", "console"])
def stream(request: pytest.FixtureRequest) -> Stream:
    stream = Stream(request.param)
    logs.configure(stream)
    return stream


def fail(error: Exception) -> None:
    raise error


HOSTILE = [
    "a\nb",
    "a\r\nlevel=error event=forged",
    "\x1b[2J\x1b[1;31mred",
    "\x9b2J",
    "a\u2028b\u2029c\x85d",
    "\u202egnp.exe",
    "\udcff\ud800",
    "\x00\x07\x08\x7f",
    'x" forged="y',
    "x limit=other",
    "\\n",
    "tab\there",
    "\ufeff\u200b",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_clients_text_stays_text(stream: Stream, text: str) -> None:
    # Without pytest's own handlers: its workers can't tell each other of a lone surrogate.
    logs.configure(stream)
    log = structlog.get_logger()
    log.info("blocked", key=text, limit="default", nested={"k": [text]}, error=ValueError(text))
    logging.getLogger("redis").warning("lost %s", text)
    written = stream.getvalue()
    assert written.count("\n") == 2 and written.endswith("\n")
    for line in written.splitlines(keepends=True):
        assert line.endswith("\n") and line[:-1].isprintable()
    first = written.splitlines()[0]
    if not stream.isatty():
        assert json.loads(first)["key"] == text
    else:
        unquoted = re.sub(r""""(\\.|[^"\\])*"|'(\\.|[^'\\])*'""", "", first)
        assert "forged" not in unquoted and "other" not in unquoted
        assert unquoted.count(" limit=default") == 1


def test_json_has_a_line_for_machines() -> None:
    stream = Stream(False)
    logs.configure(stream)
    structlog.get_logger().warning("store lost", why="no route", seconds=1.5, up=False)
    entry = json.loads(stream.getvalue())
    assert list(entry)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", entry.pop("timestamp"))
    assert entry == {
        "event": "store lost", "level": "warning", "why": "no route", "seconds": 1.5, "up": False
    }  # fmt: skip


def test_the_console_is_for_people() -> None:
    stream = Stream(True)
    logs.configure(stream)
    structlog.get_logger().info("agent started", listen=["tcp://127.0.0.1:1"], bytes=12)
    written = stream.getvalue()
    assert "agent started" in written and "info" in written
    assert "bytes=12" in written and "listen=['tcp://127.0.0.1:1']" in written


def test_no_password_of_a_url_is_shown(stream: Stream) -> None:
    log = structlog.get_logger()
    log.error("store lost", why="redis://user:hunter2@h:1/0 and rediss://:hunter2@h")
    log.error("redis://:hunter2@h", error=OSError("redis://u:hunter2@h"))
    logging.getLogger("redis").error("can't reach %s", "redis://u:hunter2@h")
    try:
        fail(OSError("redis://u:hunter2@h"))
    except OSError:
        log.exception("failed")
    written = stream.getvalue()
    assert "hunter2" not in written
    assert written.count("***") == 7
    assert "user" in written and "@h:1/0" in written


def test_a_trace_can_not_be_taken_for_other_entries(stream: Stream) -> None:
    try:
        fail(ValueError("a\n2026-01-01 [error] forged\x1b[2J"))
    except ValueError:
        structlog.get_logger().exception("failed")
    written = stream.getvalue()
    assert "\x1b" not in written
    if stream.isatty():
        assert "ValueError" in written
        for line in written.splitlines()[1:]:
            assert not line or line.startswith("  ")
    else:
        assert "ValueError" in json.loads(written)["exception"]


def test_what_asyncio_says_is_shown_and_each_request_is_not(stream: Stream) -> None:
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("aiohttp.access").error("GET /")
    logging.getLogger("asyncio").info("selected")
    assert stream.getvalue() == ""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "a task failed", "exception": OSError("x")})

    asyncio.run(main())
    assert "a task failed" in stream.getvalue()
    assert "OSError" in stream.getvalue()


def test_of_one_cause_only_so_many_are_written() -> None:
    now = [100.0]
    bound = Bound(lambda: now[0])

    def admit(event: str) -> int | None:
        try:
            return int(bound(None, "info", {"event": event}).get("left_out", 0))
        except structlog.DropEvent:
            return None

    assert [admit("a") for _ in range(LINES + 7)] == [0] * LINES + [None] * 7
    assert admit("b") == 0
    now[0] += PERIOD
    assert [admit("a"), admit("a"), admit("b")] == [7, 0, 0]


def test_the_end_tells_what_no_later_line_told() -> None:
    program = (
        "import structlog\n"
        "from ratelimit.process import log\n"
        "log.begin()\n"
        "for _ in range(log.LINES + 3):\n"
        "    structlog.get_logger().info('a')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stderr
    *lines, last = map(json.loads, said.splitlines())
    assert len(lines) + last["left_out"] == LINES + 3
    assert (last["event"], last["of"]) == ("entries were left out", "a")


def test_what_operators_do_is_written_in_full(stream: Stream) -> None:
    for number in range(10 * LINES):
        structlog.get_logger().info(AUDIT, who="ann", key=str(number))
    assert stream.getvalue().count("\n") == 10 * LINES


def test_a_library_is_bound_by_what_it_says_not_by_the_values(stream: Stream) -> None:
    for number in range(LINES + 10):
        logging.getLogger("redis").error("no connection to %d", number)
    structlog.get_logger().info("ours")
    assert stream.getvalue().count("\n") == LINES + 1


def test_causes_are_bounded() -> None:
    bound = Bound(lambda: 0.0)
    for number in range(5000):
        record = logging.LogRecord("x", logging.ERROR, "", 0, f"text {number}", (), None)
        assert bound.filter(record) is (number < 1000)
    assert len(bound._lines) == 1000
