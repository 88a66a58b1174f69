"""Files: secrets in them, who can read them, and files that are replaced as a whole."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

MIN_SECRET = 16
"""Bytes; ``openssl rand -hex 32`` makes 64."""

_MAX_SECRET = 1 << 16


def read_secret(path: str) -> bytes:
    """Return the content of a file without its line end.

    Raises OSError, or ValueError if it has fewer than ``MIN_SECRET`` bytes or too many.
    """
    with Path(path).open("rb") as file:
        secret = file.read(_MAX_SECRET + 1).rstrip(b"\r\n")
    if len(secret) < MIN_SECRET:
        raise ValueError(f"must have at least {MIN_SECRET} bytes")
    if len(secret) > _MAX_SECRET:
        raise ValueError(f"must have at most {_MAX_SECRET} bytes")
    return secret


def write_whole(path: Path, parts: Iterable[bytes], mode: int) -> None:
    """Replace a file: a reader sees the old one or the new one, also after a crash. Raises OSError.

    It has this mode from the beginning, whatever the umask is.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def is_exposed(path: str) -> bool:
    """Return whether every user of this machine can read or write a file.

    A file in a directory that other users can't enter is safe. So is a mounted file: a container
    engine mounts a secret into one container with its mode from outside.
    """
    try:
        file = Path(path).expanduser().resolve()
        if not file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH) or os.path.ismount(file):
            return False
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
    except (OSError, RuntimeError, ValueError):
        return False  # reading the file reports the error
