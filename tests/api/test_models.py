"""What the fields of a request may have."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ratelimit.api.models import MAX_TTL, BlocksQuery, NewBlock


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("1s", 1), ("10m", 600), ("30d", MAX_TTL), (1, 1), (MAX_TTL, MAX_TTL)],
)
def test_a_time_to_live_is_a_duration_or_whole_seconds(given: object, seconds: int) -> None:
    assert NewBlock.model_validate({"key": "a", "ttl": given}).ttl == seconds


@pytest.mark.parametrize("given", [0, MAX_TTL + 1, "31d", "1500ms", "soon", True, 1.0, None])
def test_what_is_no_time_to_live(given: object) -> None:
    with pytest.raises(ValidationError, match="ttl"):
        NewBlock.model_validate({"key": "a", "ttl": given})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="color"):
        NewBlock.model_validate({"key": "a", "ttl": 1, "color": "red"})
    with pytest.raises(ValidationError, match="color"):
        BlocksQuery.model_validate({"color": "red"})
