"""What the facts mean: for each thing whether it is well, what is broken, and how to mend it."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratelimit import __version__
from ratelimit.doctor.facts import TIMEOUT, EdgeTable, Facts, Moment, Status
from ratelimit.model import Limit
from ratelimit.notation import SECOND, format_duration
from ratelimit.runtime import Report
from ratelimit.runtime.figures import AGENT_BACKEND
from ratelimit.runtime.words import TABLE

CLOCK_TOLERANCE = 1.0
"""Seconds by which clocks may differ: a block ends at a whole second."""

_SHOWN = 5


class State(enum.StrEnum):
    """How something is."""

    OK = "ok"
    BROKEN = "broken"
    UNSURE = "unsure"
    """Nothing speaks against it, but it can't be told from here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, such as ``store``.
        state: how it is.
        finding: what was seen, in a sentence.
        mend: what to do; empty if there is nothing to.
    """

    subject: str
    state: State
    finding: str
    mend: str = ""


def judge(facts: Facts, limits: Sequence[Limit]) -> list[Check]:
    """Return all checks, in the order in which one looks for a fault."""
    return [
        *_agent(facts),
        _api(facts.after, facts.api),
        *_questions(facts),
        *_store(facts),
        *_versions(facts),
        *_haproxy(facts, limits),
    ]


def _agent(facts: Facts) -> Iterator[Check]:
    for spop in facts.spop:
        subject = f"agent {spop.address}"
        if spop.problem:
            yield Check(
                subject,
                State.BROKEN,
                f"no agent answers HAProxy there: {spop.problem}",
                "start it with `ratelimit serve`, with the same --config as here, and look into "
                "its log if it ends again; meanwhile HAProxy counts alone",
            )
        else:
            yield Check(subject, State.OK, "answers a health check as HAProxy sends it")


def _api(moment: Moment, url: str) -> Check:
    if moment.status is None:
        return Check(
            "ops API",
            State.BROKEN,
            moment.status_problem,
            "see whether the agent runs, with this `[ops] listen`; --url names another address, "
            "--token-file a token that may view",
        )
    return Check("ops API", State.OK, f"{url} answers, node {moment.status.node}")


def _questions(facts: Facts) -> Iterator[Check]:
    """Look for questions that reached the agent and could not be checked."""
    status, before = facts.after.status, facts.before.status
    if status is None:
        return
    unknown, keyless, since = status.unknown, status.keyless, "since the agent's start"
    if facts.probe and before is not None:
        unknown -= before.unknown
        keyless -= before.keyless
        since = f"with the request to {facts.probe}"
    if unknown > 0:
        names = _noted(status, "unknown")
        yield Check(
            "groups",
            State.BROKEN,
            f"HAProxy asks for limits that the agent does not have: {unknown} questions {since}"
            f"{f', for {names}' if names else ''}; they were let through unchecked",
            "the name of a SPOE message is the name of a limit: see which group `http-request "
            "send-spoe-group rl GROUP` sends and which message of spoe.conf is in it, or add "
            "[limits.NAME]",
        )
    elif keyless > 0:
        yield Check(
            "groups",
            State.UNSURE,
            f"{keyless} questions {since} had no key that can be counted; they were let through",
            "see `args key=...` of the messages in spoe.conf; a header that a request lacks is "
            "such a key, so send the group only if it is there",
        )
    elif status.checks:
        yield Check("groups", State.OK, "every question named a limit and a key")


def _noted(status: Status, word: str) -> str:
    found = [ascii(note.message) for note in status.unchecked if word in note.problem]
    return ", ".join(found[:_SHOWN])


def _store(facts: Facts) -> Iterator[Check]:
    if facts.store_problem:
        yield Check(
            "store",
            State.BROKEN,
            facts.store_problem,
            "see whether Redis runs and `[store] url` is right; until then each agent counts alone",
        )
    elif facts.sight is None:
        yield Check("store", State.OK, "memory://, so this node counts alone")
    else:
        yield Check("store", State.OK, f"{facts.sight.server} answers")
        yield _clock(
            "clock of the store",
            facts.sight.ahead,
            facts.sight.error,
            "the nodes go by the store's clock, but a block ends at the edge by the clock here",
        )


def _clock(subject: str, ahead: float, error: float, why: str) -> Check:
    off = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the clock here"
    if abs(ahead) <= CLOCK_TOLERANCE + error:
        return Check(subject, State.OK, "agrees with the clock here")
    return Check(
        subject,
        State.BROKEN,
        f"is {off}: {why}",
        "see on both machines whether NTP runs: `timedatectl`, `chronyc tracking`",
    )


def _versions(facts: Facts) -> Iterator[Check]:
    nodes = facts.sight.nodes if facts.sight else ()
    found: dict[str, list[str]] = {__version__: ["this command"]}
    for node in nodes:
        found.setdefault(node.version, []).append(f"node {node.id}")
    status = facts.after.status
    if status is not None and not any(node.id == status.node for node in nodes):
        found.setdefault(status.version, []).append(f"node {status.node}")
    if len(found) > 1:
        listed = "; ".join(
            f"{version}: {', '.join(names[:_SHOWN])}{' and more' if len(names) > _SHOWN else ''}"
            for version, names in sorted(found.items())
        )
        yield Check(
            "versions",
            State.BROKEN,
            f"the fleet runs several versions: {listed}",
            "install the same version on all nodes and restart those with another",
        )
    elif nodes or status is not None:
        count = max(1, len(nodes))
        shown = f"{count} nodes run" if count > 1 else "the node runs"
        yield Check("versions", State.OK, f"{shown} {__version__}")


def _haproxy(facts: Facts, limits: Sequence[Limit]) -> Iterator[Check]:
    if not facts.after.reports:
        yield Check(
            "haproxy",
            State.UNSURE,
            "no socket of a HAProxy is configured, so nothing of it can be seen",
            "name its `stats socket` in `[haproxy] sockets`",
        )
    moments = zip(
        facts.before.reports, facts.after.reports, facts.after.ahead, facts.edges, strict=True
    )
    for before, report, ahead, edge in moments:
        subject = f"haproxy {report.socket}"
        if report.problem:
            yield Check(
                subject,
                State.BROKEN,
                report.problem,
                "compare `[haproxy] sockets` with the `stats socket` line of HAProxy, which has to "
                "let the user of the agent in",
            )
            continue
        yield Check(subject, State.OK, f"HAProxy {report.version}, level {report.level}")
        yield _clock(
            f"{subject}: clock", ahead, TIMEOUT, "blocks end too early or too late at this edge"
        )
        yield _seen(subject, facts, report)
        if report.agent.startswith("UP"):
            yield _asked(subject, facts, before, report)
        yield from _edge(subject, report, edge, limits)


def _seen(haproxy: str, facts: Facts, report: Report) -> Check:
    """Judge the agent as HAProxy's health checks see it."""
    subject = f"{haproxy}: agent"
    backend = next((one for one in report.backends if one.name == AGENT_BACKEND), None)
    if backend is None:
        return Check(
            subject,
            State.BROKEN,
            f"HAProxy has no backend {AGENT_BACKEND}, so it can't ask an agent",
            f"copy the backend {AGENT_BACKEND} from the haproxy.cfg that comes with ratelimit, and "
            "reload HAProxy",
        )
    servers = "; ".join(
        f"{server.name} at {server.address or '?'} is {server.status}"
        f"{f' ({server.check})' if server.check else ''}"
        for server in backend.servers[:_SHOWN]
    )
    if backend.status.startswith("UP"):
        return Check(subject, State.OK, servers)
    if any(server.status.startswith(("DRAIN", "MAINT")) for server in backend.servers):
        mend = f"somebody took it out: `ratelimit haproxy ready {AGENT_BACKEND}/SERVER`"
    elif all(spop.problem for spop in facts.spop):
        mend = "the agent is down; once it runs, HAProxy takes it back within a second"
    else:
        listen = ", ".join(str(spop.address) for spop in facts.spop)
        mend = (
            f"the agent is well, on {listen}: see whether the `server` line of backend "
            f"{AGENT_BACKEND} (RATELIMIT_SPOP) names the same, and HAProxy can reach it"
        )
    return Check(subject, State.BROKEN, f"HAProxy asks no agent and counts alone: {servers}", mend)


