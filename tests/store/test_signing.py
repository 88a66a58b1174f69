"""Signed entries: what a node believes, and that nothing else is lost by it. Redis is real."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ratelimit.model import EVERY_LIMIT, Lift
from ratelimit.store.entries import block_to_json
from ratelimit.store.signing import Signer, UnsignedError
from tests.helpers.servers import Server, until
from tests.store.conftest import BLOCKS, LIFTS, block, lift, nodes, run

if TYPE_CHECKING:
    from ratelimit.model import Block

SECRET, OTHER = b"s" * 32, b"o" * 32
NEWS = "test:{fleet}:news"
FOREVER = 1 << 32

SIGNER = Signer(SECRET, "test")


def by_hand(key: str, **more: Any) -> Block:
    return block(key, 0, limit=EVERY_LIMIT, by="ann", **more)


# ---- the signature ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"key": "192.0.2.2"},
        {"limit": EVERY_LIMIT},
        {"reason": "other"},
        {"strikes": 2},
        {"since": 1},
        {"until": FOREVER},
        {"by": "bob"},
        {"node": "x"},
        {"shadow": True},
        {"order": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_a_block_is_signed(change: dict[str, Any]) -> None:
    entry = block("192.0.2.1")
    data = json.loads(SIGNER.text(entry))
    assert SIGNER.block(data).key == entry.key
    with pytest.raises(UnsignedError):
        SIGNER.block(data | change)


def test_every_field_of_a_lift_is_signed() -> None:
    entry = Lift("192.0.2.1", "default", 5, 6)
    signature = SIGNER.sign(entry)
    assert SIGNER.lift("default", "192.0.2.1", 5, 6, signature) == entry
    for wrong in (
        ("default", "192.0.2.2", 5, 6),
        ("other", "192.0.2.1", 5, 6),
        ("default", "192.0.2.1", 6, 6),
        ("default", "192.0.2.1", 5, 7),
    ):
        with pytest.raises(UnsignedError):
            SIGNER.lift(*wrong, signature)


@pytest.mark.parametrize("signature", [None, "", "0" * 32, 1, ["x"], "ü" * 32, "\udcff"])
def test_what_is_no_signature(signature: object) -> None:
    data = json.loads(block_to_json(block("192.0.2.1"))) | {"sig": signature}
    with pytest.raises(UnsignedError):
        SIGNER.block(data)
    assert Signer(b"", "test").block(data).key == "192.0.2.1"


def test_a_signature_is_of_one_secret_and_one_fleet() -> None:
    data = json.loads(SIGNER.text(block("192.0.2.1")))
    for other in (Signer(OTHER, "test"), Signer(SECRET, "other")):
        with pytest.raises(UnsignedError):
            other.block(data)
        assert other.refused == 1


def test_a_block_and_a_lift_have_no_signature_in_common() -> None:
    entry = block("192.0.2.1")
    assert SIGNER.sign(entry) != SIGNER.sign(Lift(entry.key, entry.limit, entry.order, entry.until))


def test_a_field_that_says_nothing_changes_no_signature() -> None:
    """So that a later version with another field agrees with this one."""
    data = json.loads(SIGNER.text(block("192.0.2.1")))
    del data["by"], data["shadow"]
    assert SIGNER.block(data | {"later": 1}).by == ""


# ---- nodes --------------------------------------------------------------------------------------


@pytest.mark.integration
def test_nodes_with_one_secret_agree(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 3, secret=SECRET) as fleet:
            first, second, third = (store for store, _ in fleet)
            await first.save(block("192.0.2.1"))
            await second.save(by_hand("192.0.2.0/24"))
            everything = {"192.0.2.1", "192.0.2.0/24"}
            await until(lambda: all(seen.clients() == everything for _, seen in fleet))
            assert await third.lift(lift("192.0.2.1"))
            await until(lambda: all(seen.clients() == {"192.0.2.0/24"} for _, seen in fleet))
            async with nodes(server.url, secret=SECRET) as [(late, seen)]:
                assert seen.clients() == {"192.0.2.0/24"}
                assert len(seen.list.blocklist.lifts) == 1
                assert late.unsigned == 0
            assert [store.unsigned for store, _ in fleet] == [0, 0, 0]
            assert [store.outages for store, _ in fleet] == [0, 0, 0]

    run(main)


@pytest.mark.integration
def test_what_is_forged_is_ignored_counted_and_logged_once(server: Server, logs: list[Any]) -> None:
    forged = by_hand("203.0.113.1")
    text = block_to_json(forged)

    async def main() -> None:
        async with nodes(server.url, 2, secret=SECRET) as fleet:
            (first, one), (_, two) = fleet
            await first.save(block("192.0.2.1"))
            await until(lambda: two.clients() == {"192.0.2.1"})
            # On the channel: a block, and a lift of one that is there.
            server.do("PUBLISH", NEWS, f'{{"blocks":[{text}]}}')
            lifts = f'"lifts":["default|192.0.2.1"],"lifted":[{FOREVER}]'
            server.do("PUBLISH", NEWS, f'{{{lifts},"marks":[[{1 << 52},{FOREVER}]]}}')
            await until(lambda: all(store.unsigned == 2 for store, _ in fleet))
            # In the list, which a node reads when it starts.
            server.do("HSET", BLOCKS, "*|203.0.113.1", f"{FOREVER} {text}")
            server.do("HSET", LIFTS, "default|192.0.2.1", f"{FOREVER} {1 << 52}")
            async with nodes(server.url, secret=SECRET) as [(late, seen)]:
                assert seen.clients() == {"192.0.2.1"}
                assert len(seen.list.blocklist.lifts) == 0
                assert late.unsigned >= 2
            assert one.clients() == two.clients() == {"192.0.2.1"}
            assert len(one.list.blocklist.lifts) == len(two.list.blocklist.lifts) == 0
            assert [store.strays for store, _ in fleet] == [0, 0]
            assert [store.outages for store, _ in fleet] == [0, 0]

    run(main)
    told = [line for line in logs if "no valid signature" in line["event"]]
    assert len(told) == 3  # one of each node
    assert {line["log_level"] for line in told} == {"error"}


@pytest.mark.integration
@pytest.mark.parametrize("secret", [b"", SECRET])
def test_a_block_that_no_node_can_have_written_gives_way(server: Server, secret: bytes) -> None:
    text = json.dumps(json.loads(block_to_json(by_hand("192.0.2.1", length=3600))) | {"reason": 5})

    async def main() -> None:
        async with nodes(server.url, 2, secret=secret) as [(first, _), (second, two)]:
            for _ in range(2):
                server.do("HSET", BLOCKS, "*|192.0.2.1", f"{FOREVER} {text}")
                held = await first.save(by_hand("192.0.2.1"))
                await until(lambda held=held: two.blocks == {(EVERY_LIMIT, "192.0.2.1"): held})  # type: ignore[misc]
            server.do("HSET", BLOCKS, "*|192.0.2.1", f"{FOREVER} {text}")
            assert await second.lift(two.lift(EVERY_LIMIT, "192.0.2.1"))
            assert first.outages == second.outages == 0

    run(main)


@pytest.mark.integration
@pytest.mark.parametrize("signature", ["", "0" * 32])
def test_what_is_forged_stands_in_the_way_of_nothing(server: Server, signature: str) -> None:
    """A forged entry of the highest order has to make room for a real one, and for a lift."""
    order = (1 << 53) - 1
    forged = replace(by_hand("192.0.2.1"), until=FOREVER, order=order)
    text = f'{block_to_json(forged)[:-1]},"sig":"{signature}"}}'
    mark = f"00{FOREVER} 00{order} {signature}".strip()

    async def main() -> None:
        async with nodes(server.url, 2, secret=SECRET) as [(first, one), (second, two)]:
            server.do("HSET", BLOCKS, "*|192.0.2.1", f"{FOREVER} {text}")
            server.do("HSET", LIFTS, "*|192.0.2.1", mark)
            real = by_hand("192.0.2.1", order=1000)
            await first.save(real)
            await until(lambda: two.blocks == {(EVERY_LIMIT, "192.0.2.1"): real})
            server.do("HSET", BLOCKS, "*|192.0.2.1", f"{FOREVER} {text}")
            server.do("HSET", LIFTS, "*|192.0.2.1", mark)
            ended = Lift("192.0.2.1", EVERY_LIMIT, 2000, real.until)
            await second.lift(ended)
            await until(lambda: one.blocks == two.blocks == {})
            async with nodes(server.url, secret=SECRET) as [(late, seen)]:
                assert seen.blocks == {}
                assert late.unsigned == 0  # nothing forged is left
            assert first.outages == second.outages == 0

    run(main)


@pytest.mark.integration
def test_a_new_block_by_hand_and_a_new_lift_follow_what_is_there(server: Server) -> None:
    """As a script does it where nothing is signed, for which it changes the order."""

    async def main() -> None:
        async with nodes(server.url, 2, secret=SECRET) as [(first, one), (second, two)]:
            await first.save(by_hand("192.0.2.1", order=10**15))
            await until(lambda: bool(two.blocks))
            # A clock that is behind, or news that have not come yet.
            held = await second.save(replace(by_hand("192.0.2.1", order=5), reason="second"))
            assert held.order == 10**15 + 1
            place = (EVERY_LIMIT, "192.0.2.1")
            for seen in (one, two):
                await until(lambda seen=seen: seen.blocks[place].reason == "second")  # type: ignore[misc]
                assert seen.blocks[place].order == 10**15 + 1
            assert await second.lift(Lift("192.0.2.1", EVERY_LIMIT, 6, 7))
            await until(lambda: one.blocks == two.blocks == {})
            async with nodes(server.url, secret=SECRET) as [(late, seen)]:
                assert not seen.blocks
                assert late.unsigned == 0
            assert first.unsigned == second.unsigned == 0

    run(main)


@pytest.mark.integration
def test_a_fleet_begins_to_sign(server: Server) -> None:
    async def main() -> None:
        async with nodes(server.url, 1) as [(plain, old)]:
            await plain.save(block("192.0.2.1"))
            await plain.save(block("192.0.2.2"))
            async with nodes(server.url, 1, secret=SECRET) as [(signs, new)]:
                assert new.clients() == set()
                # It knows the first from its journal, say, and writes it with a signature.
                await signs.save(old.blocks["default", "192.0.2.1"])
                async with nodes(server.url, 1, secret=SECRET) as [(_, late)]:
                    assert late.clients() == {"192.0.2.1"}
                # Others go on to understand it.
                assert old.clients() == {"192.0.2.1", "192.0.2.2"}
                async with nodes(server.url, 1) as [(_, reader)]:
                    assert reader.clients() == {"192.0.2.1", "192.0.2.2"}

    run(main)


@pytest.mark.integration
def test_nodes_with_different_secrets_ignore_each_other(server: Server) -> None:
    async def main() -> None:
        async with (
            nodes(server.url, secret=SECRET) as [(first, one)],
            nodes(server.url, secret=OTHER) as [(second, two)],
        ):
            await first.save(block("192.0.2.1"))
            await second.save(block("192.0.2.2"))
            await until(lambda: first.unsigned and second.unsigned)
            assert one.clients() == {"192.0.2.1"}
            assert two.clients() == {"192.0.2.2"}
            assert first.outages == second.outages == 0

    run(main)


@pytest.mark.integration
def test_a_signed_entry_of_before_revives_nothing(server: Server) -> None:
    """Whoever can write to the store can copy what is in it, and put it back later."""

    async def main() -> None:
        async with nodes(server.url, 2, secret=SECRET) as [(first, one), (_, two)]:
            await first.save(by_hand("192.0.2.1", length=3600))
            copied = server.do("HGET", BLOCKS, "*|192.0.2.1")
            assert isinstance(copied, bytes)
            assert await first.lift(two.lift(EVERY_LIMIT, "192.0.2.1"))
            lifted = server.do("HGET", LIFTS, "*|192.0.2.1")
            assert isinstance(lifted, bytes)
            server.do("HSET", BLOCKS, "*|192.0.2.1", copied)
            text = copied.partition(b" ")[2].decode()
            server.do("PUBLISH", NEWS, f'{{"blocks":[{text}]}}')
            # The lift is copied, too, for a block that comes later.
            again = by_hand("192.0.2.1", length=60)
            held = await first.save(again)
            assert held == replace(again, order=held.order)
            server.do("HSET", LIFTS, "*|192.0.2.1", lifted)
            await until(lambda: set(two.blocks.values()) == {held})
            async with nodes(server.url, secret=SECRET) as [(late, seen)]:
                assert set(seen.blocks.values()) == {held}
                assert late.unsigned == 0
            assert set(one.blocks.values()) == {held}

    run(main)
