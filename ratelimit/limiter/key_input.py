"""Keys as operators enter them: an address, a network, the string itself, or a form that was shown.

A string in clear is hashed here and does not appear in stored data, logs and answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from ratelimit.limiter.keys import (
    canonical,
    counted_key,
    has_host_bits,
    hash_of,
    key_network,
    misses_nat64,
    network_text,
    parse_network,
)
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.string_keys import kept_text, string_text
from ratelimit.model import EVERY_LIMIT

MAX_GIVEN = 4096
"""Characters of a key as input."""

_WIDEST = {4: 8, 6: 19}
"""Prefix lengths of the widest networks that are blocked without force: no provider has a wider
one.
"""


@dataclass(frozen=True, slots=True)
class Given:
    """A key that an operator entered.

    Attributes:
        key: in the form of the blocklist.
        note: corrections, or empty.
        string: the string, if it was entered in clear.
        text: the input, if it had the hash.
    """

    key: str
    note: str = ""
    string: bytes = field(default=b"", repr=False)
    text: str = field(default="", repr=False)

    def shown(self, secret: bool) -> str:
        """Return the text to show; ``secret`` as in ``limiter.string_keys``."""
        if self.string:
            return string_text(self.string, self.key, secret)
        return kept_text(self.text, self.key, secret) if self.text else self.key


def read(limiter: Limiter, text: str, force: bool = False) -> Given:
    """Return the key that a text means. Raises ValueError.

    A text that resembles an address is an error: as a string, no limit would count it. It is
    accepted as a string if a limit counts one like it, or with ``force``.
    """
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable, without spaces around it")
    if not text:
        raise ValueError("must not be empty")
    if len(text) > MAX_GIVEN:
        raise ValueError(f"must have at most {MAX_GIVEN} characters")
    hashed = hash_of(text)
    if hashed is not None:
        return Given(hashed, text=_shown_before(limiter, hashed) or text)
    string = text.encode()
    try:
        key = canonical(text)
    except ValueError:
        key = _string_key(limiter, string)
        if not force and not limiter.is_known(key):
            raise
        return Given(key, string=string)
    if key is None:
        return Given(_string_key(limiter, string), string=string)
    return Given(key, note=_correction(text, key))


def told(limiter: Limiter, text: str) -> str:
    """Return the text to log for input that may be a key, valid or not."""
    try:
        return network_text(parse_network(text, strict=False))
    except ValueError:
        hashed = hash_of(text)
    if hashed is not None:
        return hashed
    string = text.encode("utf-8", "surrogatepass")
    return string_text(string, _string_key(limiter, string), True)


def too_wide(key: str) -> str:
    """Return why a network is too wide to be blocked without force; empty if it is not."""
    network = key_network(key)
    if network is None or network.prefixlen >= _WIDEST[network.version]:
        return ""
    also = ", and every IPv4 address" if key == "::/0" else ""
    return (
        f"{key} is {network.num_addresses:,} addresses{also}; "
        f"wider than /{_WIDEST[network.version]} needs force"
    )


def reach(limiter: Limiter, key: str) -> str:
    """Return how the block of a key differs from what the limits count; empty if it does not."""
    network = key_network(key)
    if network is None:
        if limiter.is_known(key):
            return ""
        return "no limit of this node currently counts a client with this key"
    notes = [missed] if (missed := misses_nat64(network)) else []
    clients: dict[str, list[str]] = {}
    for rule in limiter.engine.rules:
        counted = counted_key(key, rule.limit)
        if counted != key:
            clients.setdefault(counted, []).append(rule.limit.name)
    notes += [
        f"{'limits' if len(names) > 1 else 'limit'} {', '.join(names)}: {counted} counts as one "
        f"client, but this block applies only to {key}; to block the client, block {counted}"
        for counted, names in clients.items()
    ]
    return ". ".join(notes)


def _string_key(limiter: Limiter, string: bytes) -> str:
    """Return the key of a string: of its digest if that is what HAProxy counts (peers mode)."""
    key = limiter.string_key(string)
    digest = limiter.string_key(sha256(string).digest())
    counted = bool(limiter.digests) or limiter.is_known(digest)
    return digest if counted and not limiter.is_known(key) else key


def _shown_before(limiter: Limiter, key: str) -> str:
    """Return the text, with its hint, that the blocklist shows for a hash, or nothing."""
    names = (EVERY_LIMIT, *(rule.limit.name for rule in limiter.engine.rules))
    blocks = (limiter.blocklist.get(name, key) for name in names)
    return next((one.text for one in blocks if one is not None and hash_of(one.text)), "")


def _correction(written: str, key: str) -> str:
    if has_host_bits(written):
        return f"{written} has host bits; the network is {key}"
    return f"{written} is {key}" if written != key else ""
