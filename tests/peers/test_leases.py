"""Who counts for a HAProxy that several agents hear."""

from __future__ import annotations

from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.leases import LIFE, MARGIN, PAUSE, Leases
from ratelimit.peers.sources import Origin

NOW = 1_800_000_000 * SECOND
LATER = NOW + 100 * MILLISECOND
OTHER = "agent2"


def of_store(up: bool = True) -> Leases:
    leases = Leases("agent")
    leases.shared = True
    if up:
        leases.back(NOW - LIFE)
    return leases


def origin(synced: bool = True) -> Origin:
    made = Origin("edge", 1)
    made.synced = synced
    return made


def test_without_a_shared_store_each_agent_counts() -> None:
    leases = Leases("agent")
    lease = leases.begin(origin(), NOW)
    assert lease.origin.counting
    assert leases.reads(lease, NOW + 10 * LIFE)
    leases.lost()
    assert leases.reads(lease, NOW) and lease.origin.counting


def test_nothing_is_read_until_the_store_has_answered() -> None:
    leases = of_store()
    lease = leases.begin(origin(), NOW)
    assert not leases.reads(lease, NOW)
    assert leases.wanted({"edge"}, NOW) == ["edge"]
    assert not leases.answered("edge", "", "agent", NOW, LATER)
    assert lease.origin.counting and leases.reads(lease, LATER)


def test_an_agent_without_the_lease_does_not_count_and_asks_again() -> None:
    leases = of_store()
    lease = leases.begin(origin(), NOW)
    assert not leases.answered("edge", OTHER, OTHER, NOW, LATER)
    assert not lease.origin.counting
    assert leases.reads(lease, NOW + 10 * LIFE)
    assert leases.wanted({"edge"}, LATER) == ["edge"]
    assert leases.wanted(set(), LATER) == []


def test_after_a_pause_nothing_is_read_until_the_store_has_answered() -> None:
    leases = of_store()
    lease = leases.begin(origin(), NOW)
    leases.answered("edge", "", "agent", NOW, LATER)
    end = NOW + LIFE - MARGIN
    assert leases.reads(lease, end - 1)
    assert not leases.reads(lease, end)
    assert not leases.answered("edge", OTHER, OTHER, end, end), "no hit was counted by both"
    assert leases.reads(lease, end) and not lease.origin.counting


def test_who_takes_over_counts_after_a_pause_once_it_knows_all_entries() -> None:
    leases = of_store()
    lease = leases.begin(origin(synced=False), NOW)
    leases.answered("edge", OTHER, "agent", NOW, NOW)
    assert leases.reads(lease, NOW)
    assert leases.start(NOW + PAUSE) and not lease.origin.counting
    leases.answered("edge", "agent", "agent", NOW, NOW + PAUSE)
    assert not lease.origin.counting, "it still does not know all"
    lease.origin.synced = True
    assert leases.start(NOW + PAUSE - 1)
    assert not leases.start(NOW + PAUSE)
    assert lease.origin.counting


def test_in_an_outage_everything_stays_as_it_was() -> None:
    for holder in ("agent", OTHER):
        leases = of_store()
        lease = leases.begin(origin(), NOW)
        leases.answered("edge", "", holder, NOW, NOW)
        leases.lost()
        assert leases.begin(lease.origin, NOW + 10 * LIFE) is lease
        assert leases.reads(lease, NOW + 10 * LIFE)
        assert lease.origin.counting == (holder == "agent")


def test_an_agent_that_does_not_know_who_counts_counts_in_an_outage() -> None:
    leases = of_store(up=False)
    assert leases.begin(origin(), NOW).origin.counting
    leases = of_store()
    lease = leases.begin(origin(), NOW)
    leases.lost()
    assert lease.origin.counting and leases.reads(lease, NOW)


def test_after_an_outage_those_that_counted_ask_first() -> None:
    for holder, first in (("agent", ["edge"]), (OTHER, [])):
        leases = of_store()
        leases.begin(origin(), NOW)
        leases.answered("edge", "", holder, NOW, NOW)
        leases.lost()
        leases.back(NOW)
        assert leases.wanted({"edge"}, NOW) == first
        assert leases.wanted({"edge"}, NOW + LIFE) == ["edge"]


def test_hits_counted_in_an_outage_are_forgotten_if_another_agent_has_counted_too() -> None:
    for before, holder, forgets in (
        ("agent", "agent", False),
        ("", "agent", False),
        (OTHER, OTHER, True),
        (OTHER, "agent", True),
    ):
        leases = of_store()
        lease = leases.begin(origin(), NOW)
        leases.answered("edge", "", "agent", NOW, NOW)
        leases.lost()
        leases.back(NOW)
        assert leases.answered("edge", before, holder, NOW, NOW) is forgets
        assert lease.origin.counting == (before != OTHER)
        assert not leases.answered("edge", before, holder, NOW, NOW), "once"


def test_hits_counted_in_an_outage_are_forgotten_also_if_the_session_has_ended() -> None:
    leases = of_store(up=False)
    leases.begin(origin(), NOW)
    leases.back(NOW)
    assert leases.wanted(set(), NOW) == ["edge"]
    assert leases.answered("edge", OTHER, "agent", NOW, NOW)
    assert leases.wanted(set(), NOW) == []
    assert leases.unwanted(set()) == ["edge"]


def test_leases_of_haproxies_without_a_session_are_given_back_once() -> None:
    leases = of_store()
    leases.begin(origin(), NOW)
    leases.answered("edge", "", "agent", NOW, NOW)
    assert leases.unwanted({"edge"}) == []
    assert leases.unwanted(()) == ["edge"]
    assert leases.unwanted(()) == []
    lease = leases.by_name["edge"]
    assert not leases.reads(leases.begin(lease.origin, NOW), NOW), "another may have it by now"


def test_a_session_of_the_same_name_keeps_the_lease() -> None:
    leases = of_store()
    lease = leases.begin(origin(), NOW)
    leases.answered("edge", "", "agent", NOW, NOW)
    assert leases.begin(lease.origin, LATER) is lease
    assert lease.origin.counting and leases.reads(lease, LATER)
