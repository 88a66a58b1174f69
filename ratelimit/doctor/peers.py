"""The checks of peers mode: sessions with HAProxies, their tables, their clocks, their peers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ratelimit.doctor.findings import SHOWN, Check, broken, ok, unsure
from ratelimit.doctor.gather import AgentStatus, Facts, PeerStatus, PeerTable, Setup
from ratelimit.haproxy.peers import Peer, Section
from ratelimit.haproxy.stats import AGENT_BACKEND, Report
from ratelimit.model import TABLE_PREFIX, UNKNOWN, VERDICT_PREFIX, Limit
from ratelimit.notation import SECOND, format_duration

LIMITS = "rlc_limits"
"""The table in which the agent tells HAProxy its limits."""

CAPS = "rlc_caps"
"""The table of the caps that hold while an agent is connected."""

CLOCK_TOLERANCE = 0.1
"""Seconds by which HAProxy's clock may differ; beyond it, throttles end at whole seconds."""

SHORTEST_EXPIRE = 60
"""Seconds for which a table must keep verdicts, so that they outlast a restart of the agent."""

_GUIDE = 'haproxy/README.md, "Peers mode"'
_RELOAD = "and reload HAProxy"


def judge_peers(facts: Facts, limits: Sequence[Limit]) -> Iterator[Check]:
    """Yield the checks of all HAProxies that count for the agent."""
    status, setup = facts.after.status, facts.setup
    if status is not None and setup.listen:
        if not status.peers:
            yield broken(
                "peers",
                f"no HAProxy is connected as a peer to {', '.join(setup.listen)}: HAProxy refuses "
                "by its own counts only, and the agent counts none of its requests",
                "the section `peers` of HAProxy needs a line `server NAME ADDRESS` "
                f"(RATELIMIT_PEERS) with one of these addresses and the name {setup.name}; "
                "HAProxy connects within 5 s",
            )
        for peer in status.peers:
            yield from _session(peer, status, limits)
        yield from _uncounted(status, limits)
    for report, sections in zip(facts.after.reports, facts.sections, strict=True):
        if report.in_peers_mode and not report.problem:
            yield from _haproxy(report, sections, facts, limits)


# ---- sessions, as the agent sees them -------------------------------------------------------


def _session(peer: PeerStatus, status: AgentStatus, limits: Sequence[Limit]) -> Iterator[Check]:
    """Check one session, and the tables that HAProxy has announced."""
    subject = f"peer {peer.name}"
    found = [
        *_refused(subject, peer),
        *_tables(subject, peer, status, limits),
        *_clock(peer),
        *_counted(peer),
    ]
    yield from found
    if not peer.taught:
        yield unsure(
            subject,
            "the agent has not told this HAProxy all verdicts yet, so HAProxy refuses above the "
            "rate by its own count",
            "this takes some seconds after a start; otherwise see the agent's log",
        )
    elif not found:
        yield ok(
            subject,
            f"connected from {peer.address}, {peer.updates} updates of {len(peer.tables)} tables"
            f"{'' if peer.counting else f', counted by {peer.counted_by}'}",
        )


def _refused(subject: str, peer: PeerStatus) -> Iterator[Check]:
    for table, why in peer.refused.items():
        yield broken(
            f"{subject}: table {table}",
            f"the agent can't use this table: {why}",
            f"correct the table in HAProxy's section `peers` ({_GUIDE}) {_RELOAD}, or correct the "
            "limit in the agent's configuration",
        )
    if unused := [name for name in peer.unused if name.startswith(TABLE_PREFIX)]:
        yield unsure(
            subject,
            f"the agent has no limit for {', '.join(unused[:SHOWN])}: HAProxy alone limits these "
            "requests, to the rate of its environment if there is one",
            "add [limits.NAME] for each rl_NAME; nothing is wrong if HAProxy's own count is enough",
        )


def _counted(peer: PeerStatus) -> Iterator[Check]:
    if not peer.counting and not peer.counted_by:
        yield unsure(
            f"peer {peer.name}: counts",
            "no agent counts the requests of this HAProxy",
            "this lasts a few seconds after a change of agents; otherwise check that both agents "
            "reach the same store: `ratelimit status`",
        )


def _clock(peer: PeerStatus) -> Iterator[Check]:
    ahead = peer.clock_offset or 0
    if abs(ahead) > CLOCK_TOLERANCE:
        off = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'}"
        yield unsure(
            f"peer {peer.name}: clock",
            f"HAProxy's clock is {off} the fleet's clock: a throttled client waits up to a second "
            "longer than necessary",
            "check that NTP runs on all machines: `timedatectl`, `chronyc tracking`",
        )


