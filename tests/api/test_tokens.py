"""The file of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.api.tokens import Role, read_tokens
from tests.helpers.tokens import ANN, BOB, NEXT, TOKENS, write

if TYPE_CHECKING:
    from pathlib import Path


def test_tokens_are_read(tmp_path: Path) -> None:
    tokens = read_tokens(write(tmp_path, TOKENS + f"ann:operate:{NEXT}\n"))
    ann, bob, later = (tokens.find(token) for token in (ANN, BOB, NEXT))
    assert ann is not None and bob is not None and later is not None
    assert (ann.name, ann.role) == ("ann", Role.OPERATE) == (later.name, later.role)
    assert (bob.name, bob.role) == ("bob", Role.VIEW)
    for other in ("", ANN[:-1], ANN + "a", "ü", "\udcff"):
        assert tokens.find(other) is None
    assert ANN not in repr(tokens)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "contains no token"),
        ("# ann:operate:" + ANN, "contains no token"),
        (ANN, "line 1 is not NAME:view:TOKEN, NAME:blocks:TOKEN or NAME:operate:TOKEN"),
        (f"\nann:admin:{ANN}", "line 2 is not NAME:view:TOKEN"),
        (f"an n:view:{ANN}", "line 1 is not"),
        ("ann:view:short", "a token of 16 to 512 characters"),
        (f"ann:view:{ANN}\nbob:view:{ANN}", "line 2 has the token of another line"),
    ],
)
def test_tokens_that_can_not_be_meant(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        read_tokens(write(tmp_path, text))
    assert ANN not in str(caught.value)
