"""Whoever logs never waits and never fails, whatever becomes of the file or its reader."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ratelimit.process import log_writer as module
from ratelimit.process.log_writer import LogWriter

PIPE = 4096


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe that takes little."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE)
    yield ends
    for end in ends:
        with_ended = Path(f"/proc/self/fd/{end}")
        if with_ended.exists():
            os.close(end)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_what_is_written_comes_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    for number in range(2000):
        assert writer.write(f"{number:09}\n") == 10
    assert read(pipe[0], 20_000) == b"".join(b"%09d\n" % number for number in range(2000))
    until(lambda: writer.waiting == 0)
    assert (writer.dropped, writer.problem) == (0, "")
    writer.close(5)


def test_a_reader_that_hangs_is_not_waited_for(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setattr(module, "ROOM", 10 * PIPE)
    monkeypatch.setattr(module, "KEPT_ROOM", 20 * PIPE)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    writer = LogWriter(pipe[1])
    for _ in range(100):
        writer.write("x" * (PIPE - 1) + "\n")
    assert writer.dropped == 90
    assert 8 * PIPE <= writer.waiting <= 10 * PIPE
    writer.keep("kept\n")
    assert writer.dropped == 90, "it has room of its own"
    until(lambda: writer.problem == "the reader does not read")
    assert logs == []
    whole = read(pipe[0], 10 * PIPE + 5)
    assert whole == (b"x" * (PIPE - 1) + b"\n") * 10 + b"kept\n"
    until(lambda: logs)
    assert (logs[0]["event"][:32], logs[0]["count"]) == ("lines of the log were dropped be", 90)
    assert writer.problem == ""
    writer.close(5)


def _broken_pipe() -> int:
    reader, fd = os.pipe()
    os.close(reader)
    return fd


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: os.open("/dev/full", os.O_WRONLY), "No space left on device"),
        (_broken_pipe, "Broken pipe"),
    ],
)
def test_what_can_not_be_written_is_tried_again(
    make: Callable[[], int], problem: str, tmp_path: Path
) -> None:
    fd = make()
    writer = LogWriter(fd)
    writer.write("one\n")
    until(lambda: writer.problem == problem)
    writer.write("two\n")
    good = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(good, fd)
    until(lambda: writer.waiting == 0)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert (writer.dropped, writer.problem) == (0, "")
    writer.close(5)
    os.close(good)
    os.close(fd)


def test_the_end_waits_for_what_can_be_written(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(pipe[0], 100 * PIPE)))
    for _ in range(100):
        writer.write("x" * PIPE)
    reader.start()
    writer.close(20)
    reader.join()
    assert writer.waiting == 0
    assert got == [b"x" * 100 * PIPE]


def test_the_end_does_not_wait_for_a_reader_that_hangs(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    for _ in range(3):
        writer.write("x" * PIPE)
    writer.close(0.05)
    assert writer.waiting
    os.write(pipe[1], b"x" * 100 * PIPE)  # what Python itself may say at last


def test_the_end_does_not_wait_for_a_disk_that_is_full() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(fd)
    for _ in range(3):
        writer.write("x\n")
    writer.close(20)
    assert (writer.waiting, writer.dropped) == (0, 3)
    os.close(fd)


def test_a_stream_that_was_closed_before_the_start_is_nowhere(tmp_path: Path) -> None:
    writer = LogWriter.of(None)
    writer.write("x\n")
    until(lambda: writer.waiting == 0)
    writer.close(5)
    os.close(writer.fileno())


def test_it_is_a_text_stream(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    with pytest.raises(TypeError):
        writer.write(b"x")  # type: ignore[arg-type]
    print("\udcff", file=writer, flush=True)
    assert not writer.isatty()
    assert read(pipe[0], 7) == b"\\udcff\n"
    writer.close(5)
