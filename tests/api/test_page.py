"""The page for people: what it may do in a browser, and that it asks for what there is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

import pytest

from ratelimit.api.page import PAGE, POLICY
from ratelimit.api.routes import ROUTES
from tests.helpers.running import running
from tests.helpers.tokens import ANN, TOKENS, bearer, write


def inside(tag: str) -> str:
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return str(text)


def test_only_its_own_script_and_style_are_allowed() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(inside(tag).encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"unsafe|\*|https?:", POLICY)


def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup() -> None:
    assert not re.search(r"https?:|src=|@import|url\(", PAGE)
    assert not re.search(r"<[a-z][^>]*\s(on\w+|style)=", PAGE)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval", PAGE)
    assert set(re.findall(r'href="([^"]*)"', PAGE)) == {"data:,"}


def test_it_asks_for_what_there_is_and_finds_its_elements() -> None:
    script = inside("script")
    paths = {re.sub(r"\$\{.*", "{key}", one) for one in re.findall(r'[`"](/v1/[^`"?]*)', script)}
    assert len(paths) == 5
    assert paths <= {route.path for route in ROUTES}
    named = set(re.findall(r' id="(\w+)"', PAGE))
    used = set(re.findall(r'(?:\$|table|onSubmit)\("(\w+)"', script))
    assert used <= named
    assert len(used) > 10


@pytest.mark.integration
def test_it_is_there_without_a_token_and_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, TOKENS)

    async def main() -> None:
        async with running(tmp_path, f"[ops]\ntoken_file = '{path}'\n") as api:
            answer = await api.client.get("/")
            assert answer.text == PAGE
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-store"
            for headers, policy in (({}, 401), (bearer(ANN), 200)):
                answer = await api.client.get("/v1/status", headers=headers)
                assert answer.status_code == policy
                policy_of_json = answer.headers["content-security-policy"]
                assert policy_of_json == "default-src 'none'; frame-ancestors 'none'"

    asyncio.run(main())