def _tables(
    subject: str, peer: PeerStatus, status: AgentStatus, limits: Sequence[Limit]
) -> Iterator[Check]:
    tables = {table.name: table for table in peer.tables if table.name not in peer.refused}
    if not peer.taught:
        return  # it may not have announced all of them yet
    for name, effect in _missing(peer, tables, status, limits):
        yield broken(
            f"{subject}: table {name}",
            f"this HAProxy has no such table: {effect}",
            f"copy its line from the peers.cfg that ratelimit ships ({_GUIDE}), {_RELOAD}",
        )
    longest = max(limits, key=lambda limit: len(limit.name.encode()))
    room = tables[LIMITS].key_size - 1 if LIMITS in tables else len(longest.name)
    if len(longest.name.encode()) > room:
        yield broken(
            f"{subject}: table {LIMITS}",
            f"its keys have at most {room} bytes, so HAProxy does not know the limit "
            f"{longest.name}",
            f"declare it with `type string len 64`, {_RELOAD}",
        )
    for limit in limits:
        counts, verdicts = tables.get(limit.count_table), tables.get(VERDICT_PREFIX + limit.name)
        if counts is not None:
            yield from _count_table(f"{subject}: table {counts.name}", counts, limit)
        if verdicts is not None:
            yield from _verdict_table(f"{subject}: table {verdicts.name}", verdicts, counts)


def _missing(
    peer: PeerStatus,
    tables: Mapping[str, PeerTable],
    status: AgentStatus,
    limits: Sequence[Limit],
) -> Iterator[tuple[str, str]]:
    """Yield the tables that an HAProxy lacks, and the effect of that."""
    if LIMITS not in tables and LIMITS not in peer.refused:
        yield LIMITS, "it knows neither the limits nor that the agent is connected"
    if CAPS not in tables and CAPS not in peer.refused:
        yield CAPS, "its own cap is the rate, which refuses clients within their limit in bursts"
    asked = {limit.name for limit in status.limits if limit.asked}
    for limit in limits:
        name = limit.count_table
        if name in peer.refused:
            continue
        if name in tables:
            verdicts = VERDICT_PREFIX + limit.name
            if verdicts not in tables and verdicts not in peer.refused:
                yield verdicts, f"it refuses no client because of limits.{limit.name}"
        elif limit.name == "default" and limit.name not in asked:
            yield name, "it does not count its clients for limits.default"


def _uncounted(status: AgentStatus, limits: Sequence[Limit]) -> Iterator[Check]:
    """Report limits that no HAProxy counts, and about which none asks."""
    asked = {limit.name for limit in status.limits if limit.asked}
    known = {table.name for peer in status.peers for table in peer.tables}
    if not known:
        return
    for limit in limits:
        if limit.name in (UNKNOWN, "default") or limit.name in asked:
            continue
        if limit.count_table not in known:
            yield unsure(
                f"limit {limit.name}",
                f"no HAProxy has the table {limit.count_table} or asks about this limit, so no "
                "client is limited by it",
                "the shipped peers.cfg has rl_login with RATELIMIT_LOGIN_PATH, rl_api_key with "
                f"RATELIMIT_API_KEYS; for another limit see {_GUIDE}",
            )


def _count_table(subject: str, table: PeerTable, limit: Limit) -> Iterator[Check]:
    window = limit.window / SECOND
    shown = format_duration(limit.window)
    if limit.counts == "requests" and table.period != window:
        has = f"http_req_rate({_seconds(table.period)})" if table.period else "no http_req_rate"
        yield broken(
            subject,
            f"it has {has}, but the window of limits.{limit.name} is {shown}: HAProxy has no cap "
            "of its own for this limit, so a flood outruns the agent's verdict",
            f"store http_req_rate({shown}) in this table (the shipped peers.cfg has "
            f"RATELIMIT_WINDOW and others, in whole seconds), {_RELOAD}",
        )
    if table.expire < window:
        yield unsure(
            subject,
            f"HAProxy forgets an entry after {_seconds(table.expire)} without a request, which is "
            f"less than the window of limits.{limit.name}, {shown}: HAProxy's own cap does not "
            "hold for clients that pause",
            f"set `expire {shown}` or more for this table, {_RELOAD}",
        )