def _asked(haproxy: str, facts: Facts, before: Report, after: Report) -> Check:
    """Judge whether HAProxy's requests come to the agent."""
    subject = f"{haproxy}: questions"
    answered = sum(frontend.answered for frontend in after.frontends)
    if facts.probe:
        if facts.probe_problem:
            return Check(
                subject,
                State.UNSURE,
                f"{facts.probe} gave no answer: {facts.probe_problem}",
                "give the URL of a frontend of this HAProxy",
            )
        if _requests(after) == _requests(before):
            return Check(subject, State.UNSURE, f"{facts.probe} is not answered by this HAProxy")
        old, new = facts.before.status, facts.after.status
        if old is not None and new is not None:
            if _questions_of(new) > _questions_of(old):
                return Check(subject, State.OK, f"the agent was asked about {facts.probe}")
            return _not_asked(subject, after, f"the agent was not asked about {facts.probe}")
    if _sessions(after):
        return Check(subject, State.OK, "HAProxy has asked the agent since its start")
    if answered:
        return _not_asked(
            subject,
            after,
            f"{answered} requests were answered since HAProxy's start, and the agent was never "
            "asked",
        )
    return Check(
        subject,
        State.UNSURE,
        "no request since HAProxy's start, so it can't be told whether the agent would be asked",
        "send one: `ratelimit doctor --probe http://...`",
    )


