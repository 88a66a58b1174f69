"""The hub: what a HAProxy tells becomes verdicts at every HAProxy."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import pytest

from ratelimit.limiter.limiter import FUSE_CLIENTS, Limiter, Sharing
from ratelimit.limiter.lists import Lists, read_lists
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.constants import DataType, KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.link import Mode
from ratelimit.peers.verdicts import Kind
from ratelimit.steps import finish
from tests.helpers.fake_haproxy import (
    TABLES,
    FakeHaproxy,
    caps,
    counts,
    hub_of,
    ipv4,
    limits,
    verdicts,
)

NOW = 1_800_000_000 * SECOND
CLIENT = ipv4("192.0.2.7")


def limiter_of(*limits: Limit, sharing: Sharing = Sharing.NONE) -> Limiter:
    made = Limiter(limits, max_clients=1_000, sharing=sharing)
    made.engine.at(NOW)
    return made


def by_hand(key: str, seconds: int = 60, limit: str = EVERY_LIMIT, order: int = 1) -> Block:
    since = NOW // SECOND
    return Block(key, limit, "test", 0, since, since + seconds, order=order)


def lists_of(allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Lists:
    return finish(read_lists(allow, deny, [], [], lambda field, what: what))


def request(haproxy: FakeHaproxy, count: int, now: int, key: bytes = CLIENT) -> None:
    """Tell that a client has sent its request number ``count``."""
    table = haproxy.tables[0]
    values = [count, 0, count, 0][: sum(map(table.width, table.types))]
    haproxy.session.update(table, key, values)
    haproxy.pump(now)


def test_a_client_above_its_limit_is_blocked_at_every_haproxy() -> None:
    hub = hub_of(limiter_of(Limit(rate=10)), NOW)
    one, two = FakeHaproxy(hub, NOW, "one"), FakeHaproxy(hub, NOW, "two")
    one.connect(NOW)
    two.connect(NOW)
    for number in range(1, 12):
        request(one, number, NOW + number * MILLISECOND)
    two.pump(NOW + 12 * MILLISECOND)
    end = NOW // SECOND + 11  # rounded up, since the block began within a second
    assert one.verdict(CLIENT)[:3] == two.verdict(CLIENT)[:3] == [end, 0, Kind.BLOCK]
    assert one.verdict(CLIENT)[3] <= 12_000
    assert one.verdict(ipv4("192.0.2.8")) == []


def test_a_read_that_has_waited_does_not_set_the_clock_back() -> None:
    hub = hub_of(limiter_of(Limit(rate=10, window=10 * SECOND)), NOW)
    one, two = FakeHaproxy(hub, NOW, "one"), FakeHaproxy(hub, NOW, "two")
    one.connect(NOW)
    two.connect(NOW)
    for number in range(1, 10):
        request(one, number, NOW + 3 * SECOND)
    # It was read before, and waited for the blocklist or the store.
    request(two, 1, NOW + SECOND)
    one.pump(NOW + 3 * SECOND)
    assert one.verdict(CLIENT)[2] == Kind.THROTTLE


def test_two_haproxies_count_together() -> None:
    hub = hub_of(limiter_of(Limit(rate=10)), NOW)
    one, two = FakeHaproxy(hub, NOW, "one"), FakeHaproxy(hub, NOW, "two")
    one.connect(NOW)
    two.connect(NOW)
    for number in range(1, 6):
        assert two.verdict(CLIENT) == []
        request(one, number, NOW + number * MILLISECOND)
        request(two, number, NOW + number * MILLISECOND)
    one.pump(NOW + 5 * MILLISECOND)
    assert one.verdict(CLIENT)[2] == Kind.THROTTLE
    request(two, 6, NOW + 6 * MILLISECOND)
    one.pump(NOW + 6 * MILLISECOND)
    assert one.verdict(CLIENT)[2] == Kind.BLOCK


def test_without_a_ladder_a_client_is_throttled_to_the_millisecond() -> None:
    hub = hub_of(limiter_of(Limit(rate=10, block=())), NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    for number in range(1, 12):
        request(haproxy, number, NOW + number * MILLISECOND)
    seconds, early, kind, _ = haproxy.verdict(CLIENT)
    assert kind == Kind.THROTTLE
    assert NOW < (1_000 * seconds - early) * MILLISECOND <= NOW + 2 * SECOND
    assert 0 < early < 1_000


def test_a_haproxy_that_connects_is_told_the_throttles_in_steps() -> None:
    hub = hub_of(limiter_of(Limit(rate=10, block=())), NOW)
    one, two = FakeHaproxy(hub, NOW, "one"), FakeHaproxy(hub, NOW, "two")
    one.connect(NOW)
    for number in range(1, 12):
        request(one, number, NOW + number * MILLISECOND)
    two.connect(NOW + 12 * MILLISECOND)
    assert two.verdict(CLIENT)[:3] == one.verdict(CLIENT)[:3]
    steps = list(hub.all_verdicts(two.link, asked=False))
    assert steps.count(None) == len(range(0, hub.told.places, 256))
    assert [key for _, key, _ in filter(None, steps)] == [CLIENT]


def test_blocks_that_a_reload_changes_are_told_in_steps() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    for number in range(300):
        assert limiter.apply(by_hand(f"192.0.{number // 256}.{number % 256}"))
    haproxy.pump(NOW)
    finish(finish(limiter.reload([Limit()], lists_of(allow=("192.0.0.0/16",)))))
    hub.reload()
    waiting = [haproxy.link.waiting for _ in hub.rebuild()]
    waiting.append(haproxy.link.waiting)
    assert waiting[-1] == 300
    assert max(b - a for a, b in itertools.pairwise(waiting)) <= 16
    haproxy.pump(NOW)
    assert {tuple(entry[:3]) for entry in haproxy.entries["rlv_default"].values()} == {(0, 0, 0)}


def test_a_new_table_is_taught_and_not_told_block_by_block() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    for number in range(300):
        assert limiter.apply(by_hand(f"192.0.{number // 256}.{number % 256}"))
    # HAProxy announces the table of verdicts once it has an entry, long after the teaching.
    haproxy = FakeHaproxy(hub, NOW, tables=(counts(), limits()))
    haproxy.connect(NOW)
    assert "rlv_default" not in haproxy.entries
    haproxy.session.define(verdicts())
    hub.begin_read(NOW, NOW)
    haproxy.ours.receive_data(haproxy.session.take(), NOW)
    assert not hub.ready
    finish(hub.rebuild())
    assert haproxy.link.waiting == 0
    haproxy.pump(NOW)
    assert len(haproxy.entries["rlv_default"]) == 300


def test_a_reload_while_the_verdicts_are_compared_is_not_forgotten() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    for number in range(300):
        assert limiter.apply(by_hand(f"192.0.{number // 256}.{number % 256}"))
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    hub.reload()
    steps = hub.rebuild()
    for _ in range(30):
        next(steps)
    finish(finish(limiter.reload([Limit()], lists_of(allow=("192.0.0.0/16",)))))
    hub.reload()
    finish(steps)
    assert hub.ready
    haproxy.pump(NOW)
    assert {tuple(entry[:3]) for entry in haproxy.entries["rlv_default"].values()} == {(0, 0, 0)}


@pytest.mark.parametrize("block", [(60,), ()])
def test_errors_above_a_limit_begin_a_block(block: tuple[int, ...]) -> None:
    """A refused request is no error: a client that was throttled at the rate would never exceed."""
    hub = hub_of(limiter_of(Limit(rate=5, counts="errors", block=block)), NOW)
    haproxy = FakeHaproxy(hub, NOW, tables=(counts(types=(DataType.HTTP_ERR_CNT,)), *TABLES[1:]))
    haproxy.connect(NOW)

    def errs(count: int) -> list[int]:
        now = NOW + count * MILLISECOND
        haproxy.session.update(haproxy.tables[0], CLIENT, [count, 0, count, 0, count])
        haproxy.pump(now)
        return haproxy.verdict(CLIENT)[2:3]

    assert [errs(count) for count in range(1, 5)] == [[]] * 4
    assert errs(5) == ([] if block else [Kind.THROTTLE])
    assert errs(6) == [Kind.BLOCK if block else Kind.THROTTLE]


def test_a_blown_fuse_and_its_reset_are_told() -> None:
    limiter = limiter_of(Limit(rate=1, fuse=0.01))
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    for number in range(FUSE_CLIENTS + 1):
        for count in (1, 2):
            request(haproxy, count, NOW + count * MILLISECOND, ipv4(f"192.0.2.{number}"))
    assert haproxy.entries["rlc_limits"][b"default"][1] == Mode.FUSED
    assert limiter.clear_fuse("default")
    haproxy.pump(NOW + 3 * MILLISECOND)
    assert haproxy.entries["rlc_limits"][b"default"][1] == Mode.ENFORCE


def test_caps_are_told_each_second_once_all_verdicts_are() -> None:
    limits = Limit(rate=10), Limit("b", rate=10, shadow=True), Limit("c", window=3 * SECOND)
    hub = hub_of(limiter_of(*limits), NOW)
    haproxy = FakeHaproxy(hub, NOW, tables=(*TABLES, caps(4), counts("rl_c", number=5)))
    haproxy.connect(NOW, finished=False)
    hub.tick(NOW + SECOND, 0)
    haproxy.pump(NOW + SECOND)
    assert haproxy.entries["rlc_limits"][b"default"][0] == 10
    assert "rlc_caps" not in haproxy.entries
    haproxy.session.finished()
    haproxy.pump(NOW + SECOND)
    for second in (2, 3):
        # The period of the last table is not the window of its limit: HAProxy's count is no cap.
        told = haproxy.entries.pop("rlc_caps")
        assert [told[name][0] for name in (b"default", b"b", b"c")] == [20, 20, 2**32 - 1]
        hub.tick(NOW + second * SECOND, 0)
        haproxy.entries["rlc_caps"] = {}
        haproxy.pump(NOW + second * SECOND)


def test_in_shadow_haproxy_only_logs() -> None:
    hub = hub_of(
        limiter_of(Limit(rate=10, shadow=True), Limit("b", rate=10, block=(), shadow=True)), NOW
    )
    wanted = (*TABLES[:1], counts("rl_b"), *TABLES[1:], verdicts("rlv_b"))
    tables = tuple(
        Definition(n, t.name, t.key_type, t.key_size, t.types, t.periods, t.sizes, t.expire)
        for n, t in enumerate(wanted, 1)
    )
    haproxy = FakeHaproxy(hub, NOW, tables=tables)
    haproxy.connect(NOW)
    for number in range(1, 12):
        request(haproxy, number, NOW + number * MILLISECOND)
        haproxy.session.update(tables[1], CLIENT, [number, 0, number, 0])
        haproxy.pump(NOW + number * MILLISECOND)
    assert haproxy.verdict(CLIENT, "rlv_b")[2] == Kind.THROTTLE_SHADOW
    assert haproxy.verdict(CLIENT)[2] == Kind.BLOCK_SHADOW


def test_a_block_by_hand_is_told_and_its_lift() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    assert limiter.apply(by_hand("192.0.2.7"))
    haproxy.pump(NOW)
    assert haproxy.verdict(CLIENT) == [NOW // SECOND + 60, 0, Kind.BLOCK, 61_000]
    limiter.lift_now(EVERY_LIMIT, "192.0.2.7", NOW)
    haproxy.pump(NOW)
    assert haproxy.verdict(CLIENT)[:3] == [0, 0, 0]


def test_a_network_is_told_if_it_is_one_client() -> None:
    limiter = limiter_of(Limit(ipv4_prefix=24))
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    for key in (
        "192.0.2.0/24",
        "198.51.100.0/25",
        "203.0.0.0/16",
        "2001:db8::/64",
        "2001:db8::/48",
    ):
        assert limiter.apply(by_hand(key))
    haproxy.pump(NOW)
    known = {key for key, entry in haproxy.entries["rlv_default"].items() if entry[2]}
    assert known == {ipv4("192.0.2.0"), bytes.fromhex("20010db8") + bytes(12)}


def test_a_restarted_haproxy_gets_all_blocks_with_the_handshake() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    first = FakeHaproxy(hub, NOW)
    first.connect(NOW)
    for number in range(300):
        assert limiter.apply(by_hand(f"192.0.{number // 256}.{number % 256}"))
    hub.end(first.link)
    second = FakeHaproxy(hub, NOW, pid=2)
    # HAProxy announces nothing yet, and waits for the end of the teaching.
    second.pump(NOW)
    assert second.finished == 1
    assert len(second.entries["rlv_default"]) == 300
    assert LIMITS_NAME not in second.entries
    second.connect(NOW)
    assert second.entries[LIMITS_NAME][b"default"][2] == NOW // SECOND


LIMITS_NAME = limits().name


def test_the_marker_tells_that_teaching_is_complete_and_follows_the_time() -> None:
    hub = hub_of(limiter_of(Limit(rate=7)), NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    assert haproxy.entries[LIMITS_NAME][b"default"][:4] == [7, 1, NOW // SECOND, 1]
    hub.tick(NOW + SECOND, 0)
    haproxy.pump(NOW + SECOND)
    assert haproxy.entries[LIMITS_NAME][b"default"][2] == NOW // SECOND + 1


@pytest.mark.parametrize(
    ("limit", "period", "mode"),
    [
        (Limit(), 1_000, 1),
        (Limit(shadow=True), 1_000, 2),
        (Limit(), 2_000, 4),
        (Limit(counts="errors"), 1_000, 4),
    ],
)
def test_the_mode_of_a_limit(limit: Limit, period: int, mode: int) -> None:
    hub = hub_of(limiter_of(limit), NOW)
    tables = (counts(period=period, types=[DataType.HTTP_ERR_CNT]), *TABLES[1:])
    haproxy = FakeHaproxy(hub, NOW, tables=tables)
    haproxy.connect(NOW)
    assert haproxy.entries[LIMITS_NAME][b"default"][1] == mode


def test_blocks_that_no_longer_hold_are_read_back_and_lifted() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    assert limiter.apply(by_hand("192.0.2.7"))
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.pump(NOW)
    for table in TABLES:
        haproxy.session.define(table)
    other, ended, throttled = ipv4("192.0.2.8"), ipv4("192.0.2.9"), ipv4("192.0.2.10")
    later = NOW // SECOND + 100
    for key, values in {
        CLIENT: (later, 0, Kind.BLOCK),
        other: (later, 0, Kind.BLOCK),
        ended: (later - 200, 0, Kind.BLOCK),
        throttled: (later, 0, Kind.THROTTLE),
    }.items():
        haproxy.session.update(TABLES[1], key, values)
    haproxy.session.finished()
    haproxy.pump(NOW)
    assert haproxy.verdict(other)[:3] == [0, 0, 0]
    assert haproxy.verdict(CLIENT)[:3] == [NOW // SECOND + 60, 0, Kind.BLOCK]
    assert haproxy.verdict(ended) == haproxy.verdict(throttled) == []


def test_a_string_is_blocked_under_the_key_that_haproxy_has() -> None:
    hub = hub_of(limiter_of(Limit("key", rate=10)), NOW)
    table = Definition(1, "rl_key", KeyType.BINARY, 32, (DataType.HTTP_REQ_CNT,), expire=120_000)
    told = verdicts("rlv_key", KeyType.BINARY, 32)
    haproxy = FakeHaproxy(hub, NOW, tables=(table, told, limits()))
    haproxy.connect(NOW)
    key = hashlib.sha256(b"secret").digest()
    for number in range(1, 12):
        haproxy.session.update(table, key, [number])
        haproxy.pump(NOW + number * MILLISECOND)
    assert haproxy.verdict(key, "rlv_key")[2] == Kind.BLOCK
    (block,) = hub.limiter.blocklist
    hub.limiter.lift_now("key", block.key, NOW)
    haproxy.pump(NOW + SECOND)
    assert haproxy.verdict(key, "rlv_key")[:3] == [0, 0, 0]


def test_a_client_on_the_deny_list_is_told_with_its_first_count() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    finish(finish(limiter.reload([Limit()], lists_of(deny=("192.0.2.0/24",)))))
    hub.reload()
    request(haproxy, 1, NOW)
    assert haproxy.verdict(CLIENT)[:3] == [2**32 - 1, 0, Kind.DENYLIST]
    finish(finish(limiter.reload([Limit()], Lists())))
    hub.reload()
    haproxy.pump(NOW)
    assert haproxy.verdict(CLIENT)[:3] == [0, 0, 0]


def test_the_allow_list_lifts_a_block() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    assert limiter.apply(by_hand("192.0.2.7"))
    haproxy.pump(NOW)
    finish(finish(limiter.reload([Limit()], lists_of(allow=("192.0.2.7",)))))
    hub.reload()
    haproxy.pump(NOW)
    assert haproxy.verdict(CLIENT)[:3] == [0, 0, 0]


def test_a_reload_changes_the_rates_and_removes_a_limit() -> None:
    limiter = limiter_of(Limit(), Limit("login"))
    hub = hub_of(limiter, NOW)
    tables = (TABLES[0], verdicts("rlv_login"), limits())
    haproxy = FakeHaproxy(hub, NOW, tables=tables)
    haproxy.connect(NOW)
    assert limiter.apply(by_hand("192.0.2.7"))
    haproxy.pump(NOW)
    assert haproxy.verdict(CLIENT, "rlv_login")[2] == Kind.BLOCK
    finish(finish(limiter.reload([Limit(rate=5)], Lists())))
    hub.reload()
    haproxy.pump(NOW)
    assert haproxy.entries[LIMITS_NAME][b"default"][0] == 5
    assert haproxy.entries[LIMITS_NAME][b"login"][:4] == [0, 0, 0, 0]
    assert haproxy.verdict(CLIENT, "rlv_login")[:3] == [0, 0, 0]


def test_a_limit_that_is_new_ends_the_sessions_that_have_its_tables() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW, tables=(*TABLES[:1], verdicts("rlv_login"), limits()))
    haproxy.connect(NOW)
    finish(finish(limiter.reload([Limit(), Limit("login")], Lists())))
    hub.reload()
    assert haproxy.ours.closed


@pytest.mark.parametrize(
    ("limit", "sharing", "tables", "why"),
    [
        (
            Limit(strict=True, block=()),
            Sharing.NONE,
            TABLES,
            "limits.default is strict, which needs SPOE",
        ),
        (Limit(), Sharing.ALL, TABLES, 'store.sync_interval is "0", which needs SPOE'),
        (
            Limit(counts="errors"),
            Sharing.NONE,
            TABLES,
            "limits.default needs http_err_cnt in the table",
        ),
        (Limit(), Sharing.NONE, [verdicts(tags=2)], "the table must store gpt(3)"),
        (Limit(), Sharing.NONE, [limits(tags=3)], "the table must store gpt(4)"),
    ],
)
def test_a_table_that_cannot_be_used_is_reported_once(
    limit: Limit, sharing: Sharing, tables: list[Definition], why: str
) -> None:
    hub = hub_of(limiter_of(limit, sharing=sharing), NOW)
    told: list[dict[str, str]] = []
    hub.warn = lambda event, about: told.append(about)
    for pid in (1, 2):
        haproxy = FakeHaproxy(hub, NOW, pid=pid, tables=tables)
        haproxy.connect(NOW)
        assert not haproxy.ours.closed
        assert list(haproxy.link.refused.values()) == [why]
        hub.end(haproxy.link)
    assert [about["why"] for about in told] == [why]


def test_a_table_of_no_limit_is_reported_once_and_is_no_fault() -> None:
    hub = hub_of(limiter_of(Limit("other")), NOW)
    told: list[dict[str, str]] = []
    hub.warn = lambda event, about: told.append(about)
    for pid in (1, 2):
        haproxy = FakeHaproxy(hub, NOW, pid=pid)
        haproxy.connect(NOW)
        assert (haproxy.link.refused, haproxy.link.unused) == ({}, {"rl_default", "rlv_default"})
    whys = ["no limit takes counts from this table", "no limit has the name default"]
    assert [about["why"] for about in told] == whys


def test_a_string_that_one_node_blocks_is_told_by_another_that_has_never_seen_it() -> None:
    tables = (
        dataclasses.replace(counts(), key_type=KeyType.BINARY, key_size=32),
        verdicts(key=KeyType.BINARY, size=32),
        TABLES[2],
    )
    key = hashlib.sha256(b"sk_live_1").digest()
    nodes = [limiter_of(Limit(rate=2)) for _ in range(2)]
    for node in nodes:
        node.rekey(bytes(16))
    haproxies = [FakeHaproxy(hub_of(node, NOW), NOW, tables=tables) for node in nodes]
    for haproxy in haproxies:
        haproxy.connect(NOW)
    here, there = haproxies
    here.session.update(tables[0], key, [3, 0, 3, 0])
    here.pump(NOW)
    assert here.verdict(key)[2] == Kind.BLOCK
    (block,) = nodes[0].blocklist.of("default")
    assert there.verdict(key) == []
    nodes[1].apply(block)
    there.pump(NOW)
    assert there.verdict(key) == here.verdict(key)
    nodes[1].lift_now("default", block.key, NOW)
    there.pump(NOW)
    assert there.verdict(key)[:3] == [0, 0, 0]


def test_once_a_client_is_behind_nat64_blocks_have_its_form_of_keys_too() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    since = NOW // SECOND
    limiter.apply(Block("192.0.2.7", EVERY_LIMIT, "", 0, since, since + 60, order=1))
    haproxy.pump(NOW)
    behind = bytes.fromhex("0064ff9b") + bytes(8) + bytes([192, 0, 2, 7])
    assert haproxy.verdict(ipv4("192.0.2.7"))[2] == Kind.BLOCK
    assert haproxy.verdict(behind) == []
    haproxy.session.update(TABLES[0], behind[:-1] + b"\x08", [1, 0, 1, 0])
    haproxy.pump(NOW)
    assert haproxy.verdict(behind)[2] == Kind.BLOCK
    limiter.lift_now(EVERY_LIMIT, "192.0.2.7", NOW)
    haproxy.pump(NOW)
    assert haproxy.verdict(behind)[:3] == [0, 0, 0]


def test_clients_behind_nat64_count_as_their_network_and_have_a_verdict_each() -> None:
    limiter = limiter_of(Limit(rate=4, ipv4_prefix=24))
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    behind = [bytes.fromhex("0064ff9b") + bytes(8) + bytes([192, 0, 2, n]) for n in (7, 8)]
    for count in (1, 2, 3):
        for key in behind:
            request(haproxy, count, NOW, key)
    assert haproxy.link.refused == {}
    assert [block.key for block in limiter.blocklist] == ["192.0.2.0/24"]
    assert [haproxy.verdict(key)[2] for key in behind] == [Kind.BLOCK, Kind.BLOCK]
    limiter.lift_now("default", "192.0.2.0/24", NOW)
    haproxy.pump(NOW)
    assert [haproxy.verdict(key)[:3] for key in behind] == [[0, 0, 0]] * 2


def test_a_client_of_a_blocked_network_is_told_once_it_is_counted_and_lifted_with_the_network() -> (
    None
):
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    since = NOW // SECOND
    limiter.apply(Block("192.0.2.0/24", EVERY_LIMIT, "", 0, since, since + 600, order=1))
    for count in (1, 2):
        haproxy.session.update(TABLES[0], ipv4("192.0.2.7"), [count, 0, count, 0])
        haproxy.session.update(TABLES[0], ipv4("192.0.3.7"), [count, 0, count, 0])
        haproxy.pump(NOW)
    assert haproxy.verdict(ipv4("192.0.2.7"))[:3] == [since + 600, 0, Kind.BLOCK]
    assert haproxy.verdict(ipv4("192.0.3.7")) == []
    limiter.lift_now(EVERY_LIMIT, "192.0.2.0/24", NOW)
    haproxy.pump(NOW)
    assert haproxy.verdict(ipv4("192.0.2.7"))[:3] == [0, 0, 0]


def test_a_block_of_what_is_no_client_of_a_limit_is_not_enforced() -> None:
    limiter = limiter_of(Limit())
    hub = hub_of(limiter, NOW)
    assert hub.unenforced("192.0.2.0/24") == [], "no HAProxy is a peer"
    FakeHaproxy(hub, NOW).connect(NOW)
    since = NOW // SECOND
    found = {}
    for key in ("192.0.2.7", "192.0.2.0/24", "2001:db8::/64", "2001:db8::1"):
        limiter.apply(Block(key, EVERY_LIMIT, "", 0, since, since + 60, order=1))
        found[key] = hub.unenforced(key)
    assert found == {
        "192.0.2.7": [],
        "192.0.2.0/24": ["default"],
        "2001:db8::/64": [],
        "2001:db8::1": ["default"],
    }


def test_host_bits_beyond_the_prefix_refuse_the_table() -> None:
    hub = hub_of(limiter_of(Limit(ipv4_prefix=24)), NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    request(haproxy, 1, NOW)
    assert haproxy.link.refused == {"rl_default": "its keys have bits beyond the limit's prefix"}


def test_a_newer_session_of_a_name_replaces_the_older() -> None:
    hub = hub_of(limiter_of(Limit()), NOW)
    older = FakeHaproxy(hub, NOW, pid=1)
    older.connect(NOW)
    newer = FakeHaproxy(hub, NOW, pid=2)
    newer.connect(NOW)
    assert older.ours.closed and older.link.replaced
    assert not newer.ours.closed
    assert hub.by_name == {"haproxy": newer.link}


def test_two_haproxies_of_one_name_that_alternate_are_named_and_the_later_is_refused() -> None:
    hub = hub_of(limiter_of(Limit()), NOW)
    told: list[dict[str, str]] = []
    hub.warn = lambda event, about: told.append(about)
    made = []
    for number in range(5):
        haproxy = FakeHaproxy(hub, NOW, pid=number % 2, address=f"192.0.2.{number % 2}:1")
        haproxy.connect(NOW + number * SECOND)
        made.append(haproxy)
    assert [one.ours.error is None for one in made] == [True, True, True, False, True]
    (about,) = told
    assert about["first"] == "process 0 at 192.0.2.0"
    assert about["later"] == "process 1 at 192.0.2.1"


def test_reloads_of_one_haproxy_are_no_alternation() -> None:
    hub = hub_of(limiter_of(Limit()), NOW)
    for pid in range(8):
        haproxy = FakeHaproxy(hub, NOW, pid=pid)
        haproxy.connect(NOW)
        assert not haproxy.ours.closed


def test_only_allowed_names_may_connect() -> None:
    hub = hub_of(limiter_of(Limit()), NOW, allowed=["one"])
    one, two = FakeHaproxy(hub, NOW, "one"), FakeHaproxy(hub, NOW, "two")
    one.connect(NOW)
    two.connect(NOW)
    assert not one.ours.closed
    assert two.ours.closed and two.session.closed
    assert hub.refused_hellos == 1


def test_haproxys_clock_moves_the_ends() -> None:
    hub = hub_of(limiter_of(Limit(rate=10, block=())), NOW)
    table = counts(types=[DataType.GPT])
    haproxy = FakeHaproxy(hub, NOW, tables=(table, *TABLES[1:]))
    haproxy.connect(NOW)
    ahead = 5_000
    for number in range(1, 12):
        now = NOW + number * MILLISECOND
        clock = (now // MILLISECOND + ahead) % 2**32
        haproxy.session.update(table, CLIENT, [number, 0, number, 0, clock if number == 1 else 0])
        haproxy.pump(now)
    assert haproxy.link.offset == ahead
    seconds, early, kind, _ = haproxy.verdict(CLIENT)
    assert kind == Kind.THROTTLE and early == 0
    assert NOW // SECOND + 5 < seconds <= NOW // SECOND + 7


def test_the_names_of_former_sessions_are_not_kept() -> None:
    hub = hub_of(limiter_of(Limit()), NOW)
    for number in range(20):
        haproxy = FakeHaproxy(hub, NOW, name=f"pod-{number}")
        haproxy.connect(NOW)
        hub.end(haproxy.link)
    assert not hub.by_name and not hub._contests
