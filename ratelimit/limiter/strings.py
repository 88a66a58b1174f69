"""Keys that are not addresses: kept as a keyed hash, shown as that and a hint.

An API key, a cookie or the subject of a token must not be in a log, in Redis, in a file, in a
webhook or on a screen, where others than its owner find it. So the key of a string is its SipHash
(``engine.key``) in all that is kept and told. A person finds a client by the string itself, which
is hashed where it is given, or by any form that was shown. A limit that says ``secret = false``
counts what may be seen, such as the names of users, and shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ratelimit.limiter.keys import hash_of, is_key, is_like_address
from ratelimit.model import Block, Lift

_MAX_TEXT = 100  # characters that are shown of a string
_HINT = re.compile(rb"[A-Za-z0-9_.-]{1,4}")
_HINTED = 16  # bytes of a string that is long enough to spare a few

_MASKED = 12  # characters of a key that may be one

E = TypeVar("E", Block, Lift)


def string_text(string: bytes, key: str, secret: bool) -> str:
    """Return what is shown of a string; ``key`` is its hash.

    With ``secret``, that is the hash, behind the first letters and digits of a string of 16 bytes
    or more, four at most. Else it is the string; if that is long, can't be printed, or could be
    taken for something else, its hash is behind it. Given back, each of these is the same key.
    """
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
    begin = (text if text.isprintable() else ascii(text)[1:-1])[:_MAX_TEXT]
    return f"{begin.strip()}{key}"


def kept(entry: E, secret: bool, key_of: Callable[[bytes], str]) -> E:
    """Return a block or a lift as it is kept, whatever version or configuration it was made by.

    Up to 0.1 the key of a string was the string itself, or its beginning with the hash behind it.
    ``secret`` is what the limit says now; ``key_of`` returns the hash of a string as a key.
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
    """Return a key as it may be logged where nothing can hash it: that of a damaged entry.

    A long one that is no hash may be the secret of an entry of an earlier version. A short one is
    more likely to be what is left of a key, and has to be found.
    """
    if len(key) < _MASKED or is_key(key):
        return key
    return hash_of(key) or f"{key[:4]}... ({len(key)} characters)"


def kept_text(text: str, key: str, secret: bool) -> str:
    """Return what is shown of a string that was shown as ``text``, with its hash ``key``."""
    begin = text[: -len(key)]
    if not secret:
        return f"{begin[:_MAX_TEXT]}{key}"
    if len(begin) > 4:
        return string_text(begin.encode("utf-8", "surrogatepass"), key, True)
    return f"{begin}{key}"
