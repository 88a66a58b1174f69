"""The paths of the API, as the documents and the description have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import uvloop

from ratelimit.api.routes import ROUTES
from tests.helpers.running import running

pytestmark = pytest.mark.integration

DOCUMENTED = [
    ("GET", "/v1/blocks"),
    ("POST", "/v1/blocks"),
    ("GET", "/v1/blocks/{key}"),
    ("DELETE", "/v1/blocks/{key}"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/clients"),
    ("GET", "/v1/clients/{key}"),
    ("GET", "/v1/limits"),
    ("DELETE", "/v1/limits/{name}/fuse"),
    ("GET", "/v1/status"),
    ("GET", "/v1/nodes"),
    ("GET", "/v1/haproxy"),
    ("POST", "/v1/haproxy/servers/{backend}/{server}"),
    ("GET", "/v1/events"),
    ("POST", "/v1/reload"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/"),
]
"""Of the contract; ``/v1/check`` is none of this address."""


def test_every_path_of_the_contract_is_there_and_described(tmp_path: Path) -> None:
    assert sorted((route.method, route.path) for route in ROUTES) == sorted(DOCUMENTED)
    page = Path(__file__).parents[2] / "docs" / "api.md"
    written = re.findall(r"^\| `(GET|POST|DELETE) ([^`?]+)", page.read_text(), re.MULTILINE)
    assert sorted(written) == sorted(DOCUMENTED)

    async def main() -> None:
        async with running(tmp_path) as api:
            about = (await api.client.get("/openapi.json")).json()
            assert about["openapi"] == "3.1.0"
            described = [
                (method.upper(), path)
                for path, methods in about["paths"].items()
                for method in methods
            ]
            assert sorted(described) == sorted(DOCUMENTED)
            for _, path in DOCUMENTED:
                if path != "/v1/events":
                    there = path.replace("{key}", "192.0.2.1").replace("{name}", "default")
                    answer = await api.client.get(there)
                    assert answer.status_code in (200, 404, 405), path
                    kind = answer.headers["content-type"].partition(";")[0]
                    named = about["paths"][path].get("get", {}).get("responses", {})
                    if named:
                        assert kind in named[str(answer.status_code)]["content"], path

    uvloop.run(main())
