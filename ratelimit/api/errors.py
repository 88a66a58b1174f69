"""Error answers (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from pydantic import ValidationError

from ratelimit.api.models import FieldProblem, Problem
from ratelimit.notation import printable

_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}

CONTENT_TYPE = "application/problem+json"


class ProblemError(Exception):
    """A request that can't be answered; ``response()`` makes the error answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[FieldProblem] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}

    @classmethod
    def of(cls, error: ValidationError) -> ProblemError:
        """Return the errors of a model's validation, one for each field."""
        found = []
        for one in error.errors(include_url=False, include_input=False):
            field = ".".join(str(part) for part in one["loc"]) or "body"
            # The name of an unknown field is arbitrary input, possibly half a surrogate pair.
            message = _MESSAGES.get(one["type"]) or one["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "must be")
            found.append(FieldProblem(field=printable(field[:100]), message=message))
        return cls(422, "; ".join(f"{one.field}: {one.message}" for one in found), found)

    @classmethod
    def field(cls, status: int, field: str, message: str) -> ProblemError:
        """Return the error of one field."""
        return cls(status, f"{field}: {message}", [FieldProblem(field=field, message=message)])

    def response(self) -> web.Response:
        """Return the HTTP response."""
        body = Problem(
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            errors=self.errors,
        )
        return web.Response(
            status=self.status,
            body=body.model_dump_json().encode(),
            content_type=CONTENT_TYPE,
            headers=self.headers,
        )