def _verdict_table(subject: str, table: PeerTable, counts: PeerTable | None) -> Iterator[Check]:
    if table.expire < SHORTEST_EXPIRE:
        yield broken(
            subject,
            f"HAProxy forgets verdicts after {_seconds(table.expire)}, so blocked clients pass "
            "soon after the agent stops",
            f"set `expire 1h` for this table, {_RELOAD}",
        )
    if counts is not None and (table.type, table.key_size) != (counts.type, counts.key_size):
        yield broken(
            subject,
            f"its keys are {table.type} of {table.key_size} bytes, those of {counts.name} "
            f"{counts.type} of {counts.key_size} bytes: no verdict matches a client",
            f"declare both tables with the same type of keys, {_RELOAD}",
        )


# ---- HAProxy, as its socket shows it --------------------------------------------------------


def _haproxy(
    report: Report, sections: Iterable[Section], facts: Facts, limits: Sequence[Limit]
) -> Iterator[Check]:
    """Check the peers and the tables of an HAProxy in peers mode."""
    haproxy = f"haproxy {report.socket}"
    ours = [one for one in sections if any(map(_is_ours, one.tables))]
    if not ours:
        yield broken(
            f"{haproxy}: peers",
            "HAProxy has tables for verdicts, but shares them with no peer",
            f"declare the tables in the section `peers` that has the agent ({_GUIDE}), {_RELOAD}",
        )
        return
    others = {section.local for some in facts.sections for section in some}
    if facts.after.status is not None:
        others |= {peer.name for peer in facts.after.status.peers}
    for section in ours:
        yield from _section(haproxy, section, facts, others - {section.local, ""})
    yield from _sizes(report, limits)
    if facts.after.status is not None:
        yield from _twice(report, facts, facts.after.status, limits)


def _section(haproxy: str, section: Section, facts: Facts, others: set[str]) -> Iterator[Check]:
    setup, status = facts.setup, facts.after.status
    subject, name = f"{haproxy}: peers", section.name
    haproxies = [
        peer for peer in section.remote if peer.name in others or any(map(_is_count, peer.tells))
    ]
    if haproxies:
        yield broken(
            subject,
            f"the section `peers {name}` contains another HAProxy, "
            f"{_names(haproxies)}: each overwrites the counts of the other",
            "leave only this HAProxy and the agents in this section; other tables may have "
            f"a `peers` section of their own; change it {_RELOAD}",
        )
    agents = [peer for peer in section.remote if peer not in haproxies]
    if len(agents) > 1 and setup.alone:
        yield unsure(
            f"{haproxy}: agents",
            f"HAProxy has {len(agents)} agents ({_names(agents)}), but the store of this one is "
            "memory://: both count each request, and neither knows the blocks of the other",
            "set the same `[store] url` in both agents, such as redis://",
        )
    own = next((peer for peer in agents if peer.name == setup.name), None)
    if own is None:
        listed = f"it has {_names(agents)}" if agents else "it has no agent"
        yield broken(
            f"{haproxy}: agents",
            f"the section `peers {name}` has no peer with the agent's name {setup.name}; {listed}",
            f"set `[agent] peer_name` to the name after `server` in the section, or write `server "
            f"{setup.name} ADDRESS` there {_RELOAD}",
        )
    for peer in agents:
        subject = f"{haproxy}: peer {peer.name}"
        if not peer.connected:
            yield _apart(subject, section, peer, setup)
        elif peer is own and status is not None:
            yield _heard(subject, section, peer, status, facts)


def _apart(subject: str, section: Section, peer: Peer, setup: Setup) -> Check:
    """Return why a peer is not connected."""
    found = f"HAProxy is not connected to its peer {peer.name}"
    if peer.status == "NAME":
        return broken(
            subject,
            f"{found}: the agent there has another name",
            f"set `[agent] peer_name` of this agent to {peer.name}, and restart it",
        )
    if peer.status == "UNKN":
        return broken(
            subject,
            f"{found}: the agent does not accept the name {section.local}",
            f"add {section.local} to `[agent] peers_allowed`, or set `localpeer` "
            f"(RATELIMIT_LOCALPEER) to a name that is there: "
            f"{', '.join(setup.allowed[:SHOWN]) or 'none in this configuration'}",
        )
    if peer.status == "RETR":
        return broken(
            subject,
            f"{found}: the agent refuses it for now, because another HAProxy has the name "
            f"{section.local}, or because the agent stops",
            "give each HAProxy its own `localpeer` (RATELIMIT_LOCALPEER), and restart it",
        )
    if peer.status in ("PROT", "VERS"):
        return broken(
            subject,
            f"{found}: the program at its address does not speak the peers protocol",
            f"write an address of `[agent] peers` ({', '.join(setup.listen) or 'none is set'}) "
            f"into the line `server {peer.name}` (RATELIMIT_PEERS) {_RELOAD}",
        )
    return broken(
        subject,
        f"{found}, and refuses by its own count only",
        f"check that the agent runs, that `[agent] peers` ({', '.join(setup.listen) or 'not set'}) "
        f"has the address of the line `server {peer.name}` (RATELIMIT_PEERS), and that HAProxy "
        "can reach it",
    )


