"""Files that hold a secret: read, and whether other users of the machine can read them too."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MIN_SECRET = 16
"""Bytes; ``openssl rand -hex 32`` makes 64."""

_MAX_SECRET = 1 << 16


def read_secret(path: str) -> bytes:
    """Return what a file holds, without the end of its line.

    Raises OSError, and ValueError if it holds less than ``MIN_SECRET`` bytes or is no such file.
    """
    with Path(path).open("rb") as file:
        secret = file.read(_MAX_SECRET + 1).rstrip(b"\r\n")
    if len(secret) < MIN_SECRET:
        raise ValueError(f"must hold at least {MIN_SECRET} bytes")
    if len(secret) > _MAX_SECRET:
        raise ValueError(f"must hold at most {_MAX_SECRET} bytes")
    return secret


def is_exposed(path: str) -> bool:
    """Tell whether every user of this machine can read a file, or write to it.

    A file in a folder that they can't enter is safe, and so is one that is mounted by itself: that
    is how a container engine gives a secret to one container, with the mode that it has outside.
    """
    try:
        file = Path(path).expanduser().resolve()
        if not file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH) or os.path.ismount(file):
            return False
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
    except (OSError, RuntimeError, ValueError):
        return False  # whoever reads it says what is wrong with it
