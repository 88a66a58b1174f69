"""``show peers`` as HAProxy 2.6 and 3.4 answer it."""

from __future__ import annotations

import pytest

from ratelimit.haproxy.peers import Peer, Section, read_peers

HEAD = (
    "0x55ef: [28/Nov/2026:10:49:50] id={} disabled=0 flags=0x6213 resync_timeout=2s task_calls=5\n"
)

TABLES = """\
        reconnect=2s heartbeat=2s confirm=0 tx_hbt=0 rx_hbt=0 no_hbt=0 new_conn=1 proto_err=0 coll=0
        flags=0x20000000 appctx:0x7f1f st0=7 st1=0 task_calls=13 state=EST
        remote_table:0x55ef id=ratelimit/rlc_limits local_id=1 remote_id=1
        last_local_table:0x55ef id=ratelimit/rl_default local_id=5 remote_id=0
        shared tables:
          0x55ef local_id=5 remote_id={} flags=0x0 remote_data=0x0
              last_acked=0 last_pushed=7 last_get=0 teaching_origin=0 update=7
              table:0x55ef id=ratelimit/rl_default update=7 localupdate=7 commitupdate=7 refcnt=1
        Dictionary cache not dumped (use "show peers dict")
          0x55ef local_id=1 remote_id=1 flags=0x0 remote_data=0x400000
              last_acked=8 last_pushed=0 last_get=8 teaching_origin=0 update=0
              table:0x55ef id=rlc_limits update=2 localupdate=0 commitupdate=0 refcnt=1
        Dictionary cache not dumped (use "show peers dict")
"""

PEER = {
    "2.6": "  0x55ef: id={}({},{}) addr={} last_status={} last_hdshk=2s\n",
    "3.4": "  0x55ef: id={}({},{}) addr={} app_state=RUNNING learn_state=NOTASKED "
    "last_status={} last_hdshk=2s\n",
}


@pytest.mark.parametrize("version", PEER)
def test_sections_peers_and_the_tables_that_each_has_announced(version: str) -> None:
    line = PEER[version].format
    answer = (
        HEAD.format("ratelimit")
        + line("agent", "remote", "active", "unix:0", "ESTA")
        + TABLES.format(0)
        + line("other", "remote", "active", "127.0.0.1:9194", "ESTA")
        + TABLES.format(3)
        + line("edge", "local", "inactive", "127.0.0.1:9193", "NONE")
        + "\n"
        + HEAD.format("mine")
        + line("edge", "local", "inactive", "127.0.0.1:10000", "NONE")
        + "\n"
    )
    first, second = read_peers(answer.splitlines())
    assert first == Section(
        "ratelimit",
        (
            Peer("agent", False, True, "unix:0", "ESTA", ("rlc_limits",)),
            Peer("other", False, True, "127.0.0.1:9194", "ESTA", ("rl_default", "rlc_limits")),
            Peer("edge", True, False, "127.0.0.1:9193", "NONE"),
        ),
        frozenset({"rl_default", "rlc_limits"}),
    )
    assert (first.local, [peer.name for peer in first.remote]) == ("edge", ["agent", "other"])
    assert second == Section("mine", (Peer("edge", True, False, "127.0.0.1:10000", "NONE"),))


@pytest.mark.parametrize(
    ("active", "status", "connected"),
    [(True, "ESTA", True), (True, "CONN", False), (False, "ESTA", False)],
)
def test_a_peer_is_connected_while_it_has_a_session(
    active: bool, status: str, connected: bool
) -> None:
    assert Peer("agent", False, active, "", status).connected == connected


@pytest.mark.parametrize("answer", ["", "\n", "Permission denied\n", "Unknown command\n"])
def test_no_peers(answer: str) -> None:
    assert read_peers(answer.splitlines()) == ()