def _heard(subject: str, section: Section, peer: Peer, status: AgentStatus, facts: Facts) -> Check:
    """Return whether the agent hears what HAProxy counts."""
    known = next((one for one in status.peers if one.name == section.local), None)
    if known is None:
        return broken(
            subject,
            f"HAProxy is connected to an agent {peer.name} that is not this one",
            "compare the line `server` (RATELIMIT_PEERS) with `[agent] peers`; --url chooses the "
            "agent that this command asks",
        )
    connected = f"connected to {peer.name} as {section.local}"
    if facts.probe and not facts.probe_problem and facts.before.status is not None:
        if status.checks > facts.before.status.checks:
            return ok(subject, f"{connected}; the agent has heard of {facts.probe}")
        return unsure(
            subject,
            f"{connected}, but the agent has not heard of {facts.probe}",
            "use the URL of a frontend of this HAProxy that counts: `http-request track-sc0 ... "
            f"table {section.name}/rl_default`",
        )
    if known.updates:
        return ok(subject, f"{connected}, {known.updates} updates since it connected")
    return unsure(
        subject,
        f"{connected}, but HAProxy has counted no request since then",
        "send one: `ratelimit doctor --probe http://...`",
    )


def _sizes(report: Report, limits: Sequence[Limit]) -> Iterator[Check]:
    """Check that the tables have room."""
    for table in report.tables:
        name, subject = table.last_name, f"haproxy {report.socket}: table {table.last_name}"
        if name == LIMITS and table.size < len(limits):
            yield broken(
                subject,
                f"it has room for {table.size} limits, but there are {len(limits)}",
                f"declare it with `size 1k`, {_RELOAD}",
            )
        elif name.startswith((TABLE_PREFIX, VERDICT_PREFIX)) and 0 < table.size <= table.used:
            lost = "verdicts" if name.startswith(VERDICT_PREFIX) else "counts"
            yield broken(
                subject,
                f"all {table.size} entries are in use, so HAProxy drops the oldest {lost}",
                f"raise its `size`, {_RELOAD}; entries take memory only while they are used",
            )


def _twice(
    report: Report, facts: Facts, status: AgentStatus, limits: Sequence[Limit]
) -> Iterator[Check]:
    """Report limits whose requests this HAProxy both counts itself and asks about."""
    asking = [one.socket for one in facts.after.reports if _has_asked(one)]
    if report.socket not in asking:
        return
    asked = {limit.name for limit in status.limits if limit.asked}
    counted = {table.last_name for table in report.tables if table.used}
    both = [limit for limit in limits if limit.name in asked and limit.count_table in counted]
    if not both:
        return
    subject = f"haproxy {report.socket}: questions and counts"
    names = ", ".join(limit.name for limit in both)
    fix = (
        "remove the message from the group that this HAProxy sends (spoe.conf, `send-spoe-group`), "
        f"or the `track-sc` line of the table in this HAProxy, {_RELOAD}"
    )
    if len(asking) == 1:
        yield broken(
            subject,
            f"this HAProxy both asks the agent about limit {names} (SPOE) and counts it in "
            f"{both[0].count_table}: each request counts twice",
            fix,
        )
    else:
        yield unsure(
            subject,
            f"several HAProxies ask the agent (SPOE), some about limit {names}, which this one "
            f"counts in {both[0].count_table}: if this one asks too, each request counts twice",
            fix,
        )


def _has_asked(report: Report) -> bool:
    return any(one.sessions_total for one in report.backends if one.name == AGENT_BACKEND)


def _is_count(table: str) -> bool:
    return table.startswith(TABLE_PREFIX)


def _is_ours(table: str) -> bool:
    return table in (LIMITS, CAPS) or table.startswith((TABLE_PREFIX, VERDICT_PREFIX))


def _names(peers: Sequence[Peer]) -> str:
    return ", ".join(peer.name for peer in peers[:SHOWN])


def _seconds(seconds: float) -> str:
    return format_duration(round(seconds * SECOND))
