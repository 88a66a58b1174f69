"""The client of the API; ``test_node`` of the commands has its errors, ``test_proxy`` its TLS."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ratelimit.api.client import Client, path_of, read_token
from ratelimit.exceptions import ApiError
from tests.helpers.running import running


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("127.0.0.1:9191", "must be http://HOST:PORT"),
        ("ftp://127.0.0.1", "must be http://HOST:PORT"),
        ("http://", "must be http://HOST:PORT"),
        ("http://h:0", "must be http://HOST:PORT"),
        ("http://h:99999", "must be http://HOST:PORT"),
        ("http://ann:secret@h", "no user or password"),
    ],
)
def test_what_is_no_url_of_an_api(url: str, why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        Client(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["a b", "ä", "a\nX-Header: b"])
def test_a_token_that_would_be_more_than_a_token(token: str) -> None:
    with pytest.raises(ApiError, match="printable ASCII") as caught:
        Client(token=token)
    assert token not in str(caught.value)


def test_a_key_is_one_part_of_a_path() -> None:
    assert path_of("/v1/blocks", "192.0.2.0/24") == "/v1/blocks/192.0.2.0%2F24"
    assert path_of("/v1/clients", "../?é") == "/v1/clients/..%2F%3F%C3%A9"


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("abc\n", "abc"),
        ("\ufeff# ours\n\n  abc  \nother\n", "abc"),
        ("ann:operate:a:b\n", "a:b"),
        ("ann:other:a\n", "ann:other:a"),
    ],
)
def test_a_token_is_read_from_a_file_of_either_kind(tmp_path: Path, text: str, token: str) -> None:
    (tmp_path / "token").write_text(text)
    assert read_token(tmp_path / "token") == token


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"# none\n", "contains no token"), (b"\xff", "decode")],
)
def test_a_file_without_a_token(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(ApiError, match=why):
        read_token(tmp_path / "token")


@pytest.mark.integration
def test_an_error_has_its_status_and_names_the_field(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            client = Client(f"http://127.0.0.1:{api.port}/")

            def ask() -> None:
                made = client.post("/v1/blocks", {"key": "192.0.2.7", "ttl": 60})
                assert made["key"] == "192.0.2.7"
                assert client.get("/v1/blocks", limit=1)["blocks"][0]["key"] == "192.0.2.7"
                assert client.delete("/v1/blocks/192.0.2.7") == {}
                with pytest.raises(ApiError, match="ttl: ") as caught:
                    client.post("/v1/blocks", {"key": "192.0.2.7", "ttl": 0})
                assert caught.value.status == 422

            await asyncio.to_thread(ask)

    asyncio.run(main())
