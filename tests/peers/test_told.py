"""The verdicts that HAProxy was told."""

from __future__ import annotations

import itertools

import pytest

from ratelimit.model import Limit
from ratelimit.notation import SECOND
from ratelimit.peers.constants import KeyType
from tests.helpers.asking import START
from tests.helpers.sticktable import Fed, Line, ipv6, table

RATE = 10
FULL = Limit(rate=RATE, window=8 * SECOND, block=())


def test_a_verdict_is_told_once_until_its_end_is_an_eighth_of_the_window_later() -> None:
    fed = Fed(FULL)
    line = Line(fed)
    ends = []
    for n in range(600):
        line.tell(n / 100, req=n + 1)
        ends += fed.ends()
    assert len(ends) <= 6 / 1 + 2
    assert all(later - sooner > 1 for sooner, later in itertools.pairwise(ends))
    assert ends[-1] > 6 + 8 - 1 - 1, "never an eighth behind"


def test_a_verdict_has_the_key_that_haproxy_has() -> None:
    fed = Fed(Limit(rate=1, block=()))
    line = Line(fed)
    for client in ("192.0.2.1", "2001:db8::", "64:ff9b::c000:201"):
        line.tell(0, ipv6(client), req=1)
    told = fed.verdicts()
    # 64:ff9b::/96 is the IPv4 client behind NAT64: it is over its limit with the first.
    assert [one.key for one in told] == [
        ipv6("192.0.2.1"),
        ipv6("2001:db8::"),
        ipv6("64:ff9b::c000:201"),
    ]
    assert {one.limit for one in told} == {"default"}
    assert fed.hits("192.0.2.1") == 2


def test_a_binary_key_is_told_as_it_is() -> None:
    fed = Fed(Limit(name="key", rate=1, block=()))
    key = bytes(range(32))
    Line(fed, table(name="rl_key", key_type=KeyType.BINARY, key_size=32)).tell(0, key, req=1)
    (verdict,) = fed.verdicts()
    assert (verdict.limit, verdict.key) == ("key", key)


def test_an_address_of_an_ipv4_table_is_told_with_sixteen_bytes() -> None:
    fed = Fed(Limit(rate=1, block=()))
    line = Line(fed, table(key_type=KeyType.IPV4, key_size=4))
    line.tell(0, bytes((192, 0, 2, 1)), req=1)
    (verdict,) = fed.verdicts()
    assert verdict.key == ipv6("192.0.2.1")


@pytest.mark.parametrize("is_text", [False, True])
def test_a_forgotten_verdict_is_told_again(is_text: bool) -> None:
    fed = Fed(FULL)
    key = bytes(range(16))
    kind = KeyType.BINARY if is_text else KeyType.IPV6
    line = Line(fed, table(key_type=kind))
    line.tell(0, key[:8] + bytes(8), req=RATE)
    assert len(fed.verdicts()) == 1
    line.tell(0.1, key[:8] + bytes(8), req=RATE + 1)
    assert fed.verdicts() == []
    fed.counts.forget("default", key[:8] + bytes(8), is_text)
    line.tell(0.2, key[:8] + bytes(8), req=RATE + 2)
    assert len(fed.verdicts()) == 1


def test_a_block_takes_the_place_of_a_verdict() -> None:
    fed = Fed(Limit(rate=RATE, window=80 * SECOND, block=(5,)))
    line = Line(fed)
    line.tell(0, req=RATE)
    assert len(fed.verdicts()) == 1
    line.tell(1, req=RATE + 1)
    assert fed.limiter.blocks == 1
    assert fed.ends() == [6]
    line.tell(2, req=RATE + 2)
    assert fed.ends() == [], "HAProxy has been told the block"
    line.tell(10, req=2 * RATE + 2)
    (end,) = fed.ends()
    assert end > 80, "the former end was told before the block, which has overwritten it"


def test_more_clients_than_places_are_told_all_the_same() -> None:
    fed = Fed(Limit(rate=1, block=()), capacity=10_000)
    line = Line(fed)
    told = set()
    for n in range(1000):
        line.tell(0, ipv6(f"10.0.{n // 256}.{n % 256}"), req=1)
        told |= {one.key for one in fed.counts.take(10)}
    assert len(told) == 1000
    assert fed.counts.told.places == 64


def test_without_room_the_queue_stays_bounded() -> None:
    fed = Fed(Limit(rate=1, block=()), capacity=10_000)
    line = Line(fed)
    for n in range(1000):
        line.tell(0, ipv6(f"10.0.{n // 256}.{n % 256}"), req=1)
    assert fed.counts.told.queued <= 64
    assert len(fed.counts.take(5)) == 5
    assert len(fed.verdicts()) == fed.counts.told.places - 5
    assert fed.counts.told.queued == 0


def test_an_haproxy_that_knows_none_is_told_those_in_force() -> None:
    fed = Fed(FULL)
    line = Line(fed)
    line.tell(0, "192.0.2.1", req=RATE)
    line.tell(5, "192.0.2.2", since=5, req=RATE)
    fed.verdicts()
    fed.counts.at(START + 10 * SECOND, 0)
    places = fed.counts.told.places
    held = fed.counts.held(0, places // 2) + fed.counts.held(places // 2, places + 1)
    assert [one.key for one in held] == [ipv6("192.0.2.2")]


def test_a_removed_limit_has_no_verdicts() -> None:
    fed = Fed(Limit(rate=1, block=()), Limit(name="login"))
    Line(fed).tell(0, req=1)
    fed.limiter.engine.reload([Limit(name="login")])
    assert fed.verdicts() == []
