"""Which blocks HAProxy's tables must hold."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.lists import Lists, read_lists
from ratelimit.limiter.string_keys import DIGEST
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import SECOND
from ratelimit.peers import verdicts as module
from ratelimit.peers.constants import KeyType
from ratelimit.peers.verdicts import Kind, VerdictTable, end_of, kind_of
from ratelimit.steps import finish
from tests.helpers.fake_haproxy import ipv4, verdicts

NOW = 1_800_000_000
NAT64 = bytes.fromhex("0064ff9b") + bytes(8) + bytes([192, 0, 2, 7])
"""The key that HAProxy has for 192.0.2.7 behind NAT64."""


def limiter_of(limit: Limit, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> Limiter:
    lists: Lists = finish(read_lists(allow, deny, [], [], lambda field, what: what))
    made = Limiter([limit], max_clients=1_000, lists=lists)
    made.engine.at(NOW * SECOND)
    return made


def table_of(limiter: Limiter, maps: bool = False) -> VerdictTable:
    return VerdictTable(limiter, "default", verdicts(), maps)


def block(
    key: str, seconds: int = 60, limit: str = EVERY_LIMIT, shadow: bool = False, order: int = 1
) -> Block:
    return Block(key, limit, "", 0, NOW, NOW + seconds, shadow=shadow, order=order)


def told(table: VerdictTable, key: bytes) -> tuple[int, Kind]:
    """Return seconds from now until the end of a verdict, and its kind."""
    value = table.get(key)
    return end_of(value) // 1_000 - NOW if value else 0, Kind(kind_of(value))


def test_the_later_of_a_block_by_hand_and_one_by_the_limit() -> None:
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    for made in (block("192.0.2.7", 60), block("192.0.2.7", 90, "default")):
        limiter.apply(made)
    assert table.update("192.0.2.7") == [ipv4("192.0.2.7")]
    assert told(table, ipv4("192.0.2.7")) == (90, Kind.BLOCK)


def test_a_block_in_shadow_hides_none_by_hand() -> None:
    limiter = limiter_of(Limit(shadow=True))
    table = table_of(limiter)
    limiter.apply(block("192.0.2.7", 90, "default", shadow=True))
    table.update("192.0.2.7")
    assert told(table, ipv4("192.0.2.7")) == (90, Kind.BLOCK_SHADOW)
    limiter.apply(block("192.0.2.7", 60))
    table.update("192.0.2.7")
    assert told(table, ipv4("192.0.2.7")) == (60, Kind.BLOCK)


@pytest.mark.parametrize(
    ("allow", "maps", "kind"),
    [
        (("192.0.2.0/24",), True, Kind.NONE),
        (("192.0.2.9",), False, Kind.NONE),
        (("192.0.2.9",), True, Kind.BLOCK),
        (("198.51.100.0/24",), False, Kind.BLOCK),
    ],
)
def test_the_allow_list_spares_a_client_and_a_part_of_one(
    allow: tuple[str, ...], maps: bool, kind: Kind
) -> None:
    limiter = limiter_of(Limit(ipv4_prefix=24), allow)
    table = table_of(limiter, maps)
    limiter.apply(block("192.0.2.0/24"))
    table.update("192.0.2.0/24")
    assert told(table, ipv4("192.0.2.0"))[1] == kind


@pytest.mark.parametrize(
    ("client", "keys"),
    [
        ("192.0.2.7", [ipv4("192.0.2.7")]),
        ("192.0.2.0/25", []),
        ("2001:db8::/64", [bytes.fromhex("20010db8") + bytes(12)]),
        ("2001:db8::1", []),
        ("~" + "0" * 32, []),
    ],
)
def test_only_whole_clients_are_keys(client: str, keys: list[bytes]) -> None:
    limiter = limiter_of(Limit())
    limiter.apply(block(client))
    table = table_of(limiter)
    assert table.update(client) == keys
    assert table.refuses(client) == (bool(keys) or client.startswith("~"))


def test_a_block_reaches_a_client_behind_nat64_and_so_does_its_end() -> None:
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    limiter.apply(block("192.0.2.7"))
    finish(table.rebuild())
    assert told(table, NAT64) == (0, Kind.NONE)
    table.translates = True
    assert finish(table.rebuild()) == [NAT64]
    assert told(table, NAT64) == (60, Kind.BLOCK)
    limiter.lift_now(EVERY_LIMIT, "192.0.2.7", NOW * SECOND)
    assert table.update("192.0.2.7") == [ipv4("192.0.2.7"), NAT64]
    assert told(table, NAT64) == (0, Kind.NONE)


def test_a_string_that_another_node_has_blocked_is_told_at_once() -> None:
    limiter = limiter_of(Limit())
    table = VerdictTable(limiter, "default", verdicts(key=KeyType.BINARY, size=DIGEST), maps=False)
    digest = sha256(b"sk_live_1").digest()
    client = limiter.string_key(digest)
    limiter.apply(replace(block(client, limit="default"), wire=digest.hex()))
    assert table.update(client) == [digest]
    assert told(table, digest) == (60, Kind.BLOCK)
    assert table.refuses(client)
    limiter.lift_now("default", client, NOW * SECOND)
    assert table.update(client) == [digest], "its key is remembered"
    assert told(table, digest) == (0, Kind.NONE)


@pytest.mark.parametrize("wire", ["", "00" * 32, "zz" * 32, "00" * 16])
def test_a_string_whose_key_is_wrong_or_unknown_is_no_key(wire: str) -> None:
    limiter = limiter_of(Limit())
    table = VerdictTable(limiter, "default", verdicts(key=KeyType.BINARY, size=DIGEST), maps=False)
    client = limiter.string_key(sha256(b"sk_live_1").digest())
    limiter.apply(replace(block(client), wire=wire))
    assert table.update(client) == []
    assert not table.refuses(client)


def test_a_table_of_ipv4_addresses_has_four_bytes_and_no_ipv6() -> None:
    limiter = limiter_of(Limit())
    table = VerdictTable(limiter, "default", verdicts(key=KeyType.IPV4, size=4), False)
    assert table.update("192.0.2.7") == [bytes([192, 0, 2, 7])]
    assert table.update("2001:db8::/64") == []


def test_a_rebuild_finds_what_has_changed() -> None:
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    for number in range(40):
        limiter.apply(block(f"192.0.2.{number}"))
    assert not table.ready
    assert len(finish(table.rebuild())) == 40
    assert table.ready
    assert finish(table.rebuild()) == []
    limiter.lift_now(EVERY_LIMIT, "192.0.2.7", NOW * SECOND)
    assert finish(table.rebuild()) == [ipv4("192.0.2.7")]
    assert table.get(ipv4("192.0.2.7")) == 0


def test_another_prefix_makes_other_keys() -> None:
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    limiter.apply(block("192.0.2.7"))
    limiter.apply(block("198.51.100.0/24"))
    finish(table.rebuild())
    assert list(table.values) == [ipv4("192.0.2.7")]
    finish(finish(limiter.reload([Limit(ipv4_prefix=24)], Lists())))
    assert sorted(finish(table.rebuild())) == [ipv4("192.0.2.7"), ipv4("198.51.100.0")]
    assert list(table.values) == [ipv4("198.51.100.0")]


def test_ended_verdicts_are_forgotten() -> None:
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    for number in range(40):
        limiter.apply(block(f"192.0.2.{number}", 10 + number % 2 * 100))
    finish(table.rebuild())
    limiter.engine.at((NOW + 50) * SECOND)
    for _ in range(200):
        table.sweep()
    assert len(table.values) == 20


def test_the_number_of_verdicts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VERDICTS", 3)
    limiter = limiter_of(Limit())
    table = table_of(limiter)
    for number in range(5):
        limiter.apply(block(f"192.0.2.{number}"))
    finish(table.rebuild())
    assert (len(table.values), table.dropped) == (3, 2)
