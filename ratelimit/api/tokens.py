"""The tokens of the API: a file with one ``name:role:token`` per line.

Several tokens may have the same name, so that a new token can be added before the old one is
removed. Only hashes of the tokens stay in memory.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

MIN_TOKEN = 16
"""Characters; ``openssl rand -hex 32`` makes 64."""

_LINE = re.compile(rf"([A-Za-z0-9_.-]{{1,64}}):(view|blocks|operate):([!-~]{{{MIN_TOKEN},512}})")
_MAX_FILE = 1 << 20


class Role(enum.IntEnum):
    """What a caller may do; a higher role includes the lower ones."""

    NOBODY = 0
    VIEW = 1
    BLOCKS = 2
    """May block and unblock."""
    OPERATE = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request; ``name`` is that of its token, empty without a token."""

    name: str
    role: Role


STRANGER = Caller("", Role.NOBODY)
"""A caller without a token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The callers by the SHA-256 of their tokens."""

    callers: tuple[tuple[bytes, Caller], ...]

    def find(self, token: str) -> Caller | None:
        """Return the caller of a token, in a time that reveals nothing about the tokens."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self.callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def read_tokens(path: Path) -> Tokens:
    """Return the tokens of a file. Raises ValueError, whose text never contains a token."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(raw) > _MAX_FILE:
        raise ValueError(f"{path}: larger than {_MAX_FILE} bytes")
    callers: dict[bytes, Caller] = {}
    for number, line in enumerate(raw.decode("utf-8-sig", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{path}: line {number} is not NAME:view:TOKEN, NAME:blocks:TOKEN or "
                f"NAME:operate:TOKEN with a token of {MIN_TOKEN} to 512 characters"
            )
        digest = hashlib.sha256(match[3].encode()).digest()
        if digest in callers:
            raise ValueError(f"{path}: line {number} has the token of another line")
        callers[digest] = Caller(match[1], Role[match[2].upper()])
    if not callers:
        raise ValueError(f"{path}: contains no token")
    return Tokens(tuple(callers.items()))
