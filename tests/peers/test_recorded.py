"""Sessions recorded from HAProxy 2.6.12 and 3.4.0, read by a session of the agent.

Each has four requests of 127.0.0.1, one connection each: ``/a`` (200), ``/missing`` (404),
``/broken`` (500) and ``/a``, with the header ``X-API-Key: Gold``. The tables, all with an expiry of
one minute:

    rl_default   ipv6           http_req_cnt, http_req_rate(1s), http_err_cnt, http_fail_cnt,
                                bytes_in_cnt, bytes_out_cnt, conn_cur, gpc0
    rl_key       string len 64  http_req_cnt
    rl_bin       binary len 32  http_req_cnt, gpc(2), gpt(3)
    rl_int       integer        http_req_cnt, gpc_rate(2,1s)
    rl_ip4       ip             server_id, http_req_cnt
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.peers.constants import DataType as D
from ratelimit.peers.constants import KeyType
from ratelimit.peers.definition import Definition
from ratelimit.peers.session import Session
from tests.helpers.peers_wire import NOW, Recorder, Seen, Update, messages

FILES = sorted(Path(__file__).with_name("recorded").glob("*.hex"))

CLIENT = bytes(10) + b"\xff\xff\x7f\0\0\1"
SECOND = 1000  # milliseconds

TABLES = {
    "rl_default": (
        KeyType.IPV6,
        16,
        (
            D.GPC0,
            D.CONN_CUR,
            D.HTTP_REQ_CNT,
            D.HTTP_REQ_RATE,
            D.HTTP_ERR_CNT,
            D.BYTES_IN_CNT,
            D.BYTES_OUT_CNT,
            D.HTTP_FAIL_CNT,
        ),
        {D.HTTP_REQ_RATE: SECOND},
        {},
    ),
    "rl_key": (KeyType.STRING, 65, (D.HTTP_REQ_CNT,), {}, {}),
    "rl_bin": (KeyType.BINARY, 32, (D.HTTP_REQ_CNT, D.GPT, D.GPC), {}, {D.GPT: 3, D.GPC: 2}),
    "rl_int": (
        KeyType.INTEGER,
        4,
        (D.HTTP_REQ_CNT, D.GPC_RATE),
        {D.GPC_RATE: SECOND},
        {D.GPC_RATE: 2},
    ),
    "rl_ip4": (KeyType.IPV4, 4, (D.SERVER_ID, D.HTTP_REQ_CNT), {}, {}),
}


class Silent(Recorder):
    """Has nothing to teach."""

    def on_sync_wanted(self, session: Session) -> None:
        super().on_sync_wanted(session)
        session.finished()


def lines(path: Path, side: str) -> list[bytes]:
    return [bytes.fromhex(line[2:]) for line in path.read_text().splitlines() if line[0] == side]


def replay(data: list[bytes]) -> tuple[bytes, Seen]:
    listener = Silent()
    session = Session(listener, "agg", NOW)
    answers = b"".join(session.receive_data(part, NOW) for part in data)
    assert session.error is None
    assert session.synced and not session.closed and not session.in_message
    return answers, listener.seen


def of(updates: list[Update], table: str) -> list[Update]:
    return [update for update in updates if update.table == table]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found = request.param
    assert isinstance(found, Path)
    return found


def test_the_answers_are_those_of_the_recorded_peer_and_acknowledgements(path: Path) -> None:
    answers, _ = replay(lines(path, "<"))
    assert answers.startswith(b"200\n")
    others = [message for message in messages(answers[4:]) if message[:2] != b"\x0a\x84"]
    assert b"200\n" + b"".join(others) == b"".join(lines(path, ">"))


def test_every_definition_is_understood(path: Path) -> None:
    _, seen = replay(lines(path, "<"))
    assert not seen.refused
    for name, definition in seen.tables.items():
        key_type, size, types, periods, sizes = TABLES[name]
        assert definition == Definition(
            definition.id, name, key_type, size, types, periods, sizes, 60_000
        )
    assert sorted(seen.tables) == sorted(TABLES)


def test_every_update_is_counted_once(path: Path) -> None:
    _, seen = replay(lines(path, "<"))
    tracked = {
        "1": {"rl_default": CLIENT, "rl_key": b"gold"},
        "2": {"rl_ip4": CLIENT[12:], "rl_bin": hashlib.sha256(b"Gold").digest()},
        "3": {"rl_default": CLIENT, "rl_int": bytes.fromhex("b341471f")},
    }[path.stem[-1]]
    assert {update.table for update in seen.updates} == set(tracked)
    for update in seen.updates:
        assert update.expiry == -1 and update.synced
    for table, key in tracked.items():
        updates = of(seen.updates, table)
        assert {update.key for update in updates} == {key}
        at = TABLES[table][2].index(D.HTTP_REQ_CNT)
        counts = [update.values[at] for update in updates]
        assert counts == ([1, 1, 2, 2, 3, 3, 4, 4] if table == "rl_default" else [1, 2, 3, 4])
        ids = [update.id for update in updates]
        assert ids == sorted(set(ids)), "numbers only grow, and some jump"


def test_the_values_of_the_last_update_of_the_address(path: Path) -> None:
    _, seen = replay(lines(path, "<"))
    updates = of(seen.updates, "rl_default")
    if path.stem.endswith("-2"):
        assert not updates
        return
    gpc0, conn_cur, requests, age, current, previous, errors, bytes_in, bytes_out, failures = (
        updates[-1].values
    )
    assert (gpc0, conn_cur, requests, current, previous) == (0, 0, 4, 4, 0)
    assert (errors, failures) == (1, 1)
    assert (bytes_in, bytes_out) == (395, 2490)
    assert age < SECOND
    assert [update.values[1] for update in updates] == [1, 0] * 4, "requests that are open"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@given(data=st.data())
def test_a_session_may_be_split_anywhere(path: Path, data: st.DataObject) -> None:
    stream = b"".join(lines(path, "<"))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    edges = [0, *sorted(cuts), len(stream)]
    _, whole = replay([stream])
    _, split = replay([stream[a:b] for a, b in itertools.pairwise(edges)])
    assert split.updates == whole.updates
    assert split.tables == whole.tables


def test_a_byte_at_a_time(path: Path) -> None:
    stream = b"".join(lines(path, "<"))
    _, whole = replay([stream])
    _, split = replay([stream[i : i + 1] for i in range(len(stream))])
    assert split.updates == whole.updates
