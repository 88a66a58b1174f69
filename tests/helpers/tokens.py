"""Tokens of three operators, and requests with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


ANN, BOB, NEXT = "a" * 32, "b" * 32, "n" * 32

TOKENS = f"""
# Who may do what.
ann:operate:{ANN}
bob:view:{BOB}
"""


BODY = {"key": "192.0.2.7", "ttl": "1m"}


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
