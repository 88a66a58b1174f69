"""The Redis permissions of the agent in docs/operations.md."""

from __future__ import annotations

import re
from pathlib import Path

_DOC = Path(__file__).parent.parent.parent / "docs" / "operations.md"


def rights(place: str) -> list[str]:
    """Return the rules of ``ACL SETUSER`` for a place: ``server``, ``cluster``,
    ``sentinel`` or ``replicas``.

    The user is to be ``ratelimit`` with the password ``secret``, and the prefix that of the tests.
    """
    found = re.findall(
        rf"(?m)^    ACL SETUSER ratelimit ((?:.*\\\n)*.*)  # {place}$", _DOC.read_text()
    )
    (rules,) = found
    words = str(rules).replace("\\\n", " ").replace("ratelimit:", "test:").split()
    return [word.replace(">PASSWORD", ">secret") for word in words]


def commands(place: str) -> set[str]:
    """Return the commands that these rules permit, in the form of INFO."""
    return {word[1:] for word in rights(place) if word.startswith("+")}
