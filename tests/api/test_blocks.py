"""``/v1/blocks``: the blocklist read and changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.helpers.running import EDGE, block, listed, running, until

if TYPE_CHECKING:
    from pathlib import Path


from tests.helpers.blocks import LATER, fields, pages

pytestmark = pytest.mark.integration


def test_an_address_is_blocked_and_lifted(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            made = await api.client.post(
                "/v1/blocks", json={"key": "192.0.2.7", "ttl": "10m", "reason": "scrapes"}
            )
            assert made.status_code == 201
            entry = made.json()
            assert entry["until"] - entry["since"] == 600
            assert {k: entry[k] for k in ("key", "limit", "reason", "strikes", "by", "node")} == {
                "key": "192.0.2.7",
                "limit": "*",
                "reason": "scrapes",
                "strikes": 0,
                "by": "operator",
                "node": "here",
            }
            place = made.headers["location"]
            assert place == "/v1/blocks/192.0.2.7"
            assert entry.pop("note") == entry.pop("unenforced") == ""
            assert entry.pop("edges") == [{"socket": EDGE, "ok": True, "problem": ""}]
            assert (await api.client.get(place)).json() == {"key": "192.0.2.7", "blocks": [entry]}
            assert await listed(api.control.store) == ["192.0.2.7"]
            assert ("192.0.2.7", entry["until"]) in api.edges.told

            assert (await api.client.delete(place)).status_code == 204
            assert (await api.client.get(place)).status_code == 404
            assert (await api.client.delete(place)).status_code == 404
            assert await listed(api.control.store) == []
            assert api.edges.told[-1] == ("192.0.2.7", 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("written", "key", "note"),
    [
        ("192.0.2.77/24", "192.0.2.0/24", "192.0.2.77/24 has host bits; the network is"),
        ("2001:db8::7/64", "2001:db8::/64", "2001:db8::7/64 has host bits; the network is"),
        ("::ffff:192.0.2.7", "192.0.2.7", "::ffff:192.0.2.7 is 192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7", "192.0.2.7/32 is 192.0.2.7"),
        ("2001:DB8::0:1", "2001:db8::1", "2001:DB8::0:1 is 2001:db8::1"),
        ("192.0.2.0/24", "192.0.2.0/24", ""),
    ],
)
def test_a_key_is_kept_in_its_one_form(tmp_path: Path, written: str, key: str, note: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            made = await api.client.post("/v1/blocks", json={"key": written, "ttl": 60})
            assert made.status_code == 201
            assert made.json()["key"] == key
            assert made.json()["note"].startswith(note) if note else made.json()["note"] == ""
            assert (await api.client.get(made.headers["location"])).json()["key"] == key
            lifted = await api.client.delete("/v1/blocks/" + quote(written, safe=""))
            assert lifted.status_code == 204

    asyncio.run(main())


def test_a_slash_in_the_path_needs_no_encoding(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for path in (
                "192.0.2.0/24",
                "192.0.2.0%2F24",
                "2001:db8::/64",
                "2001%3Adb8%3A%3A%2F64",
            ):
                key = path.replace("%2F", "/").replace("%3A", ":")
                await api.client.post("/v1/blocks", json={"key": key, "ttl": 60})
                assert (await api.client.get(f"/v1/blocks/{path}")).json()["key"] == key
                assert (await api.client.delete(f"/v1/blocks/{path}")).status_code == 204

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"ttl": 60}, ["key"]),
        ({"key": "192.0.2.7"}, ["ttl"]),
        ({"key": "", "ttl": 60}, ["key"]),
        ({"key": 7, "ttl": 60}, ["key"]),
        ({"key": "192.0.2.256", "ttl": 60}, ["key"]),
        ({"key": "192.0.2/24", "ttl": 60}, ["key"]),
        ({"key": "192.0.2.0/33", "ttl": 60}, ["key"]),
        ({"key": "2001:db8:::1", "ttl": 60}, ["key"]),
        ({"key": "fe80::1%eth0", "ttl": 60}, ["key"]),
        ({"key": "192.0.2.7.", "ttl": 60}, ["key"]),
        ({"key": "192.0.2.7:443", "ttl": 60}, ["key"]),
        ({"key": "[2001:db8::1]", "ttl": 60}, ["key"]),
        ({"key": "[2001:db8::1]:443", "ttl": 60}, ["key"]),
        ({"key": "192.0.2.*", "ttl": 60}, ["key"]),
        ({"key": "192.0.2.1-192.0.2.9", "ttl": 60}, ["key"]),
        ({"key": "http://192.0.2.7/", "ttl": 60}, ["key"]),
        ({"key": "k" * 4097, "ttl": 60}, ["key"]),
        ({"key": "a\nclear table t_block", "ttl": 60}, ["key"]),
        ({"key": "a\u0000", "ttl": 60}, ["key"]),
        ({"key": " a", "ttl": 60}, ["key"]),
        ({"key": "a", "ttl": 0}, ["ttl"]),
        ({"key": "a", "ttl": -1}, ["ttl"]),
        ({"key": "a", "ttl": True}, ["ttl"]),
        ({"key": "a", "ttl": 1.5}, ["ttl"]),
        ({"key": "a", "ttl": "31d"}, ["ttl"]),
        ({"key": "a", "ttl": "999ms"}, ["ttl"]),
        ({"key": "a", "ttl": "soon"}, ["ttl"]),
        ({"key": "a", "ttl": 10**30}, ["ttl"]),
        ({"key": "a", "ttl": 60, "reason": "r" * 201}, ["reason"]),
        ({"key": "a", "ttl": 60, "reason": "a\u001b[2J"}, ["reason"]),
        ({"key": "a", "ttl": 60, "until": 1}, ["until"]),
        ({"key": "", "ttl": 0}, ["key", "ttl"]),
        ({"key": "a", "ttl": 60, "force": "yes"}, ["force"]),
        ([], ["body"]),
        ("a", ["body"]),
    ],
)
def test_what_can_not_be_blocked(tmp_path: Path, body: object, wrong: list[str]) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            answer = await api.client.post("/v1/blocks", json=body)
            assert answer.status_code == 422
            assert fields(answer) == wrong
            assert await pages(api) == [[]]
            assert api.edges.told == []

    asyncio.run(main())


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"key":"\\ud800","ttl":1}', b"[" * 9999])
def test_what_is_not_json(tmp_path: Path, raw: bytes) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            answer = await api.client.post(
                "/v1/blocks", content=raw, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400
            assert "not JSON" in answer.json()["detail"]

    asyncio.run(main())


def test_a_body_too_large_or_of_another_type(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            large = await api.client.post("/v1/blocks", json={"key": "k" * 70_000, "ttl": 1})
            assert large.status_code == 413
            for kind in ("text/plain", "application/x-www-form-urlencoded", "text/json"):
                answer = await api.client.post(
                    "/v1/blocks",
                    content=b'{"key":"192.0.2.7","ttl":60}',
                    headers={"Content-Type": kind},
                )
                assert answer.status_code == 415
            assert await pages(api) == [[]]

    asyncio.run(main())


def test_automatic_blocks_stand_beside_those_by_hand(tmp_path: Path) -> None:
    config = "[limits.login]\nipv6_prefix = 48\n"

    async def main() -> None:
        async with running(tmp_path, config) as api:
            limiter = api.control.limiter
            limiter.apply(block("2001:db8:0:1::/64", LATER))
            limiter.apply(block("2001:db8::/48", LATER, "login"))
            await api.client.post("/v1/blocks", json={"key": "2001:db8:0:1::7", "ttl": 60})
            found = (await api.client.get("/v1/blocks/2001:db8:0:1::7")).json()["blocks"]
            assert [(one["limit"], one["key"]) for one in found] == [
                ("*", "2001:db8:0:1::7"),
                ("default", "2001:db8:0:1::/64"),
                ("login", "2001:db8::/48"),
            ]
            assert (await api.client.delete("/v1/blocks/2001:db8:0:1::7")).status_code == 204
            assert await pages(api) == [[]]
            lifted = {"2001:db8:0:1::7", "2001:db8:0:1::/64", "2001:db8::/48"}
            await until(lambda: {key for key, end in api.edges.told if not end} == lifted)

    asyncio.run(main())


@pytest.mark.parametrize(("key", "bits"), [("0.0.0.0/0", 8), ("0.0.0.0/7", 8), ("::/0", 19)])
def test_a_very_wide_network_needs_force(tmp_path: Path, key: str, bits: int) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            body = {"key": key, "ttl": 60}
            answer = await api.client.post("/v1/blocks", json=body)
            assert answer.status_code == 422 and fields(answer) == ["key"]
            assert f"wider than /{bits} needs force" in answer.json()["detail"]
            assert await pages(api) == [[]]
            made = await api.client.post("/v1/blocks", json=body | {"force": True})
            assert made.status_code == 201
            assert await pages(api) == [[key]]
            assert (await api.client.delete(f"/v1/blocks/{key}")).status_code == 204

    asyncio.run(main())


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("192.0.2.*", "192.0.2.0/24"),
        ("192.0.2", "192.0.2.0/24"),
        ("192.0.2.0-192.0.2.255", "192.0.2.0/24"),
        ("http://192.0.2.7/", "192.0.2.7"),
        ("\uff11\uff19\uff12.0.2.7", "192.0.2.7"),
        ("192.0.2.007", "192.0.2.7"),
    ],
)
def test_a_mistyped_address_is_refused_and_the_nearest_is_named(
    tmp_path: Path, key: str, nearest: str
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            body = {"key": key, "ttl": 60}
            place = quote(key, safe="")
            for answer in (
                await api.client.post("/v1/blocks", json=body),
                await api.client.post("/v1/keys", json={"key": key}),
                await api.client.get(f"/v1/clients/{place}"),
                await api.client.delete(f"/v1/blocks/{place}"),
            ):
                assert answer.status_code == 422 and fields(answer) == ["key"]
                assert f"is it {nearest}?" in answer.json()["detail"]
            # It may be what a limit counts after all.
            made = await api.client.post("/v1/blocks", json=body | {"force": True})
            assert made.json()["key"].endswith(api.control.limiter.string_key(key.encode()))
            assert (
                "no limit of this node currently counts a client with this key"
                in made.json()["note"]
            )
            assert (await api.client.get(f"/v1/blocks/{place}")).status_code == 200

    asyncio.run(main())


def test_a_block_says_what_it_does_not_reach(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "[limits.login]\nipv4_prefix = 24\n") as api:
            for key, note in (
                ("2001:db8::7", "to block the client, block 2001:db8::/64"),
                ("192.0.2.7", "limit login: 192.0.2.0/24 counts as one client"),
                ("2001:db8::7/128", "2001:db8::7/128 is 2001:db8::7. limits default, login"),
                ("2001:db8::/64", ""),
                ("192.0.2.0/24", ""),
            ):
                made = (await api.client.post("/v1/blocks", json={"key": key, "ttl": 60})).json()
                assert note in made["note"] and bool(made["note"]) == bool(note)

    asyncio.run(main())


def test_a_string_is_answered_as_it_is_shown_and_never_as_it_was_given(tmp_path: Path) -> None:
    key = "sk_live_4f1c9b07a2d8e6"

    async def main() -> None:
        async with running(tmp_path, "[limits.names]\nsecret = false\n") as api:
            limiter = api.control.limiter
            shown = f"sk_l{limiter.string_key(key.encode())}"
            limiter.apply(block(key, LATER, "names"))
            made = await api.client.post("/v1/blocks", json={"key": key, "ttl": 60})
            answers = [made, await api.client.post("/v1/keys", json={"key": key})]
            for form in (key, shown, shown[4:], f"else{shown[4:]}"):
                place = quote(form, safe="")
                answers.append(await api.client.get(f"/v1/blocks/{place}"))
                answers.append(await api.client.get(f"/v1/clients/{place}"))
            assert {answer.json()["key"] for answer in answers} == {shown}
            # A limit that says so shows it.
            [_, names] = answers[-2].json()["blocks"]
            assert (names["limit"], names["key"]) == ("names", key)
            assert key not in made.headers["location"] + answers[1].text
            assert (await api.client.delete(made.headers["location"])).status_code == 204
            assert await pages(api) == [[]]

    asyncio.run(main())


def test_without_the_secret_of_the_fleet_no_string_is_blocked(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            api.control.limiter.keyed = False
            answer = await api.client.post("/v1/blocks", json={"key": "alice", "ttl": 60})
            assert answer.status_code == 503
            assert "nothing was blocked" in answer.json()["detail"]
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.7", "ttl": 60})
            assert made.status_code == 201

    asyncio.run(main())


def test_a_block_of_a_limit_by_another_prefix_is_lifted_with_the_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            for key in ("2001:db8::/56", "192.0.2.0/24"):
                api.control.limiter.apply(block(key, LATER))
            for address in ("2001:db8::7", "192.0.2.7"):
                found = (await api.client.get(f"/v1/blocks/{address}")).json()["blocks"]
                assert [one["limit"] for one in found] == ["default"]
                assert (await api.client.delete(f"/v1/blocks/{address}")).status_code == 204
            assert await pages(api) == [[]]

    asyncio.run(main())


@pytest.mark.parametrize("key", ["999.9.9.9", "192.0.2.7:443", "::zz", "1.2.3.4/99"])
def test_a_string_that_nobody_would_write_can_be_lifted(tmp_path: Path, key: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            place = "/v1/blocks/" + quote(key, safe="")
            assert (await api.client.delete(place)).status_code in (404, 422)
            limiter = api.control.limiter
            limiter.apply(block(limiter.string_key(key.encode()), api.seconds() + 60))
            [entry] = (await api.client.get(place)).json()["blocks"]
            assert entry["key"] == limiter.string_key(key.encode())
            assert (await api.client.get(place.replace("blocks", "clients"))).status_code == 200
            assert (await api.client.delete(place)).status_code == 204
            assert (await api.client.get(place)).status_code == 404

    asyncio.run(main())


def test_what_is_only_in_a_blocked_network_is_said_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            await api.client.post("/v1/blocks", json={"key": "192.0.2.0/24", "ttl": 60})
            answer = await api.client.delete("/v1/blocks/192.0.2.7")
            assert answer.status_code == 404
            assert "192.0.2.0/24" in answer.json()["detail"]

    asyncio.run(main())
