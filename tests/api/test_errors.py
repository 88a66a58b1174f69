"""Error answers (RFC 9457)."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from ratelimit.api.errors import CONTENT_TYPE, ProblemError
from ratelimit.api.models import NewBlock


def test_each_wrong_field_is_named_with_what_was_expected() -> None:
    with pytest.raises(ValidationError) as caught:
        NewBlock.model_validate({"ttl": "soon", "line\n": 1})
    problem = ProblemError.of(caught.value)
    assert problem.status == 422
    found = {one.field: one.message for one in problem.errors}
    assert found["key"] == "is required"
    assert found["line\\n"] == "unknown field"
    assert set(found) == {"key", "ttl", "line\\n"}
    assert all(f"{field}: {message}" in problem.detail for field, message in found.items())


def test_an_error_is_an_answer() -> None:
    problem = ProblemError.field(409, "key", "is taken")
    problem.headers["Retry-After"] = "3"
    answer = problem.response()
    assert (answer.status, answer.content_type) == (409, CONTENT_TYPE)
    assert answer.headers["Retry-After"] == "3"
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "key: is taken",
        "errors": [{"field": "key", "message": "is taken"}],
    }
