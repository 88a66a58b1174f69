"""The checks of peers mode, on facts as HAProxy and the agent tell them; and one real HAProxy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit.doctor.findings import Check, State
from ratelimit.doctor.gather import (
    AgentStatus,
    Counts,
    EdgeTable,
    Facts,
    Moment,
    PeerStatus,
    PeerTable,
    Setup,
)
from ratelimit.doctor.peers import judge_peers
from ratelimit.haproxy.peers import Peer, Section
from ratelimit.haproxy.stats import Backend, Report, Table
from ratelimit.model import Limit
from ratelimit.notation import SECOND
from tests.helpers.plant import Plant, replaced, run
from tests.helpers.world import PEERS_FILE, until

LIMIT = Limit()
UNKNOWN = Limit("unknown", block=())
SOCKET = "/run/haproxy.sock"


def table(name: str, period: float = 0, expire: float = 3600, **more: object) -> PeerTable:
    values = {"type": "ipv6", "key_size": 16, "expire": expire, "period": period} | more
    return PeerTable(name=name, **values)


TABLES = (
    table("rl_default", 1, 120),
    table("rl_unknown", 1, 120),
    table("rlv_default"),
    table("rlv_unknown"),
    table("rlc_limits", type="string", key_size=65),
    table("rlc_caps", type="string", key_size=65, expire=3),
)


def peer(*tables: PeerTable, **more: object) -> PeerStatus:
    values = {
        "name": "edge",
        "address": "unix",
        "taught": True,
        "updates": 7,
        "clock_offset": 0.01,
        "refused": {},
        "unused": [],
        "counting": True,
        "counted_by": "agent",
    } | more
    return PeerStatus(tables=list(tables or TABLES), **values)


def without(name: str) -> tuple[PeerTable, ...]:
    return tuple(one for one in TABLES if one.name != name)


def changed(name: str, **more: object) -> tuple[PeerTable, ...]:
    return tuple(one.model_copy(update=more) if one.name == name else one for one in TABLES)


NAMES = frozenset(one.name for one in TABLES)
LOCAL = Peer("edge", True, False, "127.0.0.1:9193", "NONE")
AGENT = Peer("agent", False, True, "127.0.0.1:9192", "ESTA", ("rlv_default", "rlc_limits"))
SECTION = Section("ratelimit", (LOCAL, AGENT), NAMES)
REPORT = Report(SOCKET, tables=tuple(Table(f"ratelimit/{name}", "", 100, 1) for name in NAMES))


def checks(
    *peers: PeerStatus,
    limits: tuple[Limit, ...] = (LIMIT, UNKNOWN),
    sections: tuple[Section, ...] = (SECTION,),
    reports: tuple[Report, ...] = (REPORT,),
    setup: Setup = Setup(("unix:///peers.sock",), "agent"),  # noqa: B008 - frozen
    asked: int = 0,
    connected: bool = True,
    probe: str = "",
    heard: int = 0,
) -> dict[str, Check]:
    """Return the checks by subject, of an agent with these HAProxies as its peers."""
    status = AgentStatus(
        version="",
        node="",
        checks=10 + heard,
        limits=[Counts(name="default", allowed=10, asked=asked)],
        peers=list(peers or (peer(),)) if connected else [],
    )
    now = Moment(reports, (0.0,) * len(reports), status, "")
    facts = Facts(
        spop=(),
        setup=setup,
        api="",
        before=replace(now, status=status.model_copy(update={"checks": 10})),
        after=now,
        edges=(EdgeTable(),) * len(reports),
        sections=(sections,) * len(reports),
        probe=probe,
    )
    found = list(judge_peers(facts, limits))
    assert len({one.subject for one in found}) == len(found)
    assert all(one.finding for one in found)
    assert all(one.fix for one in found if one.state is State.BROKEN)
    return {one.subject: one for one in found}


HAPROXY = f"haproxy {SOCKET}"
CONNECTION = f"{HAPROXY}: peer agent"


def test_a_sound_installation() -> None:
    found = checks()
    assert {subject: one.state for subject, one in found.items()} == {
        "peer edge": State.OK,
        CONNECTION: State.OK,
    }
    assert found[CONNECTION].finding == "connected to agent as edge, 7 updates since it connected"


def test_no_haproxy_is_connected() -> None:
    check = checks(connected=False, reports=())["peers"]
    assert check.state is State.BROKEN and "unix:///peers.sock" in check.finding
    assert "RATELIMIT_PEERS" in check.fix and "the name agent" in check.fix
    assert checks(connected=False, reports=(), setup=Setup()) == {}, "no peers are configured"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("NAME", "`[agent] peer_name` of this agent to agent"),
        ("UNKN", "add edge to `[agent] peers_allowed`"),
        ("RETR", "its own `localpeer`"),
        ("PROT", "RATELIMIT_PEERS"),
        ("VERS", "RATELIMIT_PEERS"),
        ("CONN", "check that the agent runs"),
        ("NONE", "check that the agent runs"),
    ],
)
def test_a_peer_that_is_not_connected(status: str, words: str) -> None:
    apart = replace(AGENT, active=False, status=status)
    check = checks(sections=(replace(SECTION, peers=(LOCAL, apart)),))[CONNECTION]
    assert check.state is State.BROKEN
    assert check.finding.startswith("HAProxy is not connected to its peer agent")
    assert words in check.fix


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        ((LOCAL, replace(AGENT, name="one")), "no peer with the agent's name agent; it has one"),
        ((LOCAL,), "no peer with the agent's name agent; it has no agent"),
    ],
)
def test_the_agent_has_another_name(peers: tuple[Peer, ...], said: str) -> None:
    check = checks(sections=(replace(SECTION, peers=peers),))[f"{HAPROXY}: agents"]
    assert check.state is State.BROKEN and said in check.finding
    assert "`[agent] peer_name`" in check.fix


def test_haproxy_is_connected_to_another_agent() -> None:
    check = checks(peer(name="other"))[CONNECTION]
    assert check.state is State.BROKEN and "that is not this one" in check.finding


@pytest.mark.parametrize("known", ["by what it tells", "by the agent", "by another socket"])
def test_a_second_haproxy_in_the_section(known: str) -> None:
    other = Peer("edge-2", False, True, "127.0.0.1:9194", "ESTA")
    peers, sections = [peer()], [SECTION]
    if known == "by what it tells":
        other = replace(other, tells=("rl_default",))
    elif known == "by the agent":
        peers.append(peer(name="edge-2"))
    else:
        sections.append(Section("mine", (replace(LOCAL, name="edge-2"),)))
    sections[0] = replace(SECTION, peers=(LOCAL, AGENT, other))
    check = checks(*peers, sections=tuple(sections))[f"{HAPROXY}: peers"]
    assert check.state is State.BROKEN
    assert "contains another HAProxy, edge-2: each overwrites the counts" in check.finding
    assert "leave only this HAProxy and the agents" in check.fix


@pytest.mark.parametrize("alone", [True, False])
def test_two_agents_that_share_nothing(alone: bool) -> None:
    second = Peer("agent2", False, True, "127.0.0.1:9292", "ESTA", ("rlv_default",))
    made = replace(SECTION, peers=(LOCAL, AGENT, second))
    found = checks(sections=(made,), setup=Setup(("tcp://x:1",), "agent", (), alone))
    if alone:
        check = found[f"{HAPROXY}: agents"]
        assert check.state is State.UNSURE
        assert "2 agents (agent, agent2)" in check.finding and "memory://" in check.finding
        assert "redis://" in check.fix
    else:
        assert f"{HAPROXY}: agents" not in found


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("rl_default", "does not count"),
        ("rlv_default", "it refuses no client because of limits.default"),
        ("rlc_limits", "neither the limits nor"),
        ("rlc_caps", "refuses clients within their limit"),
    ],
)
def test_a_table_that_is_missing(name: str, effect: str) -> None:
    found = checks(peer(*without(name)))
    check = found[f"peer edge: table {name}"]
    assert check.state is State.BROKEN and effect in check.finding
    assert "peers.cfg" in check.fix
    assert "peer edge" not in found, "nothing is ok"
    untaught = checks(peer(*without(name), taught=False))
    assert f"peer edge: table {name}" not in untaught, "not all tables are announced yet"
    assert untaught["peer edge"].state is State.UNSURE


def test_a_table_that_is_missing_where_haproxy_asks() -> None:
    found = checks(peer(*without("rl_default")), asked=5, reports=())
    assert "peer edge: table rl_default" not in found


def test_a_limit_that_nothing_counts() -> None:
    check = checks(limits=(LIMIT, UNKNOWN, Limit("login")))["limit login"]
    assert check.state is State.UNSURE and "the table rl_login" in check.finding
    assert "RATELIMIT_LOGIN_PATH" in check.fix
    shared = Limit("errors", table="rl_default", counts="errors")
    assert "limit errors" not in checks(limits=(LIMIT, UNKNOWN, shared))


def test_a_table_that_can_not_be_used() -> None:
    why = "its keys have bits beyond the limit's prefix"
    check = checks(peer(refused={"rl_default": why}))["peer edge: table rl_default"]
    assert check.state is State.BROKEN and why in check.finding and check.fix


def test_a_table_of_no_limit() -> None:
    check = checks(peer(unused=["rl_login_cross", "rlv_login_cross"]))["peer edge"]
    assert check.state is State.UNSURE
    assert "no limit for rl_login_cross: HAProxy alone" in check.finding
    assert "[limits.NAME]" in check.fix


@pytest.mark.parametrize(("period", "has"), [(10, "http_req_rate(10s)"), (0, "no http_req_rate")])
def test_a_period_that_is_not_the_window(period: float, has: str) -> None:
    found = checks(peer(*changed("rl_default", period=period)))
    check = found["peer edge: table rl_default"]
    assert check.state is State.BROKEN
    assert f"it has {has}, but the window of limits.default is 1s" in check.finding
    assert "RATELIMIT_WINDOW" in check.fix
    errors = Limit(counts="errors")
    assert "peer edge: table rl_default" not in checks(
        peer(*changed("rl_default", period=period)), limits=(errors, UNKNOWN)
    )


def test_tables_that_forget_too_early() -> None:
    hour = Limit(window=3600 * SECOND)
    tables = changed("rl_default", period=3600)
    check = checks(peer(*tables), limits=(hour, UNKNOWN))["peer edge: table rl_default"]
    assert check.state is State.UNSURE and "after 2m" in check.finding
    assert "`expire 1h`" in check.fix
    check = checks(peer(*changed("rlv_default", expire=5)))["peer edge: table rlv_default"]
    assert check.state is State.BROKEN and "after 5s" in check.finding


def test_verdicts_under_other_keys_than_counts() -> None:
    check = checks(peer(*changed("rlv_default", type="binary", key_size=32)))
    found = check["peer edge: table rlv_default"]
    assert found.state is State.BROKEN
    assert "binary of 32 bytes, those of rl_default ipv6 of 16 bytes" in found.finding


def test_a_limit_whose_name_does_not_fit() -> None:
    check = checks(peer(*changed("rlc_limits", key_size=7)))["peer edge: table rlc_limits"]
    assert check.state is State.BROKEN and "at most 6 bytes" in check.finding
    assert "`type string len 64`" in check.fix


@pytest.mark.parametrize(("name", "what"), [("rl_default", "counts"), ("rlv_default", "verdicts")])
def test_a_full_table(name: str, what: str) -> None:
    full = replace(REPORT, tables=(*REPORT.tables, Table(f"ratelimit/{name}", "ipv6", 50, 50)))
    check = checks(reports=(full,))[f"{HAPROXY}: table {name}"]
    assert check.state is State.BROKEN
    assert f"all 50 entries are in use, so HAProxy drops the oldest {what}" in check.finding
    small = replace(REPORT, tables=(*REPORT.tables, Table("ratelimit/rlc_limits", "string", 1, 1)))
    check = checks(reports=(small,))[f"{HAPROXY}: table rlc_limits"]
    assert check.state is State.BROKEN and "room for 1 limits, but there are 2" in check.finding


@pytest.mark.parametrize("ahead", [0.2, -0.2, 0.1, None])
def test_haproxys_clock_is_off(ahead: float | None) -> None:
    found = checks(peer(clock_offset=ahead))
    if ahead is None or abs(ahead) < 0.2:
        assert "peer edge: clock" not in found
    else:
        word = "ahead of" if ahead > 0 else "behind"
        assert f"0.2 s {word} the fleet's clock" in found["peer edge: clock"].finding
        assert "NTP" in found["peer edge: clock"].fix


def test_the_requests_of_a_haproxy_are_counted_by_another_agent_or_by_none() -> None:
    other = checks(peer(counting=False, counted_by="agent2"))
    assert other["peer edge"].finding.endswith("tables, counted by agent2")
    check = checks(peer(counting=False, counted_by=""))["peer edge: counts"]
    assert check.state is State.UNSURE and "no agent counts" in check.finding


def test_a_haproxy_that_asks_and_counts() -> None:
    asking = replace(REPORT, backends=(Backend("spoa", "UP", 5, ()),))
    check = checks(reports=(asking,), asked=5)[f"{HAPROXY}: questions and counts"]
    assert check.state is State.BROKEN
    assert "asks the agent about limit default (SPOE) and counts it in rl_default" in check.finding
    assert "each request counts twice" in check.finding and "track-sc" in check.fix
    assert f"{HAPROXY}: questions and counts" not in checks(reports=(asking,)), "of other limits"
    other = replace(asking, socket="/other.sock", tables=())
    check = checks(reports=(asking, other), asked=5)[f"{HAPROXY}: questions and counts"]
    assert check.state is State.UNSURE and "several HAProxies ask" in check.finding


def test_tables_that_no_peer_shares() -> None:
    check = checks(sections=())[f"{HAPROXY}: peers"]
    assert check.state is State.BROKEN and "shares them with no peer" in check.finding


def test_a_haproxy_that_only_asks_has_no_checks_of_peers() -> None:
    asks = Report(SOCKET, tables=(Table("t_block", "ipv6", 100, 0),))
    assert checks(reports=(asks,), setup=Setup(), connected=False) == {}


def test_a_request_that_the_agent_hears_of() -> None:
    heard = checks(probe="http://site/", heard=1)[CONNECTION]
    assert heard.state is State.OK and "has heard of http://site/" in heard.finding
    missed = checks(probe="http://site/")[CONNECTION]
    assert missed.state is State.UNSURE and "has not heard of http://site/" in missed.finding
    idle = checks(peer(updates=0))[CONNECTION]
    assert idle.state is State.UNSURE and "--probe" in idle.fix


# ---- a real HAProxy ------------------------------------------------------------------------


@pytest.mark.integration
def test_a_real_haproxy_in_peers_mode(plant: Plant) -> None:
    async def test() -> None:
        async with plant(file=PEERS_FILE, RATELIMIT_STATS_LEVEL="admin") as made:

            async def connected() -> bool:
                return (await made.checks())["peer haproxy"].state is State.OK

            await until(connected, "HAProxy is connected and has all verdicts")
            found = await made.checks(probe=True)
            assert {one.state for one in found.values()} == {State.OK}
            assert {"peer haproxy", "haproxy: peer agent", "haproxy: maps"} <= set(found)
            assert "the agent has heard of" in found["haproxy: peer agent"].finding
            made.world.stop_agent()

            async def lost() -> bool:
                return "haproxy: peer agent" in await made.broken()

            await until(lost, "HAProxy misses its peer")

    run(test())


@pytest.mark.integration
def test_faults_of_a_real_haproxy(plant: Plant) -> None:
    async def test() -> None:
        edit = replaced("peers.cfg", "server agent ", "server limiter ")
        async with plant(file=PEERS_FILE, agent=False, edit=edit) as made:
            made.world.start_agent(made.more)

            async def refused() -> bool:
                found = await made.broken()
                return "has another name" in found.get("haproxy: peer limiter", NOTHING).finding

            await until(refused, "HAProxy has tried to connect")
            found = await made.broken()
            assert "it has limiter" in found["haproxy: agents"].finding
            assert "no HAProxy is connected" in found["peers"].finding

    run(test())


NOTHING = Check("", State.OK, "")
