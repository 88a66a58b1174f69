"""``/v1/blocks``: the blocklist read and changed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from ratelimit.model import Block
from ratelimit.steps import finish
from ratelimit.store import StoreError
from ratelimit.store.pending import Outbox
from tests.helpers.running import EDGE, block, lift, listed, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from httpx import Response

    from ratelimit.haproxy.api import Fault, Telling
    from ratelimit.model import Entry
    from ratelimit.store.pending import Change
    from tests.helpers.running import Running

pytestmark = pytest.mark.integration

LATER = 1 << 31


def fields(answer: Response) -> list[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    return [error["field"] for error in problem["errors"]]


async def pages(api: Running, **query: str | int) -> list[list[str]]:
    """Return the keys of all pages."""
    found = []
    cursor = ""
    while True:
        answer = (await api.client.get("/v1/blocks", params={**query, "cursor": cursor})).json()
        found.append([entry["key"] for entry in answer["blocks"]])
        cursor = answer["next"]
        if not cursor:
            return found


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
            assert entry.pop("note") == ""
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


def test_a_block_that_has_ended_is_listed_for_its_strikes_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            api.control.limiter.apply(block("192.0.2.1", api.seconds() - 1))
            api.control.limiter.apply(replace(block("192.0.2.2", LATER), shadow=True))
            assert await pages(api) == [["192.0.2.2"]]
            [listed] = (await api.client.get("/v1/blocks")).json()["blocks"]
            assert (listed["active"], listed["shadow"]) == (True, True)
            assert await pages(api, ended="true") == [["192.0.2.1", "192.0.2.2"]]
            entry = (await api.client.get("/v1/blocks/192.0.2.1")).json()["blocks"][0]
            assert (entry["active"], entry["strikes"]) == (False, 1)

    asyncio.run(main())


def test_a_page_after_the_other_while_the_list_changes(tmp_path: Path) -> None:
    """Whatever was there all the time is seen once, whatever came and went meanwhile."""

    async def main() -> None:
        chance = random.Random(5)
        async with running(tmp_path, "[limits.a]\n[limits.b]\n", clients=8000) as api:
            limiter = api.control.limiter

            def key(name: str) -> str:
                return limiter.string_key(name.encode())

            stay = [(chance.choice("ab"), key(f"k{number}")) for number in range(2500)]
            for limit, one in stay:
                limiter.apply(block(one, LATER, limit))
            seen = []
            cursor = ""
            while True:
                page = (
                    await api.client.get("/v1/blocks", params={"cursor": cursor, "limit": 37})
                ).json()
                assert len(page["blocks"]) == 37 or not page["next"]
                seen += [(one["limit"], one["key"]) for one in page["blocks"]]
                cursor = page["next"]
                if not cursor:
                    break
                last = seen[-1]
                limiter.apply(block(key(f"new{chance.random()}"), LATER, chance.choice("ab")))
                again = chance.choice(stay)  # struck again: the last of its dict
                limiter.apply(block(again[1], LATER + 1, again[0]))
                if last not in stay:
                    limiter.lift(lift(*last))
            kept = [place for place in seen if place in set(stay)]
            assert kept == sorted(stay)

    asyncio.run(main())


def test_the_list_by_what_is_searched(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "[limits.login]\n", clients=8000) as api:
            for number in range(3000):
                api.control.limiter.apply(block(f"198.51.{number >> 8}.{number & 255}", LATER))
            api.control.limiter.apply(block("192.0.2.1", LATER, "login"))
            await api.client.post(
                "/v1/blocks", json={"key": "Key-1", "ttl": 60, "reason": "Scraper"}
            )
            assert await pages(api, q="login") == [["192.0.2.1"]]
            key = api.control.limiter.string_key(b"Key-1")
            for text in ("scraPER", "operator", "Key-1", key, key[5:15].upper()):
                assert await pages(api, q=text) == [[key]]
            assert await pages(api, q="Key-") == [[]], "no part of a string that is not shown"
            assert await pages(api, q="nothing") == [[]]
            found = await pages(api, q=".51.11.", limit=100)
            assert [len(page) for page in found] == [100, 84]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=bnVsbA", "cursor"),
        ("cursor=WzEsMl0", "cursor"),
        ("cursor=%C3%BC", "cursor"),
        ("ended=perhaps", "ended"),
        ("page=2", "page"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_a_wrong_query(tmp_path: Path, query: str, field: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            answer = await api.client.get(f"/v1/blocks?{query}")
            assert answer.status_code == 422
            assert fields(answer) == [field]

    asyncio.run(main())


def test_the_store_must_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:

            async def fails(*_: object) -> tuple[Entry, bool]:
                raise StoreError("the disk is full")

            monkeypatch.setattr(api.control.store.outbox, "written", fails)
            body = {"key": "192.0.2.7", "ttl": 60}
            answer = await api.client.post("/v1/blocks", json=body)
            assert answer.status_code == 503
            assert answer.json()["detail"] == (
                "blocked on this node only; the other nodes follow when the store is up again: "
                "the disk is full"
            )
            assert await pages(api) == [["192.0.2.7"]]
            answer = await api.client.delete("/v1/blocks/192.0.2.7")
            assert answer.status_code == 503
            assert await pages(api) == [[]]

            api.control.store.outbox = Outbox(size=0)
            answer = await api.client.post("/v1/blocks", json=body)
            problem = "nothing was blocked: too many changes wait for the store"
            assert answer.json()["detail"] == problem
            assert await pages(api) == [[]]

    asyncio.run(main())


def test_a_full_list_refuses_a_block_and_nothing_happens(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            limiter = api.control.limiter
            limiter.blocklist.max_entries = 3
            limiter.apply(block("192.0.2.1", LATER))
            limiter.apply(block("192.0.2.2", LATER))
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.3", "ttl": 60})
            assert made.status_code == 201
            for key in ("192.0.2.4", "198.51.100.0/24", "a"):
                answer = await api.client.post("/v1/blocks", json={"key": key, "ttl": 60})
                assert (answer.status_code, fields(answer)) == (507, [])
                assert "all 3 entries of the blocklist are active" in answer.json()["detail"]
            # Nor does a block of another node for which there is no room.
            api.events.on_block(Block("192.0.2.5", "*", "", 0, 1, LATER, "ann", "there"))
            assert await pages(api) == [["192.0.2.3", "192.0.2.1", "192.0.2.2"]]
            assert await listed(api.control.store) == ["192.0.2.3"]
            assert {key for key, _ in api.edges.told} <= {"192.0.2.3"}
            assert api.control.bus.published == {"block": 3}
            longer = await api.client.post("/v1/blocks", json={"key": "192.0.2.3", "ttl": 90})
            assert longer.status_code == 201, "it has its place"
            finish(
                limiter.load([lift("default", "192.0.2.2"), block("192.0.2.2", api.seconds() - 1)])
            )
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.4", "ttl": 60})
            assert made.status_code == 201, "one has ended"

    asyncio.run(main())


class Slow:
    """Has the changes that wait for a store written when a test says so."""

    def __init__(self, api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self._api = api
        self.changes: list[tuple[Block, asyncio.Future[None]]] = []
        monkeypatch.setattr(api.control.store.outbox, "written", self._written)

    async def block(
        self, key: str, ttl: int = 60
    ) -> tuple[Block, asyncio.Future[None], asyncio.Task[tuple[Block, list[Fault]]]]:
        """Block a key; return the block when it waits, what ends that, and what is done then."""
        count = len(self.changes)
        task = asyncio.create_task(self._api.control.block(key, ttl, "", "ann"))
        await until(lambda: len(self.changes) > count)
        return *self.changes[-1], task

    async def _written(self, change: Change, *_: object) -> tuple[Entry, bool]:
        if isinstance(change.entry, Block):
            self.changes.append((change.entry, asyncio.get_running_loop().create_future()))
            await self.changes[-1][1]
        return change.entry, True


def test_a_block_by_hand_is_in_force_while_it_waits_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            store = Slow(api, monkeypatch)
            limiter = api.control.limiter
            limiter.blocklist.max_entries = 2
            limiter.apply(block("192.0.2.1", LATER))
            mine, written, task = await store.block("192.0.2.2")
            await until(lambda: api.edges.told)
            assert not limiter.apply(block("192.0.2.3", LATER)), "it has its place"
            api.events.on_block(mine)
            written.set_result(None)
            assert await task == (mine, [])
            assert api.edges.told == [("192.0.2.2", mine.until)], "no store tells it twice"
            assert api.control.bus.published == {"block": 2}
            assert await pages(api) == [["192.0.2.2", "192.0.2.1"]]
            await api.control.unblock("192.0.2.2", "ann")

            # Nor is it taken back if the caller goes away: the store has it soon.
            mine, _, task = await store.block("192.0.2.2")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert mine in list(limiter.blocklist)

    asyncio.run(main())


def test_what_is_newer_than_a_block_that_waits_for_the_store_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            store = Slow(api, monkeypatch)
            held = api.control.limiter.blocklist
            # Another node blocks it after this one, or lifts it.
            mine, written, task = await store.block("192.0.2.7")
            theirs = replace(mine, until=LATER, node="there", order=mine.order + 1)
            api.events.on_block(mine)
            api.events.on_block(theirs)
            written.set_result(None)
            await task
            assert list(held) == [theirs]
            mine, written, task = await store.block("192.0.2.7")
            api.events.on_block(mine)
            api.events.on_lift(lift("*", "192.0.2.7"))
            written.set_result(None)
            await task
            assert list(held) == []
            # So does somebody here.
            _, written, task = await store.block("192.0.2.7")
            await api.control.unblock("192.0.2.7", "ann")
            written.set_result(None)
            await task
            assert list(held) == []
            _, first, before = await store.block("192.0.2.7")
            newer, second, task = await store.block("192.0.2.7", 90)
            second.set_result(None)
            await task
            first.set_result(None)
            await before
            assert list(held) == [newer]
            # What is older than the block does not count.
            api.events.on_lift(lift("*", "192.0.2.7"))
            mine, written, task = await store.block("192.0.2.7")
            api.events.on_block(theirs)
            written.set_result(None)
            await task
            assert list(held) == [mine]

    asyncio.run(main())


def test_what_other_nodes_do_reaches_the_edges_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            mine = Block("192.0.2.1", "*", "", 0, 1, LATER, "ann", "there")
            api.events.on_block(mine)
            api.events.on_block(mine)
            api.events.on_block(block("192.0.2.2", LATER))
            api.events.on_block(block("192.0.2.3", LATER))
            await until(lambda: api.edges.told == [("192.0.2.1", LATER)])
            api.events.on_lift(lift("default", "192.0.2.2"))
            await until(lambda: api.edges.told[1:] == [("192.0.2.2", 0)])
            # A gap in which one was lifted.
            finish(api.events.merge().take([mine, lift("default", "192.0.2.3")]))
            await until(lambda: api.edges.told[2:] == [("192.0.2.3", 0)])
            assert await pages(api) == [["192.0.2.1"]]

    asyncio.run(main())


def test_an_edge_that_fails_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as api:
            api.edges.fails = True
            failed = {"socket": EDGE, "ok": False}
            failed["problem"] = "it does not answer; it is updated as soon as it answers"
            made = await api.client.post("/v1/blocks", json={"key": "192.0.2.1", "ttl": 60})
            assert (made.status_code, made.json()["edges"]) == (201, [failed])
            lifted = await api.client.delete("/v1/blocks/192.0.2.1")
            assert (lifted.status_code, lifted.json()) == (200, {"edges": [failed]})
            assert await pages(api) == [[]]
            state = (await api.client.get("/v1/status")).json()
            assert state["edges"] == {"faults": api.edges.failed, "dropped": 0, "corrected": 0}
            assert api.edges.failed >= 2

    asyncio.run(main())


def test_edges_are_told_what_holds_whatever_came_in_which_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "[lists]\nallow = ['192.0.2.3']\n") as api:
            api.events.on_block(replace(block("192.0.2.1", LATER, "*"), by="ann"))
            api.events.on_block(replace(block("192.0.2.2", LATER, "*"), by="ann"))
            api.events.on_lift(lift("*", "192.0.2.2"))
            order = lift("*", "192.0.2.2").order + 1
            api.events.on_block(replace(block("192.0.2.2", LATER, "*"), order=order))
            api.events.on_block(replace(block("192.0.2.3", LATER, "*"), by="ann"))
            await until(lambda: len(api.edges.told) == 3)
            assert dict(api.edges.told) == {
                "192.0.2.1": LATER,
                "192.0.2.2": LATER,
                "192.0.2.3": 0,  # it is never refused
            }

    asyncio.run(main())


def test_a_network_is_lifted_before_an_edge_hears_of_it(tmp_path: Path) -> None:
    """Or the agent's answers would have HAProxy remember it again."""

    async def main() -> None:
        async with running(tmp_path, clients=8000) as api:
            limiter = api.control.limiter
            for n in range(300):
                limiter.apply(block(f"10.{n >> 8}.{n & 255}.0/24", LATER, "*"))
            await api.control.edges.told()
            assert not limiter.stale
            stale: list[bool] = []
            real = api.edges.lift

            def note(key: str, by_hand: int = 0) -> Telling:
                stale.append(limiter.stale)
                return real(key, by_hand)

            api.edges.lift = note  # type: ignore[method-assign]
            assert (await api.client.delete("/v1/blocks/10.0.7.0%2F24")).status_code == 204
            api.events.on_lift(lift("*", "10.0.8.0/24"))
            await until(lambda: len(stale) == 2)
            assert stale == [False, False]

    asyncio.run(main())
