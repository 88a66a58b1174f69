"""The checks of an HAProxy: its socket, clock, agent, messages, edge table and maps."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ratelimit.doctor.findings import CLOCK_TOLERANCE, SHOWN, Check, broken, clock_check, ok, unsure
from ratelimit.doctor.gather import TIMEOUT, AgentStatus, EdgeTable, Facts
from ratelimit.haproxy.commands import TABLE
from ratelimit.haproxy.maps import NAMES
from ratelimit.haproxy.stats import AGENT_BACKEND, Report
from ratelimit.model import Limit
from ratelimit.notation import SECOND, format_duration


def judge_haproxy(facts: Facts, limits: Sequence[Limit]) -> Iterator[Check]:
    """Yield the checks of each HAProxy."""
    if not facts.after.reports:
        yield unsure(
            "haproxy",
            "no HAProxy socket is configured, so HAProxy can't be checked",
            "add its `stats socket` to `[haproxy] sockets`",
        )
    moments = zip(
        facts.before.reports, facts.after.reports, facts.after.ahead, facts.edges, strict=True
    )
    for before, report, ahead, edge in moments:
        subject = f"haproxy {report.socket}"
        if report.problem:
            yield broken(
                subject,
                report.problem,
                "compare `[haproxy] sockets` with the `stats socket` line of HAProxy, which must "
                "let the user of the agent connect",
            )
            continue
        yield ok(subject, f"HAProxy {report.version}, level {report.level}")
        yield clock_check(
            f"{subject}: clock", ahead, TIMEOUT, "blocks end too early or too late at this HAProxy"
        )
        # In peers mode HAProxy counts and has verdicts; it may ask about other limits.
        if report.agent or not report.in_peers_mode:
            yield _seen(subject, facts, report)
        if report.agent.startswith("UP"):
            yield _asked(subject, facts, before, report)
        if report.edge is not None or not report.in_peers_mode:
            yield from _edge(subject, report, edge, limits)
        if (report.edge is not None or report.in_peers_mode) and not edge.problem:
            yield _maps(subject, edge)


def _maps(haproxy: str, edge: EdgeTable) -> Check:
    """Check the maps of the lists and of blocks by hand."""
    subject = f"{haproxy}: maps"
    effect = "without the agent, this HAProxy applies neither lists nor blocks of networks"
    if edge.maps_problem:
        return unsure(
            subject,
            f"{edge.maps_problem}: {effect}",
            "give the socket `level admin` (RATELIMIT_STATS_LEVEL=admin) and reload HAProxy; the "
            "files of `[haproxy] maps_dir` are read at its next reload in any case",
        )
    if missing := [name for name in NAMES if name not in edge.maps]:
        return unsure(
            subject,
            f"HAProxy has no map {' and no map '.join(missing)}: {effect}",
            "copy the files and the lines with `map_ip` that ratelimit ships "
            '(haproxy/README.md, "Lists"), and reload HAProxy',
        )
    said = ", ".join(f"{edge.maps[name]} entries in {name}" for name in NAMES)
    return ok(subject, said)


def _seen(haproxy: str, facts: Facts, report: Report) -> Check:
    """Check the agent as seen by HAProxy's health checks."""
    subject = f"{haproxy}: agent"
    backend = next((one for one in report.backends if one.name == AGENT_BACKEND), None)
    if backend is None:
        return broken(
            subject,
            f"HAProxy has no backend {AGENT_BACKEND}, so it can't ask an agent",
            f"copy the backend {AGENT_BACKEND} from the haproxy.cfg that ratelimit ships, and "
            "reload HAProxy",
        )
    servers = "; ".join(
        f"{server.name} at {server.address or '?'} is {server.status}"
        f"{f' ({server.check})' if server.check else ''}"
        for server in backend.servers[:SHOWN]
    )
    if backend.status.startswith("UP"):
        return ok(subject, servers)
    if any(server.status.startswith(("DRAIN", "MAINT")) for server in backend.servers):
        fix = f"an operator disabled it; run `ratelimit haproxy ready {AGENT_BACKEND}/SERVER`"
    elif all(spop.problem for spop in facts.spop):
        fix = "the agent is down; start it, and HAProxy uses it within a second"
    else:
        listen = ", ".join(str(spop.address) for spop in facts.spop)
        fix = (
            f"the agent runs on {listen}: check that the `server` line of backend "
            f"{AGENT_BACKEND} (RATELIMIT_SPOP) has the same address and HAProxy can reach it"
        )
    finding = f"HAProxy can't ask the agent and counts alone: {servers}"
    return broken(subject, finding, fix)


