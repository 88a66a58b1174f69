"""The API behind a real HAProxy on the same machine that speaks TLS to the operators."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
from structlog.testing import capture_logs

from ratelimit.api.client import Client
from ratelimit.exceptions import ApiError
from ratelimit.process.log import AUDIT
from tests.helpers.running import running
from tests.helpers.tokens import ANN, TOKENS, bearer, write
from tests.helpers.world import HAPROXY, free_port, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.helpers.running import Running

pytestmark = pytest.mark.integration

NAME = "ops.example.com"

# What a browser sends with a request of our own page.
PAGE = {"Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}

BODY = {"key": "192.0.2.7", "ttl": "1m"}


@contextlib.asynccontextmanager
async def in_front(folder: Path, port: int, lines: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an HAProxy that ends TLS and passes requests on to a port."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", f"/CN={NAME}", "-keyout", "site.pem.key", "-out", "site.pem"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    front = free_port()
    (folder / "front.cfg").write_text(f"""
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 2s
frontend front
    bind 127.0.0.1:{front} ssl crt {folder}/site.pem
    option forwardfor
    {lines}
    default_backend api
backend api
    server api 127.0.0.1:{port}
""")
    haproxy = subprocess.Popen([*HAPROXY, "-db", "-f", str(folder / "front.cfg")])
    transport = httpx.AsyncHTTPTransport(verify=False, local_address="127.0.0.5")
    try:
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{front}", transport=transport, timeout=20
        ) as client:
            client.headers["Host"] = NAME

            async def answers() -> bool:
                try:
                    await client.get("/healthz")
                except httpx.TransportError:
                    return False
                return True

            await until(answers, "the proxy and the API answer")
            yield client
    finally:
        haproxy.terminate()
        haproxy.wait(10)


def run(
    folder: Path,
    test: Callable[[Running, httpx.AsyncClient], object],
    config: str,
    lines: str = "",
) -> None:
    tokens = write(folder, TOKENS)

    async def main() -> None:
        text = f"[ops]\ntoken_file = '{tokens}'\n{config}"
        async with running(folder, text) as api, in_front(folder, api.port, lines) as client:
            client.headers.update(bearer(ANN))
            await test(api, client)  # type: ignore[misc]

    asyncio.run(main())


def test_the_name_of_a_proxy_has_to_be_named(tmp_path: Path) -> None:
    async def without(api: Running, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/blocks", json=BODY, headers=PAGE)
        assert answer.status_code == 421
        assert "ops.hosts" in answer.json()["detail"]

    async def with_it(api: Running, client: httpx.AsyncClient) -> None:
        assert (await client.get("/", headers=PAGE)).status_code == 200
        assert (await client.post("/v1/blocks", json=BODY, headers=PAGE)).status_code == 201
        for other in ({"Host": "evil.example"}, {"Host": f"x.{NAME}"}):
            answer = await client.post("/v1/blocks", json=BODY, headers=PAGE | other)
            assert answer.status_code == 421
        for other in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await client.post("/v1/blocks", json=BODY, headers=PAGE | other)
            assert answer.status_code == 403

    run(tmp_path, without, "")
    run(tmp_path, with_it, f"hosts = ['{NAME.upper()}']\n")


def test_a_proxy_that_changes_the_host_needs_the_origin_named(tmp_path: Path) -> None:
    lines = "http-request set-header Host localhost"

    async def without(api: Running, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/blocks", json=BODY, headers=PAGE)
        assert answer.status_code == 403
        assert "ops.origins" in answer.json()["detail"]

    async def with_it(api: Running, client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/blocks", json=BODY, headers=PAGE)).status_code == 201
        for origin in ("https://evil.example", f"http://{NAME}", f"https://{NAME}:8443", "null"):
            answer = await client.post("/v1/blocks", json=BODY, headers=PAGE | {"Origin": origin})
            assert answer.status_code == 403, origin

    run(tmp_path, without, "", lines)
    run(tmp_path, with_it, f"origins = ['https://{NAME}:443']\n", lines)


def test_the_log_has_the_operators_address_and_only_a_guesser_waits(tmp_path: Path) -> None:
    waits: list[float] = []

    async def test(api: Running, client: httpx.AsyncClient) -> None:
        async def pause(_request: object, seconds: float) -> None:
            waits.append(seconds)

        api.server.access._pause = pause
        await client.post("/v1/blocks", json=BODY)
        for number in range(10):
            await client.get("/v1/status", headers=bearer(f"{number:032}"))
        assert len(waits) == 6
        # Somebody else behind the same proxy.
        transport = httpx.AsyncHTTPTransport(verify=False, local_address="127.0.0.6")
        async with httpx.AsyncClient(base_url=client.base_url, transport=transport) as other:
            answer = await other.get("/v1/status", headers={"Host": NAME} | bearer(ANN))
            assert answer.status_code == 200
        assert len(waits) == 6

    config = f"hosts = ['{NAME}']\n[agent]\ntrusted_proxies = ['127.0.0.1/32']\n"
    with capture_logs() as lines:
        run(tmp_path, test, config)
    (made,) = (line for line in lines if line["event"] == AUDIT and line["status"] == 201)
    assert (made["peer"], made["forwarded"], made["who"]) == ("127.0.0.1", "127.0.0.5", "ann")


def test_the_commands_verify_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(api: Running, client: httpx.AsyncClient) -> None:
        url = str(client.base_url).rstrip("/")
        with pytest.raises(ApiError, match=r"certificate is refused: .*SSL_CERT_FILE=FILE"):
            await asyncio.to_thread(Client(url, ANN).get, "/v1/status")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "site.pem"))
        url = url.replace("127.0.0.1", "localhost")
        state = await asyncio.to_thread(Client(url, ANN).get, "/v1/status")
        assert state["node"] == "here"

    run(tmp_path, test, f"hosts = ['{NAME}']\n")
