"""The secret with which strings are hashed (``engine.key``), in a file of the state directory.

With the embedded store it is made at the first start. With Redis it is the fleet's, and kept here
for two cases: a node that starts while Redis is down hashes strings like the other nodes, and a
Redis that has lost its data gets the same secret again; with another secret, no block of a string
would match its client. Anyone with the secret can test which string a hash belongs to.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from pathlib import Path

import structlog

from ratelimit.exceptions import StartError
from ratelimit.files import write_whole

SEED = 32
"""Hexadecimal digits in the file."""

_DIGITS = re.compile(rf"[0-9a-f]{{{SEED}}}")

log = structlog.get_logger()


class KeptSecret:
    """The secret, kept in the file ``path`` if given; ``seed`` is empty until known."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.seed = ""

    @property
    def secret(self) -> bytes:
        """The secret, 16 bytes; empty until known."""
        if not self.seed:
            return b""
        return hashlib.blake2b(self.seed.encode(), digest_size=16).digest()

    def read(self) -> None:
        """Read the file, if it exists and is valid."""
        try:
            self.seed = self._read()
        except StartError as error:
            log.warning("the file with the secret of strings is not used", why=str(error))

    def make(self) -> None:
        """Read the file, or create it. Raises StartError."""
        self.seed = self._read()
        if not self.seed:
            self.seed = secrets.token_hex(SEED // 2)
            try:
                self._write()
            except OSError as error:
                what = f"store.state_dir: can't write to {self.path}: {error.strerror}"
                raise StartError(what) from error

    def _read(self) -> str:
        if self.path is None:
            return ""
        try:
            text = self.path.read_text("ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StartError(f"store.state_dir: can't read {self.path}: {error}") from error
        if not _DIGITS.fullmatch(text):
            raise StartError(
                f"{self.path}: must have {SEED} hexadecimal digits; restore a copy or remove "
                "the file: existing blocks of strings will then match no client"
            )
        return text

    def learn(self, seed: str) -> None:
        """Set the fleet's secret; the file is written in a thread."""
        if seed == self.seed:
            return
        self.seed = seed
        if self.path is not None and _DIGITS.fullmatch(seed):
            threading.Thread(target=self._try_to_write, name="secret", daemon=True).start()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:
            log.warning(
                "the secret of strings can't be stored: after a restart while the store is "
                "down, clients with string keys will be unknown",
                file=str(self.path),
                why=error.strerror,
            )

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.path, [f"{self.seed}\n".encode()], 0o600)
