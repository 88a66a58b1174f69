"""Files with secrets: what they may hold, and who can read them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from ratelimit import serve as service
from ratelimit.cli import up as together
from ratelimit.cli.main import main
from ratelimit.config import Config, load
from ratelimit.files import is_exposed, read_secret, write_whole

SECRET = "s3cr3t" * 6


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter; those of pytest can be entered by their owner alone."""
    made = Path(tempfile.mkdtemp(prefix="rl-test-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def write(folder: Path, name: str, mode: int, text: str = SECRET) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_read_without_the_end_of_its_line(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n"):
        path = write(tmp_path, "secret", 0o600, SECRET + end)
        assert read_secret(str(path)) == SECRET.encode()


@pytest.mark.parametrize(("size", "why"), [(15, "at least 16"), (1 << 17, "at most 65536")])
def test_a_secret_of_the_wrong_size(tmp_path: Path, size: int, why: str) -> None:
    path = write(tmp_path, "secret", 0o600, "x" * size)
    with pytest.raises(ValueError, match=why):
        read_secret(str(path))


def test_files_that_every_user_can_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, exposed in ((0o600, False), (0o640, False), (0o604, True), (0o602, True)):
        path = write(folder, "secret", mode)
        assert is_exposed(str(path)) is exposed, oct(mode)
    (folder / "link").symlink_to(path)
    assert is_exposed(str(folder / "link"))
    folder.chmod(0o750)
    assert not is_exposed(str(path))
    folder.chmod(0o755)
    monkeypatch.setattr("os.path.ismount", lambda file: file == path)
    assert not is_exposed(str(path))
    for missing in (str(folder / "none"), "\0", "~unknown-user/secret", "x" * 5000):
        assert not is_exposed(missing)


@pytest.fixture
def config(folder: Path) -> Config:
    """A configuration with secrets, of which no two are of one kind."""
    write(folder, "tokens", 0o644, f"ann:operate:{SECRET}\n")
    write(folder, "hook", 0o644)
    write(folder, "fleet", 0o644)
    write(folder, "password", 0o644)
    write(folder, "sentinel", 0o644)
    text = f"""
        [ops]
        token_file = "{folder}/tokens"
        [store]
        url = "redis+sentinel://h/m?password_file={folder}/password&sentinel_password_file={folder}/sentinel"
        secret_file = "{folder}/fleet"
        [[webhooks]]
        url = "https://example.com/"
        secret_file = "{folder}/hook"
    """
    return load(write(folder, "r.toml", 0o644, text))


WANTED = [
    "ops.token_file: {}/tokens",
    "webhooks.0.secret_file: {}/hook",
    "store.secret_file: {}/fleet",
    "store.url: {}/password",
    "store.url: {}/sentinel",
]


def test_all_of_them_are_named(config: Config, folder: Path) -> None:
    assert config.exposed_files() == [line.format(folder) for line in WANTED]
    assert config.fleet_secret() == SECRET.encode()
    for name in ("tokens", "hook", "fleet", "password"):
        (folder / name).chmod(0o640)
    assert config.exposed_files() == [f"store.url: {folder}/sentinel"]


def test_a_password_in_the_configuration_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, "r.toml", 0o644, '[store]\nurl = "redis://:secret@127.0.0.1"\n')
    assert load(path).exposed_files() == [f"store.url: {path}"]
    path.chmod(0o640)
    assert load(path).exposed_files() == []
    path.chmod(0o644)
    monkeypatch.setenv("RATELIMIT_STORE__URL", "redis://:secret@127.0.0.1")
    assert load(path).exposed_files() == []


def test_the_start_and_check_warn_of_them_in_a_line(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = CliRunner().invoke(main, ["check", "--config", str(config.path)])
    assert ran.exit_code == 0
    assert ran.stderr.splitlines() == [
        f"warning: {line.format(folder)}: readable by every user of this machine" for line in WANTED
    ]
    monkeypatch.setattr("ratelimit.process.log.begin", lambda *_: None)
    monkeypatch.setattr("uvloop.run", lambda part: part.close())
    starts = (partial(service.serve, config), partial(together.up, config, None, None))
    for start in starts:
        with capture_logs() as lines:
            start()
        (told,) = lines
        assert told["log_level"] == "warning"
        assert told["event"] == "secrets are readable by every user of this machine"
        assert told["files"] == [line.format(folder) for line in WANTED]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("old")

    def half() -> Iterator[bytes]:
        yield b"new"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, half(), 0o644)
    assert path.read_text() == "old"
    before = os.umask(0o077)
    try:
        write_whole(path, [b"n", b"ew"], 0o644)
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path], "nothing is left next to it"
