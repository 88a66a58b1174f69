"""Ways round the limits for logins and API keys, which must not be any."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.helpers.world import World, closed, run

pytestmark = pytest.mark.integration

LOGIN = "[limits.login]\nrate = 5\nwindow = '1h'\nblock = []\n"
KEYS = "[limits.api_key]\nrate = 5\nwindow = '1h'\nblock = []\n"

PATHS = [
    *(
        "/login",
        "/%6cogin",
        "//login",
        "/login/",
        "/LOGIN",
        "/./login",
        "/x/../login",
        "/login?x=1",
    ),
    *("/login/.", "/login/./", "/login//.", "/login/x/..", "/a/b/../../login", "/%2e/login"),
    *("/%2e%2e/login", "/x/%2e%2e/login", "/%256cogin", "/login;id=1", "/x;y/..;z/login"),
    *("/%5clogin", "/login%2f", "/login%3fx", "/login%23x", "/.//login", "//x//..//login"),
    *("/login%20", "/login;%zz", "/a/b/c/d/e/f/../../../../../../login", "http://test/./login"),
    # More than PCRE's JIT can replace at once.
    *("/" + 4000 * "./" + "login", "/login" + 4000 * "/."),
]
"""Ways to write the path of a login."""

OTHERS = [
    "/",
    "/xlogin",
    "/login/x",
    "/x/login",
    "/login.",
    "/a..b",
    "/...",
    "/login...",
    "/logins",
]


@pytest.mark.parametrize("configured", ["/login", "/login/", "/Login"])
def test_a_login_is_counted_however_its_path_is_written(tmp_path: Path, configured: str) -> None:
    async def test(w: World) -> None:
        client = w.client("127.9.0.1")
        for path in PATHS[:5]:
            assert (await client.send("POST", path)).status == 200
        for path in PATHS:
            assert (await client.send("POST", path)).status == 429, path
            assert (await client.get(path)).status == 200, "reading it is no login"
        for path in OTHERS:
            assert (await client.send("POST", path)).status == 200, path

    run(tmp_path, test, LOGIN, RATELIMIT_LOGIN_PATH=configured)


@pytest.mark.parametrize("path", ["/./login", "//login", "/%6cogin"])
def test_the_application_gets_the_path_as_the_client_sent_it(tmp_path: Path, path: str) -> None:
    async def test(w: World) -> None:
        assert (await w.client("127.9.0.1").send("POST", path)).status == 200
        assert w.head.startswith(f"POST {path} HTTP/1.1\r\n")

    run(tmp_path, test, LOGIN, RATELIMIT_LOGIN_PATH="/login")


def test_another_site_can_not_use_up_a_visitors_logins(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        visitor, other = w.client("127.9.0.1"), w.client("127.9.0.2")

        async def posts(site: str) -> list[int]:
            sent = [visitor.send("POST", "/login", Sec_Fetch_Site=site) for _ in range(7)]
            return [(await one).status for one in sent]

        assert await posts("cross-site") == [200] * 5 + [429] * 2
        assert await posts("same-origin") == [200] * 5 + [429] * 2, "its own count"
        answer = await other.send("POST", "/login", Sec_Fetch_Site="cross-site")
        assert answer.status == 200, "each visitor has a count"

    run(tmp_path, test, LOGIN, RATELIMIT_LOGIN_PATH="/login")


async def keyed(w: World, *fields: str) -> int:
    """Send a request with some header fields; return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
    writer.write("\r\n".join(["GET / HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    status = int((await reader.readline()).split()[1])
    await closed(writer)
    return status


def test_an_api_key_is_counted_however_it_is_sent(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        found = [await keyed(w, "X-API-Key: k1") for _ in range(6)]
        assert found == [200] * 5 + [429]
        for fields in (
            ("X-API-Key: k1", "X-API-Key: other"),
            ("X-API-Key: other", "X-API-Key: k1"),
            ("X-API-Key: k1, other",),
            ("X-API-Key: other,k1",),
            ("X-API-Key: k1,",),
            ("X-API-Key: ,k1",),
            ("X-API-Key: k1", "X-API-Key:"),
        ):
            assert await keyed(w, *fields) == 400, fields
        for fields in (
            ("x-api-key:k1",),
            ("X-API-Key:  k1 \t",),
            ("X-API-Key: k1", "X_API_Key: z"),
        ):
            assert await keyed(w, *fields) == 429, fields
        alike = [(f"{name}: k1",) for name in ("X_API_Key", "X-API_Key", "x_api-key")]
        for fields in (*alike, ("X-API-Key:",), ("X-API-Key: K1",)):
            assert await keyed(w, *fields) == 200, fields
            seen = w.head.lower().replace("_", "-")
            assert "x-api-key: k1" not in seen or fields[0] == "X-API-Key: K1"
        # Nothing but the keys that were asked about is known.
        for n in range(40):
            assert await keyed(w, f"X-API-Key: n{n}") == 200

    run(tmp_path, test, KEYS, RATELIMIT_API_KEYS="1")