def _not_asked(subject: str, report: Report, finding: str) -> Check:
    files = " ".join(map(shlex.quote, report.files)) or "/etc/haproxy/haproxy.cfg"
    return Check(
        subject,
        State.BROKEN,
        f"{finding}: the engine is not loaded, or no group is sent",
        "the frontend needs both `filter spoe engine rl config spoe.conf` and `http-request "
        f"send-spoe-group rl check if {{ nbsrv({AGENT_BACKEND}) gt 0 }}`, the second with no other "
        f"condition; this shows which it lacks: grep -nE 'filter spoe|send-spoe-group' {files}",
    )


def _requests(report: Report) -> int:
    return sum(frontend.requests for frontend in report.frontends)


def _questions_of(status: Status) -> int:
    return status.checks + status.unknown + status.keyless


def _sessions(report: Report) -> int:
    return sum(one.sessions_total for one in report.backends if one.name == AGENT_BACKEND)


def _edge(
    haproxy: str, report: Report, edge: EdgeTable, limits: Sequence[Limit]
) -> Iterator[Check]:
    subject = f"{haproxy}: edge table"
    if report.edge is None:
        yield Check(
            subject,
            State.BROKEN,
            f"HAProxy has no stick table {TABLE}, so it can't remember who is blocked",
            f"copy the backend {TABLE} from the haproxy.cfg that comes with ratelimit, and reload "
            "HAProxy",
        )
        return
    if edge.problem:
        yield Check(
            subject,
            State.BROKEN,
            f"an entry could not be written and read: {edge.problem}",
            "blocks made and lifted by hand do not reach this edge; set the level with "
            "RATELIMIT_STATS_LEVEL, or on the `stats socket` line, and reload HAProxy",
        )
        return
    ladder, name = max(
        ((limit.block[-1], limit.name) for limit in limits if limit.block), default=(0, "")
    )
    if edge.kept + CLOCK_TOLERANCE < ladder:
        yield Check(
            subject,
            State.BROKEN,
            f"{TABLE} forgets an entry after {_shown(edge.kept)}, but the longest block of limit "
            f"{name} is {_shown(ladder)}: the agent is asked again in between",
            f"write `expire {_shown(ladder)}` or more on the `stick-table` line of {TABLE}",
        )
        return
    if edge.stale:
        keys = ", ".join(entry.key for entry in edge.stale[:_SHOWN])
        yield Check(
            subject,
            State.BROKEN,
            f"{len(edge.stale)} of {edge.compared} entries that were compared are refused by "
            f"HAProxy and not by the agent: {keys}",
            "`ratelimit blocks remove KEY` has HAProxy forget one, though it says that the "
            "blocklist has none; a lift that HAProxy missed leaves such entries, and so does a "
            "blocklist that was lost",
        )
        return
    full = report.edge.used / report.edge.size
    agrees = f"; {edge.compared} compared with the blocklist agree" if edge.compared else ""
    yield Check(
        subject,
        State.OK,
        f"takes entries and keeps them for {_shown(edge.kept)}; {full:.0%} full{agrees}",
    )


def _shown(seconds: float) -> str:
    return format_duration(round(seconds) * SECOND)
