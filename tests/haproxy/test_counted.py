"""Entries of HAProxy's own tables: the commands that show them, and the answers."""

from __future__ import annotations

from ratelimit.haproxy.counted import Counted, read_counted, show_clients
from ratelimit.haproxy.stats import Table
from ratelimit.limiter.keys import parse_network

ANSWER = """\
# table: ratelimit/rl_default, type: ipv6, size:1048576, used:1
0x7f1f: key=::ffff:192.0.2.7 use=0 exp=119491 gpc0=2 http_req_cnt=30 http_req_rate(1000)=3 gpt0=566
# table: ratelimit/rlv_default, type: ipv6, size:1048576, used:1
0x7f1f: key=64:ff9b::c000:207 use=0 exp=9 shard=0 gpt0=1795862992 gpt1=80 gpt2=2
"""


def test_a_client_is_shown_under_each_key_that_it_may_have() -> None:
    tables = [
        Table("ratelimit/rl_default", "ipv6", 100, 1),
        Table("rl_login", "ip", 100, 1),
        Table("ratelimit/rl_api_key", "binary", 100, 1),
        Table("t_block", "ipv6", 100, 1),
    ]
    clients = [parse_network(one) for one in ("192.0.2.7", "198.51.100.0/24", "2001:db8::/64")]
    wanted = dict.fromkeys(("rl_default", "rl_login", "rl_api_key", "rl_other"), clients)
    assert list(show_clients(tables, wanted)) == [
        "show table ratelimit/rl_default key ::ffff:192.0.2.7",
        "show table ratelimit/rl_default key 64:ff9b::c000:207",
        "show table ratelimit/rl_default key ::ffff:198.51.100.0",
        "show table ratelimit/rl_default key 2001:db8::",
        "show table rl_login key 192.0.2.7",
        "show table rl_login key 198.51.100.0",
    ]


def test_an_entry_has_its_table_its_values_and_the_periods_of_rates() -> None:
    values = {"gpc0": 2, "http_req_cnt": 30, "http_req_rate": 3, "gpt0": 566}
    verdict = {"gpt0": 1795862992, "gpt1": 80, "gpt2": 2}
    assert list(read_counted("/s", ANSWER.splitlines())) == [
        Counted("/s", "rl_default", "192.0.2.7", 119491, values, {"http_req_rate": 1000}),
        Counted("/s", "rlv_default", "64:ff9b::c000:207", 9, verdict, {}),
    ]
    assert list(read_counted("/s", ["No such table", ""])) == []
