"""Suggests the intended address or network for a text that resembles one.

No client has the address ``192.0.2.*`` or ``http://192.0.2.7/``. As a string key it would block no
client, without an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from ipaddress import ip_address, ip_network, summarize_address_range
from urllib.parse import urlsplit

_LONGEST = 200  # characters; an address has 45
_MOST = 4  # networks that are suggested for a range
_QUOTES = "\"'`<>"
_SIGNS = {"\u2212": "-", "\u3002": ".", "\uff61": "."}  # a minus sign, ideographic full stops

Forms = tuple[str, ...]
"""The nearest valid forms; empty if none is near enough."""


def meant(text: str) -> Forms | None:
    """Return the valid forms nearest to a text that resembles an address or a network.

    Returns None for an address, a network, and any other string.
    """
    if len(text) > _LONGEST or _valid(text):
        return None
    plain = _plain(text)
    if plain != text and _valid(plain):
        return (plain,)
    parts = [part for part in re.split(r"[\s,;]+", plain) if part]
    if len(parts) > 1 and all(map(_valid, parts)):
        return tuple(parts[:_MOST])
    for pattern, read in _PATTERNS:
        found = pattern.fullmatch(plain)
        if found is not None:
            return tuple(form for form in read(found) if _valid(form))
    return None


def _plain(text: str) -> str:
    """Return a text with ASCII equivalents of its characters, without quotes and spaces."""
    signs = []
    for sign in text:
        digit = unicodedata.decimal(sign, None)
        kind = unicodedata.category(sign)
        if digit is not None:
            signs.append(str(digit))
        elif kind == "Pd":  # a dash of any length
            signs.append("-")
        elif kind != "Cf":  # such as a zero-width space
            signs.append(_SIGNS.get(sign, sign))
    return unicodedata.normalize("NFKC", "".join(signs)).strip().strip(_QUOTES).strip()


def _valid(text: str) -> bool:
    if not text.isascii() or "%" in text:
        return False
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _url(found: re.Match[str]) -> Forms:
    try:
        return (urlsplit(found[0]).hostname or "",)
    except ValueError:
        return ()


def _first(found: re.Match[str]) -> Forms:
    return (found[1],)


def _range(found: re.Match[str]) -> Forms:
    first, last = found[1], found[2]
    if last.isdigit():
        last = f"{first.rpartition('.')[0]}.{last}"
    try:
        networks = list(summarize_address_range(ip_address(first), ip_address(last)))
    except (ValueError, TypeError):  # of different IP versions, or in the wrong order
        return ()
    if len(networks) > _MOST:
        return ()
    return tuple(str(one).removesuffix("/32").removesuffix("/128") for one in networks)


def _ipv4(found: re.Match[str]) -> Forms:
    """Read numbers, of which the last may be missing or a wildcard."""
    numbers = found[1].rstrip(".").split(".")
    known = [number for number in numbers if number.isdigit()]
    if numbers[: len(known)] != known or not known or any(int(number) > 255 for number in known):
        return ()
    address = ".".join(str(int(number)) for number in known + ["0"] * (4 - len(known)))
    bits = (found[2] or "").removeprefix("/")
    if _valid(f"{address}/{bits}"):
        return (f"{address}/{bits}",)
    return (address if len(known) == 4 else f"{address}/{8 * len(known)}",)


def _ipv6(found: re.Match[str]) -> Forms:
    """Read groups, of which the last may be missing or a wildcard."""
    groups = [group for group in found[1].split(":") if group]
    bits = (found[2] or "").removeprefix("/")
    if len(groups) == 8:
        return (":".join(groups),)
    address = ":".join(groups) + "::"
    if _valid(f"{address}/{bits}"):
        return (f"{address}/{bits}",)
    return (f"{address}/{16 * len(groups)}",)


_ANY = r"(?:\*|[xX])"
_NUMBER = r"[0-9]+"
_PART = f"(?:{_NUMBER}|{_ANY})"
_GROUP = "[0-9A-Fa-f]{1,4}"
_SIX = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"

_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Forms]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), read)
    for pattern, read in (
        (r"[A-Za-z][A-Za-z0-9+.-]*://.*", _url),
        (rf"({_NUMBER}(?:\.{_NUMBER}){{3}}):[0-9]*", _first),
        (rf"\[({_SIX})\](?::[0-9]*)?", _first),
        (rf"({_SIX})%.*", _first),
        (rf"({_NUMBER}(?:\.{_NUMBER}){{3}}) ?- ?({_NUMBER}(?:\.{_NUMBER}){{3}}|{_NUMBER})", _range),
        (rf"({_SIX}) ?- ?({_SIX})", _range),
        # At least two numbers, or a wildcard, or a prefix: a number alone is a string.
        (rf"({_NUMBER}(?:\.{_NUMBER}){{1,3}}(?:\.{_ANY}){{0,3}}\.?)(/.*)?", _ipv4),
        (rf"({_NUMBER}(?:\.{_ANY}){{1,3}}\.?)(/.*)?", _ipv4),
        (rf"({_NUMBER}\.)(/.*)?", _ipv4),
        (rf"({_NUMBER})(/[0-9]{{1,2}})", _ipv4),
        (rf"(?=.*[0-9]){_PART}(?:\.{_PART}){{3}}(?:/.*)?", lambda _: ()),
        (rf"((?:{_GROUP}:){{2,7}}):\*", lambda found: (f"{found[1]}:/112",)),
        (rf"((?:{_GROUP}:){{1,7}})\*(?::\*)*(/.*)?", _ipv6),
        # The first group of a global address has four digits; ``12:34`` or a MAC is a string.
        (rf"((?=[23fF]...:)[^:]{{4}}(?::{_GROUP}){{2,7}}:?)(/.*)?", _ipv6),
        (rf"((?=[23fF]...:)(?=.*[A-Fa-f])[^:]{{4}}:{_GROUP}:?)(/.*)?", _ipv6),
        (r"([0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*)(?:/.*)?", _first),
        (r"([0-9A-Fa-f]*(?::[0-9A-Fa-f]*){6,})(?:/.*)?", _first),
    )
)