def _asked(haproxy: str, facts: Facts, before: Report, after: Report) -> Check:
    """Check that HAProxy asks the agent about its requests."""
    subject = f"{haproxy}: questions"
    answered = sum(frontend.answered for frontend in after.frontends)
    if facts.probe:
        if facts.probe_problem:
            return unsure(
                subject,
                f"{facts.probe} gave no answer: {facts.probe_problem}",
                "use the URL of a frontend of this HAProxy",
            )
        if _requests(after) == _requests(before):
            return unsure(subject, f"{facts.probe} was not answered by this HAProxy")
        old, new = facts.before.status, facts.after.status
        if old is not None and new is not None:
            if _questions_of(new) > _questions_of(old):
                return ok(subject, f"the agent was asked about {facts.probe}")
            return _not_asked(subject, after, f"the agent was not asked about {facts.probe}")
    if any(one.sessions_total for one in after.backends if one.name == AGENT_BACKEND):
        return ok(subject, "HAProxy has asked the agent since HAProxy's start")
    if answered:
        return _not_asked(
            subject,
            after,
            f"{answered} requests were answered since HAProxy's start, but the agent was never "
            "asked",
        )
    return unsure(
        subject,
        "no request since HAProxy's start, so it is unknown whether HAProxy asks the agent",
        "send one: `ratelimit doctor --probe http://...`",
    )


def _not_asked(subject: str, report: Report, finding: str) -> Check:
    files = " ".join(map(shlex.quote, report.files)) or "/etc/haproxy/haproxy.cfg"
    return broken(
        subject,
        f"{finding}: the SPOE filter is not loaded, or no group is sent",
        "the frontend needs both `filter spoe engine rl config spoe.conf` and `http-request "
        f"send-spoe-group rl check if {{ nbsrv({AGENT_BACKEND}) gt 0 }}`, the second with no other "
        f"condition; find the missing one with: grep -nE 'filter spoe|send-spoe-group' {files}",
    )


def _requests(report: Report) -> int:
    return sum(frontend.requests for frontend in report.frontends)


def _questions_of(status: AgentStatus) -> int:
    return status.checks + status.unknown + status.keyless


def _edge(
    haproxy: str, report: Report, edge: EdgeTable, limits: Sequence[Limit]
) -> Iterator[Check]:
    subject = f"{haproxy}: edge table"
    if report.edge is None:
        yield broken(
            subject,
            f"HAProxy has no stick table {TABLE}, so it can't store blocks",
            f"copy the backend {TABLE} from the haproxy.cfg that ratelimit ships, and reload "
            "HAProxy",
        )
        return
    if edge.problem:
        yield broken(
            subject,
            f"an entry could not be written and read: {edge.problem}",
            "blocks by hand do not reach this HAProxy; set the level with "
            "RATELIMIT_STATS_LEVEL, or on the `stats socket` line, and reload HAProxy",
        )
        return
    ladder, name = max(
        ((limit.block[-1], limit.name) for limit in limits if limit.block), default=(0, "")
    )
    if edge.kept + CLOCK_TOLERANCE < ladder:
        yield broken(
            subject,
            f"{TABLE} forgets an entry after {_shown(edge.kept)}, but the longest block of limit "
            f"{name} is {_shown(ladder)}: the agent is asked again in between",
            f"set `expire {_shown(ladder)}` or more on the `stick-table` line of {TABLE}",
        )
        return
    if edge.stale:
        keys = ", ".join(entry.key for entry in edge.stale[:SHOWN])
        yield broken(
            subject,
            f"{len(edge.stale)} of {edge.compared} compared entries are blocked by "
            f"HAProxy but not by the agent: {keys}",
            "`ratelimit blocks remove KEY` removes one, although it reports that the "
            "blocklist has none; causes are a change that HAProxy missed or a "
            "lost blocklist",
        )
        return
    counted = next((limit for limit in limits if limit.name == "default"), Limit())
    for kind in ("ipv4", "ipv6"):
        bits, wanted = getattr(edge.prefixes, kind), getattr(counted, f"{kind}_prefix")
        if bits != wanted:
            variable = f"RATELIMIT_{kind.upper()}_PREFIX"
            yield unsure(
                subject,
                f"limits.default.{kind}_prefix is {wanted}, but HAProxy's {variable} is {bits}: "
                "the edge table stores other clients than the agent blocks",
                f"set {variable}={wanted} in HAProxy's environment and restart it; nothing is "
                "wrong if your own haproxy.cfg has the number in its `ipmask()`",
            )
            return
    full = report.edge.used / report.edge.size
    agrees = f"; {edge.compared} compared with the blocklist agree" if edge.compared else ""
    yield ok(
        subject,
        f"takes entries and keeps them for {_shown(edge.kept)}; {full:.0%} full{agrees}",
    )


def _shown(seconds: float) -> str:
    return format_duration(round(seconds) * SECOND)
