"""What a HAProxy is told when: slices, room, and a HAProxy that does not read."""

from __future__ import annotations

import pytest

from ratelimit.limiter.limiter import Limiter
from ratelimit.model import EVERY_LIMIT, Block, Limit
from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers import link as module
from ratelimit.peers.hub import Hub
from ratelimit.peers.link import DIFFERENT
from ratelimit.peers.verdicts import Kind
from ratelimit.steps import finish
from tests.helpers.fake_haproxy import HOUR, FakeHaproxy, hub_of, ipv4

NOW = 1_800_000_000 * SECOND


def connected() -> tuple[Hub, FakeHaproxy]:
    limiter = Limiter([Limit()], max_clients=1_000)
    hub = hub_of(limiter, NOW)
    haproxy = FakeHaproxy(hub, NOW)
    haproxy.connect(NOW)
    return hub, haproxy


def fill(hub: Hub, count: int) -> None:
    since = NOW // SECOND
    for number in range(count):
        key = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert hub.limiter.apply(Block(key, EVERY_LIMIT, "", 0, since, since + 60, order=1))


def test_one_call_writes_a_slice_and_tells_that_there_is_more() -> None:
    hub, haproxy = connected()
    fill(hub, 1_000)
    told = haproxy.told
    calls = 1
    while haproxy.link.fill():
        haproxy.session.receive_data(haproxy.ours.take(), NOW)
        assert haproxy.told - told <= 128 * calls
        calls += 1
    haproxy.session.receive_data(haproxy.ours.take(), NOW)
    assert haproxy.told - told == 1_000
    assert calls == 8


def test_without_room_nothing_is_lost() -> None:
    hub, haproxy = connected()
    fill(hub, 5_000)
    before = 0
    while haproxy.ours.room() != before:  # until the output of the session is full
        before = haproxy.ours.room()
        assert haproxy.link.fill()
    haproxy.pump(NOW)
    assert len(haproxy.entries["rlv_default"]) == 5_000


def test_a_verdict_that_changes_twice_is_sent_once() -> None:
    hub, haproxy = connected()
    told = haproxy.told
    fill(hub, 1)
    hub.limiter.lift_now(EVERY_LIMIT, "10.0.0.0", NOW)
    haproxy.pump(NOW)
    assert haproxy.told == told + 1
    assert haproxy.verdict(ipv4("10.0.0.0"))[:3] == [0, 0, 0]


def test_a_haproxy_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 100)
    hub, haproxy = connected()
    warned: list[str] = []
    hub.warn = lambda event, about: warned.append(event)
    fill(hub, 100)
    assert not haproxy.ours.closed
    fill_one = Block("192.0.2.1", EVERY_LIMIT, "", 0, NOW // SECOND, NOW // SECOND + 9, order=1)
    hub.limiter.apply(fill_one)
    assert haproxy.ours.closed
    assert warned == ["HAProxy does not read the verdicts"]


def test_nothing_is_told_before_the_blocklist_is_read() -> None:
    limiter = Limiter([Limit()], max_clients=1_000)
    hub = hub_of(limiter, NOW)
    fill(hub, 50)
    haproxy = FakeHaproxy(hub, NOW)
    for table in haproxy.tables:
        haproxy.session.define(table)
    answer = haproxy.ours.receive_data(haproxy.session.take(), NOW)
    haproxy.session.receive_data(answer, NOW)
    haproxy.ours.receive_data(haproxy.session.take(), NOW)
    for table in haproxy.tables:
        haproxy.session.define(table)
    haproxy.session.finished()
    haproxy.ours.receive_data(haproxy.session.take(), NOW)
    assert not hub.ready
    assert not haproxy.link.fill()
    finish(hub.rebuild())
    haproxy.pump(NOW)
    assert len(haproxy.entries["rlv_default"]) == 50


@pytest.mark.parametrize("ahead", [0, DIFFERENT, -DIFFERENT, DIFFERENT + 1, -60_000, 1 << 30])
def test_the_clock_of_haproxy_is_learnt_from_the_least_late_message(ahead: int) -> None:
    hub, haproxy = connected()
    for late in (30, 3, 700):
        clock = (NOW // MILLISECOND + ahead) % 2**32
        haproxy.link.show_clock(clock, NOW + late * MILLISECOND)
    assert haproxy.link.offset == ahead - 3
    fill(hub, 1)
    haproxy.pump(NOW)
    seconds, early, kind, _ = haproxy.verdict(ipv4("10.0.0.0"))
    assert kind == Kind.BLOCK
    assert early == 0  # whole seconds, like all ends of blocks
    assert seconds == -(-(NOW // MILLISECOND + 60_000 + ahead - 3) // 1_000)


def test_verdicts_are_told_again_before_haproxy_forgets_them() -> None:
    hub, haproxy = connected()
    now = NOW // SECOND
    hub.limiter.apply(Block("10.0.0.0", EVERY_LIMIT, "", 0, now, now + 86_400, order=1))
    haproxy.pump(NOW)
    key = ipv4("10.0.0.0")
    assert haproxy.verdict(key)[3] == HOUR, "an entry lives no longer than its table says"
    told = []
    for minute in range(0, 121, 5):
        haproxy.entries["rlv_default"].clear()
        later = NOW + minute * 60 * SECOND
        hub.tick(later, 0)
        haproxy.pump(later)
        if haproxy.verdict(key):
            told.append(minute)
    assert told == [30, 60, 90, 120]
