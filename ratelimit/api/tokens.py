"""Who may use the API: the tokens of a file, one ``name:role:token`` a line.

Several tokens may have one name, so that one can be replaced while the other still works. Only
their hashes stay in memory.
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
    """What a caller may do; the higher one may do more."""

    NOBODY = 0
    VIEW = 1
    BLOCKS = 2
    """May also block and lift blocks."""
    OPERATE = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; ``name`` is that of the token, empty without one."""

    name: str
    role: Role


STRANGER = Caller("", Role.NOBODY)
"""Who has not shown a token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The callers by the SHA-256 of their tokens."""

    callers: tuple[tuple[bytes, Caller], ...]

    def find(self, token: str) -> Caller | None:
        """Return whose token it is, in a time that tells nothing of the tokens there are."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self.callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def read_tokens(path: Path) -> Tokens:
    """Return the tokens of a file. Raises ValueError, which never shows any of them."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(raw) > _MAX_FILE:
        raise ValueError(f"{path}: more than {_MAX_FILE} bytes")
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
        raise ValueError(f"{path}: there is no token in it")
    return Tokens(tuple(callers.items()))
