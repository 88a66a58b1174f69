"""The OpenAPI 3.1 description of the API, generated from the routes and their models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ratelimit import __version__
from ratelimit.api.errors import CONTENT_TYPE
from ratelimit.api.models import Problem
from ratelimit.api.routes import Route
from ratelimit.api.tokens import Role
from ratelimit.limiter.key_input import MAX_GIVEN

_Mode = Literal["validation", "serialization"]

_ALWAYS = {
    400: "The request is malformed.",
    403: "The request comes from another site, or the token's role does not permit it.",
    408: "The request did not arrive in time.",
    421: "On loopback: Host is not a local name.",
    422: "A field is invalid; `errors` names it.",
}
_WITH_TOKEN = {401: "The token is missing or unknown."}
_WITH_BODY = {413: "The body is too large.", 415: "The body is not application/json."}


def describe(routes: Sequence[Route]) -> bytes:
    """Return the description as JSON."""
    wanted = dict.fromkeys(_models(routes))
    refs, definitions = models_json_schema(
        list(wanted), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "ratelimit",
            "version": __version__,
            "description": "The blocklist and the state of a node, for its operators.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    return json.dumps(document, indent=1).encode()


def _models(routes: Sequence[Route]) -> Iterator[tuple[type[BaseModel], _Mode]]:
    yield Problem, "serialization"
    for route in routes:
        if route.body is not None:
            yield route.body, "validation"
        if isinstance(route.answer, type):
            yield route.answer, "serialization"
        if route.partly is not None:
            yield route.partly, "serialization"


def _operation(route: Route, refs: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    operation["security"] = [] if route.role is Role.NOBODY else [{"token": []}, {}]
    parameters = [*_path_parameters(route.path), *_query_parameters(route.query)]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = _content(refs[route.body, "validation"])
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = {str(route.status): _answer(route, refs)}
    if route.partly is not None:
        content = _content(refs[route.partly, "serialization"])
        what = "Done, but not by every HAProxy of the node."
        operation["responses"]["200"] = {"description": what, "content": content}
    if route.cached:
        operation["responses"]["304"] = {"description": "The answer still matches If-None-Match."}
    problems = _ALWAYS | route.problems
    if route.role is not Role.NOBODY:
        problems |= _WITH_TOKEN
    if route.body is not None:
        problems |= _WITH_BODY
    content = _content(refs[Problem, "serialization"], CONTENT_TYPE)
    for status, why in sorted(problems.items()):
        operation["responses"][str(status)] = {"description": why, "content": content}
    return operation


def _answer(route: Route, refs: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": route.summary}
    if isinstance(route.answer, str):
        kind = "object" if route.answer.endswith("json") else "string"
        answer["content"] = _content({"type": kind}, route.answer)
    elif route.answer is not None:
        answer["content"] = _content(refs[route.answer, "serialization"])
    if route.status == 201:
        answer["headers"] = {"Location": {"required": True, "schema": {"type": "string"}}}
    return answer


def _content(schema: Any, kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_GIVEN},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(mode="validation")
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": about.pop("description", ""),
            "schema": about,
        }
        for name, about in schema.get("properties", {}).items()
    ]
