"""What HAProxies tell of their tables becomes hits: none twice, none invented."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit.limiter.limiter import Sharing
from ratelimit.model import Limit
from ratelimit.notation import DAY, SECOND
from ratelimit.peers.constants import DataType, KeyType
from tests.helpers.asking import START
from tests.helpers.sticktable import CLIENT, EXPIRE, STORED, Fed, Line, ipv6, table

WIDE = Limit(rate=1_000_000, window=3600 * SECOND)


def test_the_increments_of_all_haproxies_are_hits_of_one_client() -> None:
    fed = Fed(WIDE)
    lines = [Line(fed, name=name) for name in ("a", "b", "c")]
    for n in range(1, 6):
        for line in lines:
            line.tell(n, req=n)
    assert fed.hits() == 15
    assert fed.limiter.engine.rules[0].allowed == 15


def test_a_told_counter_that_did_not_change_is_no_hit() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(1, req=7, conn_cur=1)
    line.tell(2, req=7, conn_cur=0)
    assert fed.hits() == 7


def test_what_was_taught_and_never_seen_is_a_baseline() -> None:
    fed = Fed(WIDE)
    line = Line(fed, synced=False)
    line.tell(1, req=5000)
    line.synced()
    assert fed.hits() == 0
    line.tell(2, req=5003)
    assert fed.hits() == 3


def test_what_is_new_after_the_teaching_counts_whole() -> None:
    fed = Fed(WIDE)
    Line(fed).tell(1, req=12)
    assert fed.hits() == 12


def test_after_a_partial_teaching_an_unknown_entry_may_be_old() -> None:
    fed = Fed(WIDE)
    line = Line(fed, synced=False)
    line.synced(whole=False)
    line.tell(1, req=5000, rates=(100, 2, 0))
    assert fed.hits() == 2, "its rate shows so many"
    line.tell(2, req=5001)
    assert fed.hits() == 3


def test_the_rate_of_a_taught_entry_seeds_a_window() -> None:
    fed = Fed(Limit(rate=1000, window=SECOND, block=()))
    line = Line(fed, synced=False)
    line.tell(1, req=5000, rates=(500, 40, 60))
    # All 40 of the last half second, and half of the 60 of the second before.
    assert fed.hits() == pytest.approx(70, abs=3)
    assert fed.limiter.engine.rules[0].allowed == 0, "the former agent has counted these verdicts"


def test_the_rate_of_an_idle_entry_is_as_old_as_the_entry() -> None:
    fed = Fed(Limit(rate=1000, window=SECOND))
    line = Line(fed, synced=False)
    line.tell(100, req=5000, rates=(10_000, 40, 60))
    assert fed.hits() == 0


def test_the_rate_of_a_taught_entry_does_not_count_if_other_nodes_may_have_its_hits() -> None:
    fed = Fed(Limit(rate=1000, window=SECOND), sharing=Sharing.HOT)
    fed.limiter.divide(2, True)
    line = Line(fed, synced=False)
    line.tell(1, req=5000, rates=(500, 40, 60))
    assert fed.hits() == 0


def test_an_entry_of_a_former_process_that_the_agent_has_never_heard_of_is_not_new() -> None:
    fed = Fed(Limit(rate=10_000, window=SECOND))
    line = Line(fed)
    line.tell(1, "192.0.2.1", req=1000, rates=(10, 2, 0))
    assert fed.hits("192.0.2.1") == 2
    line.tell(1, "192.0.2.2", req=3, rates=(10, 1, 2))
    assert fed.hits("192.0.2.2") == 3
    # After an hour no former process runs.
    line.tell(3601, "192.0.2.3", req=1000, rates=(10, 2, 0))
    assert fed.hits("192.0.2.3") == 1000


def test_of_two_former_processes_neither_adds_its_counters() -> None:
    size = Limit("size", table="rl_default", counts="bytes_in", rate=100_000, window=DAY)
    fed = Fed(Limit(rate=100_000, window=DAY), size)
    line = Line(fed)
    line.tell(1, req=3, rates=(0, 3, 0), bytes_in_cnt=30)
    line.tell(2, req=5, rates=(0, 2, 3), bytes_in_cnt=50)
    line.tell(3, req=1, rates=(10, 1, 0), bytes_in_cnt=10)  # of the first one
    line.tell(4, req=4, rates=(10, 1, 0), bytes_in_cnt=500)  # of the second one
    assert (fed.hits(), fed.hits(limit=1)) == (5, 50)
    line.tell(5, req=6, rates=(0, 2, 1), bytes_in_cnt=520)
    assert fed.hits() == 6, "beyond what was known before"


def test_a_client_over_its_limit_is_refused_again_after_a_restart_of_the_agent() -> None:
    fed = Fed(Limit(rate=50, window=SECOND, block=(10,)))
    line = Line(fed, synced=False)
    line.tell(1, req=5000, rates=(900, 90, 90))
    assert fed.limiter.blocks == 1


def test_after_an_interruption_the_increment_counts_once() -> None:
    fed = Fed(WIDE)
    Line(fed).tell(1, req=10)
    line = Line(fed, synced=False)
    line.tell(31, req=25)
    line.synced()
    line.tell(32, req=26)
    assert fed.hits() == 26


def test_a_burst_after_a_pause_counts_whole() -> None:
    fed = Fed(Limit(rate=100, window=SECOND, block=()))
    line = Line(fed)
    line.tell(1, req=1)
    # HAProxy served 150 requests in one turn and told them at once; all else had been read.
    line.tell(31, since=30.99, req=151)
    assert fed.hits() == 150
    assert len(fed.verdicts()) == 1


def test_what_the_agent_read_late_happened_while_it_did_not_read() -> None:
    fed = Fed(Limit(rate=100, window=SECOND, block=(10,)))
    line = Line(fed)
    line.tell(1, req=1)
    line.tell(6, since=1, req=401)
    assert fed.hits() == pytest.approx(80, abs=2)
    assert fed.limiter.blocks == 0, "eighty requests a second are within the limit"


def test_a_counter_that_fell_was_made_again() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(3599, req=10)
    line.tell(3600, req=3)
    assert fed.hits() == 13


def test_in_the_first_hour_a_counter_that_fell_may_be_overwritten() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(3598, req=10)
    line.tell(3599, req=3)
    line.tell(3600, req=4)
    assert fed.hits() == 11


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_counter_that_passed_32_bits_invents_no_hits(after: int) -> None:
    fed = Fed(WIDE)
    line = Line(fed, synced=False)
    line.tell(3601, req=(1 << 32) - 3)
    line.synced()
    line.tell(3602, req=after)
    assert fed.hits() == after
    line.tell(3603, req=after + 2)
    assert fed.hits() == after + 2


def test_bytes_have_64_bits() -> None:
    fed = Fed(replace(WIDE, counts="bytes_in"))
    line = Line(fed, synced=False)
    line.tell(1, bytes_in_cnt=(1 << 32) - 3)
    line.synced()
    line.tell(2, bytes_in_cnt=(1 << 32) + 7)
    assert fed.hits() == 10


def test_an_entry_that_was_not_taught_again_is_gone() -> None:
    fed = Fed(WIDE)
    Line(fed).tell(1, req=10)
    fed.counts.at(START + 20 * SECOND, 0)
    line = Line(fed, synced=False)
    line.synced()
    line.tell(21, since=20, req=12)
    assert fed.hits() == 22, "a new entry, with twelve hits"


def test_an_expired_entry_is_new() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(3600, req=10)
    line.tell(3600 + EXPIRE + 4, req=12)
    assert fed.hits() == 10 + 2, "HAProxy may have told late"
    line.tell(3600 + 2 * EXPIRE + 10, req=30)
    assert fed.hits() == 12 + 30


def test_in_the_first_hour_an_entry_may_be_kept_by_the_former_process() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(1, req=10)
    line.tell(3 * EXPIRE, req=12)
    assert fed.hits() == 12


def test_an_entry_with_open_requests_does_not_expire() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(1, req=1, conn_cur=1)
    line.tell(2000, since=1999, req=1, conn_cur=0)
    assert fed.hits() == 1


def test_after_a_reload_an_older_count_of_the_former_process_adds_nothing() -> None:
    fed = Fed(WIDE)
    Line(fed, pid=1).tell(1, req=100)
    line = Line(fed, pid=2, synced=False)
    line.tell(2, req=100)
    line.synced()
    line.tell(3, req=110)
    # The former process ended a request and told its successor, whose count it has overwritten.
    line.tell(4, req=102)
    line.tell(5, req=103)
    assert fed.hits() == 111


def test_a_former_process_that_tells_a_larger_count_again_adds_only_what_is_new() -> None:
    fed = Fed(Limit(rate=1_000_000), replace(WIDE, name="e", table="rl_default", counts="errors"))
    line = Line(fed, synced=False)
    line.tell(1, req=5000, http_err_cnt=500)
    line.synced()
    # The client's entry has expired here, while the former process still serves a long request.
    line.tell(200, req=1, http_err_cnt=1)
    line.tell(201, req=2, http_err_cnt=1)
    line.tell(201, req=5001, http_err_cnt=501)
    line.tell(201, req=5003, http_err_cnt=502)
    assert (fed.hits(limit=0), fed.hits(limit=1)) == (4, 1)


def test_after_a_restart_everything_is_new() -> None:
    fed = Fed(WIDE)
    Line(fed, pid=1).tell(1, req=5)
    fed.counts.at(START + 3 * SECOND, 0)
    line = Line(fed, pid=2)
    line.tell(4, req=8)
    assert fed.hits() == 13


def test_an_entry_that_was_lost_for_want_of_room_is_a_baseline_again() -> None:
    fed = Fed(WIDE, capacity=8)
    line = Line(fed)
    for n in range(20):
        line.tell(1 + n / 10, f"192.0.2.{n}", req=1000)
    assert fed.hits("192.0.2.0") == 1000
    before = fed.hits("192.0.2.1")
    line.tell(10, "192.0.2.1", req=1001, rates=(10, 1, 0))
    assert fed.hits("192.0.2.1") == before + 1, "its rate shows one hit"


def test_an_entry_that_was_lost_may_be_told_late() -> None:
    fed = Fed(WIDE, capacity=8)
    line = Line(fed)
    for n in range(9):
        line.tell(n / 1000, f"192.0.2.{n}", req=1000)
    # Its last request was within the time to expire, and was told a moment after it.
    line.tell(EXPIRE + 1, "192.0.2.0", rates=(0, 0, 0), req=1001)
    assert fed.hits("192.0.2.0") == 1000
    line.tell(EXPIRE + 2, "192.0.2.0", req=1004)
    assert fed.hits("192.0.2.0") == 1003


def test_entries_with_open_requests_are_lost_last() -> None:
    fed = Fed(WIDE, capacity=8)
    line = Line(fed)
    line.tell(0, "192.0.2.200", req=1, conn_cur=1)
    for n in range(1, 31):
        line.tell(n, f"192.0.2.{n}", req=1)
    line.tell(31, "192.0.2.200", req=1)
    assert fed.hits("192.0.2.200") == 1


def test_if_all_entries_have_open_requests_a_lost_one_comes_back_at_any_time() -> None:
    fed = Fed(WIDE, capacity=8)
    line = Line(fed)
    for n in range(9):
        line.tell(n, f"192.0.2.{n}", req=1, conn_cur=1)
    # The first is lost at 8 s, more than the time to expire after its last update at 0 s.
    fed.counts.baselines.expire = 5_000
    line.tell(8.5, "192.0.2.0", rates=(0, 0, 0), req=1)
    assert fed.hits("192.0.2.0") == 1


def test_each_session_is_taught_before_anything_is_new() -> None:
    fed = Fed(WIDE)
    Line(fed).tell(1, "192.0.2.9", req=1)
    line = Line(fed, synced=False)
    line.tell(2, req=5000)
    line.synced()
    assert fed.hits() == 0


def test_a_session_that_was_replaced_counts_nothing() -> None:
    fed = Fed(WIDE)
    older = Line(fed)
    newer = Line(fed)
    older.tell(1, req=5)
    assert fed.hits() == 0
    newer.tell(2, req=7)
    assert fed.hits() == 7


def test_only_one_agent_counts_and_the_other_takes_over_without_counting_twice() -> None:
    one, other = Fed(WIDE), Fed(WIDE)
    first, second = Line(one), Line(other)
    second.origin.counting = False
    for n in range(1, 11):
        for line in (first, second):
            line.tell(n, req=n)
    assert (one.hits(), other.hits()) == (10, 0)
    first.origin.counting, second.origin.counting = False, True
    for n in range(11, 16):
        for line in (first, second):
            line.tell(n, req=n)
    assert (one.hits(), other.hits()) == (10, 5)


@pytest.mark.parametrize(
    ("counts", "counter"),
    [
        ("errors", "http_err_cnt"),
        ("failures", "http_fail_cnt"),
        ("bytes_in", "bytes_in_cnt"),
        ("bytes_out", "bytes_out_cnt"),
    ],
)
def test_a_limit_counts_what_it_says(counts: str, counter: str) -> None:
    limit = Limit(name="probe", table="rl_default", counts=counts, rate=20)  # type: ignore[arg-type]
    fed = Fed(Limit(block=()), limit)
    line = Line(fed)
    line.tell(1, CLIENT, None, (0, 30, 0), **{"req": 30, counter: 5})
    assert (fed.hits(limit=0), fed.hits(limit=1)) == (30, 5)
    line.tell(1.1, CLIENT, None, (0, 0, 0), **{"req": 60, counter: 21})
    assert fed.limiter.blocks == 1
    assert fed.limiter.news[0].limit == "probe"


def test_a_client_that_exceeds_its_limit_is_blocked_as_by_spoe() -> None:
    fed = Fed(Limit(rate=10, block=(10, 60)))
    line = Line(fed)
    for n in range(10):
        line.tell(n / 100, req=n + 1)
    assert fed.limiter.blocks == 0
    assert len(fed.verdicts()) == 1, "the next one would be refused"
    line.tell(0.2, req=11, gpc0=1)
    assert fed.limiter.blocks == 1
    assert fed.limiter.news[0].key == CLIENT


def test_refusals_of_haproxy_are_verdicts_and_count_like_all_hits() -> None:
    fed = Fed(Limit(rate=10, block=()))
    line = Line(fed)
    line.tell(1, req=10)
    line.tell(1.1, req=25, gpc0=15)
    assert fed.hits() == 25
    rule = fed.limiter.engine.rules[0]
    assert (rule.allowed, rule.throttled) == (10, 15)


def test_refusals_of_haproxy_do_not_count_if_the_limit_says_so() -> None:
    fed = Fed(Limit(rate=10, block=(), count_refused=False))
    line = Line(fed)
    line.tell(1, req=10)
    line.tell(1.1, req=25, gpc0=15)
    assert fed.hits() == 10
    rule = fed.limiter.engine.rules[0]
    assert (rule.allowed, rule.throttled) == (10, 15)


def test_a_shadow_limit_counts_and_tells_what_it_would_do() -> None:
    fed = Fed(Limit(rate=10, block=(10,), shadow=True))
    line = Line(fed)
    line.tell(1, req=10)
    assert len(fed.verdicts()) == 1
    line.tell(1.1, req=11)
    assert fed.limiter.blocks == 1


def test_two_limits_take_from_one_table() -> None:
    fed = Fed(
        Limit(rate=5, block=()), Limit(name="slow", table="rl_default", rate=8, window=60 * SECOND)
    )
    line = Line(fed)
    line.tell(1, req=6)
    assert [one.limit for one in fed.verdicts()] == ["default"]
    line.tell(10, req=9)
    assert [fed.hits(limit=n) for n in (0, 1)] == [3, 0]
    assert fed.limiter.news[0].limit == "slow"


def test_requests_open_at_a_time_are_limited_over_all_haproxies() -> None:
    fed = Fed(Limit(rate=1000, open=5))
    one, two = Line(fed, name="a"), Line(fed, name="b")
    one.tell(1, req=3, conn_cur=3)
    two.tell(1.1, req=1, conn_cur=1)
    assert fed.ends() == []
    two.tell(1.2, req=2, conn_cur=2)
    assert fed.ends() == [pytest.approx(6.2)]
    two.tell(1.3, req=3, conn_cur=3)
    assert fed.ends() == [], "already told"
    one.tell(1.4, req=3, conn_cur=2)
    two.tell(1.4, req=3, conn_cur=2)
    assert fed.ends() == [0.0], "lifted"


def test_a_client_over_its_rate_stays_refused_when_its_requests_end() -> None:
    fed = Fed(Limit(rate=5, block=(), open=5))
    line = Line(fed)
    line.tell(1, req=5, conn_cur=5)
    assert [end > 2 for end in fed.ends()][-1]
    line.tell(1.1, req=5, conn_cur=0)
    assert fed.ends() == [pytest.approx(2, abs=0.1)]


def test_open_requests_of_a_disconnected_haproxy_do_not_count() -> None:
    fed = Fed(Limit(rate=1000, open=5))
    one, two = Line(fed, name="a"), Line(fed, name="b")
    one.tell(1, req=4, conn_cur=4)
    fed.counts.disconnect(one.origin, one.number)
    two.tell(2, req=1, conn_cur=1)
    assert fed.ends() == []


def test_the_end_of_a_replaced_session_does_not_end_its_successor() -> None:
    fed = Fed()
    older, newer = Line(fed), Line(fed)
    fed.counts.disconnect(older.origin, older.number)
    assert newer.origin.connected


def test_the_table_of_no_limit_is_no_source() -> None:
    assert Line(Fed(), table(name="rl_other")).source is None


@pytest.mark.parametrize(
    ("limit", "definition", "told"),
    [
        (Limit(), table(key_type=KeyType.INTEGER, key_size=4), "type integer"),
        (Limit(), table(key_type=KeyType.STRING, key_size=65), "type string"),
        (Limit(), table(key_type=KeyType.BINARY, key_size=33), "33 bytes"),
        (Limit(), table(DataType.GPC0), "limits.default needs http_req_cnt"),
        (Limit(counts="errors"), table(DataType.HTTP_REQ_CNT), "limits.default needs http_err_cnt"),
        (Limit(open=5), table(DataType.HTTP_REQ_CNT), "limits.default needs conn_cur"),
        (
            Limit(counts="errors"),
            table(DataType.HTTP_ERR_CNT),
            "limits.default needs http_req_cnt",
        ),
        (Limit(count_refused=False), table(DataType.HTTP_REQ_CNT), "limits.default needs gpc0"),
    ],
)
def test_a_table_that_can_not_be_a_limit_is_an_error(
    limit: Limit, definition: object, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Line(Fed(limit), definition)  # type: ignore[arg-type]


def test_a_key_beyond_the_prefix_of_a_limit_is_not_counted() -> None:
    fed = Fed(Limit(ipv6_prefix=64))
    line = Line(fed)
    line.tell(1, "2001:db8::1", req=5)
    assert line.source is not None
    assert line.source.wrong
    assert fed.hits("2001:db8::1") == 0


def test_limits_after_a_reload_are_fed_by_the_same_tables() -> None:
    fed = Fed(WIDE)
    line = Line(fed)
    line.tell(1, req=5)
    fed.limiter.engine.reload([replace(WIDE, window=60 * SECOND)])
    fed.counts.reload()
    line.tell(2, req=7)
    assert fed.hits() == 2


def test_a_table_without_rates_or_open_requests_is_enough() -> None:
    fed = Fed(WIDE)
    line = Line(fed, table(DataType.HTTP_REQ_CNT), synced=False)
    line.tell(1, req=100)
    line.synced()
    line.tell(2, req=105)
    line.tell(500, since=499, req=106)
    assert fed.hits() == 6, "without conn_cur, an idle entry may be in use"


def test_other_tables_are_left_to_the_owner_of_the_session() -> None:
    fed = Fed()
    line = Line(fed)
    line.reader.owner = "verdicts"
    line.tell(1, ipv6(CLIENT), req=5)
    assert fed.hits() == 0


def test_only_the_first_request_of_an_entry_shows_haproxys_clock() -> None:
    fed = Fed(WIDE)
    line = Line(fed, table(*STORED, DataType.GPT, gpt=1))

    def shown(now: float, client: str, **counters: int) -> int | None:
        fed.counts.clocked = False
        line.tell(now, client, None, None, **counters)
        return fed.counts.clock if fed.counts.clocked else None

    # Another thread may tell an entry before its request has set the tag.
    assert shown(1, "192.0.2.1", req=1) is None
    assert shown(1.002, "192.0.2.1", req=1, gpt=1000) == 1000
    # The end of the request tells the entry again.
    assert shown(31, "192.0.2.1", req=1, gpt=1000, bytes_out_cnt=9) is None
    assert shown(32, "192.0.2.1", req=2, gpt=1000) is None
    # HAProxy has purged the entry.
    assert shown(500, "192.0.2.1", req=1, gpt=500_000) == 500_000
    assert shown(500, "192.0.2.2", req=1, gpt=500_001) == 500_001


def test_haproxys_own_refusals_are_no_errors() -> None:
    errors = Limit("errors", table="rl_default", counts="errors", rate=1000, window=DAY)
    fed = Fed(errors)
    line = Line(fed)
    line.tell(1, req=3, http_err_cnt=2)
    line.tell(2, req=13, http_err_cnt=12, gpc0=9)
    assert fed.hits() == 3
