"""Keys that are not addresses: stored as a keyed hash, shown as a hint and the hash.

An API key, a cookie or the subject of a token must not appear in logs, in Redis, in files, in
webhooks or on screens. So the key of a string is its SipHash (``engine.key``) wherever it is stored
or sent. An operator finds a client by the string itself, which is hashed on input, or by any form
that was shown. A limit with ``secret = false`` counts public strings, such as user names, and shows
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

from ratelimit.limiter.keys import hash_of, is_key, is_like_address
from ratelimit.model import Block, Lift
from ratelimit.notation import printable

_MAX_TEXT = 100  # characters shown of a string
_HINT = re.compile(rb"[A-Za-z0-9_.-]{1,4}")
_HINTED = 16  # bytes from which on a string is long enough for a hint

DIGEST = 32
"""Bytes of a key of HAProxy's tables for strings, their SHA-256."""

_MASKED = 12  # characters from which on a key may be a secret

E = TypeVar("E", Block, Lift)


def string_text(string: bytes, key: str, secret: bool) -> str:
    """Return the text to show for a string; ``key`` is its hash.

    With ``secret``, the text is the hash; for strings of 16 bytes or more, up to four of their
    first letters and digits come before it. Otherwise it is the string; if that is long,
    unprintable, or ambiguous, its hash follows. Each of these forms is accepted as input for the
    same key. Of a digest, which no person knows, the text is the hash.
    """
    if wire_of(string):
        return key
    if secret:
        hint = _HINT.match(string) if len(string) >= _HINTED else None
        return f"{hint[0].decode() if hint else ''}{key}"
    text = string.decode("utf-8", "backslashreplace")
    if (
        text.encode() == string
        and len(text) <= _MAX_TEXT
        and text.isprintable()
        and text == text.strip() != ""
        and hash_of(text) is None
        and not is_like_address(text)
    ):
        return text
    return f"{printable(text)[:_MAX_TEXT].strip()}{key}"


def wire_of(string: bytes) -> str:
    """Return the key of a string in HAProxy's tables, if the string is such a key; else nothing.

    HAProxy has digests as keys of its tables, so that no table shows a string.
    """
    return string.hex() if len(string) == DIGEST and not _is_text(string) else ""


def wire_for(string: bytes, key: str, key_of: Callable[[bytes], str]) -> str:
    """Return the key in HAProxy's tables of a string that an operator gave, or nothing.

    ``key`` is the key of the blocklist: HAProxy has this client if it is the key of the digest.
    """
    digest = sha256(string).digest()
    return digest.hex() if key_of(digest) == key else ""


def _is_text(string: bytes) -> bool:
    try:
        return string.decode().isprintable()
    except UnicodeDecodeError:
        return False


def kept(entry: E, secret: bool, key_of: Callable[[bytes], str]) -> E:
    """Return a block or lift in the form in which it is kept, whatever version made it.

    Up to 0.1, the key of a string was the string itself, or its beginning and the hash. ``secret``
    is the setting of the limit; ``key_of`` returns the key of a string.
    """
    text = "" if is_key(entry.key) else entry.key
    if isinstance(entry, Block):
        text = text or entry.text
    if not text:
        return entry
    string = text.encode("utf-8", "surrogatepass")
    hashed = hash_of(text)
    key = hashed or key_of(string)
    if isinstance(entry, Lift):
        return replace(entry, key=key)
    shown = kept_text(text, key, secret) if hashed else string_text(string, key, secret)
    return replace(entry, key=key, text=shown)


def masked(key: str) -> str:
    """Return a key of a damaged entry for the log, where it can't be hashed.

    A long key that is not a hash may be a secret stored by an earlier version. A short one is
    shown, because it is more likely the rest of a key and must be found.
    """
    if len(key) < _MASKED or is_key(key):
        return key
    return hash_of(key) or f"{key[:4]}... ({len(key)} characters)"


def kept_text(text: str, key: str, secret: bool) -> str:
    """Return the text to show for a string that was shown as ``text`` with its hash ``key``."""
    begin = text[: -len(key)]
    if not secret:
        return f"{begin[:_MAX_TEXT]}{key}"
    if len(begin) > 4:
        return string_text(begin.encode("utf-8", "surrogatepass"), key, True)
    return f"{begin}{key}"
