"""Turns facts into checks: what is broken, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ratelimit import __version__
from ratelimit.doctor.findings import SHOWN, Check, broken, clock_check, ok, unsure
from ratelimit.doctor.gather import AgentStatus, Counts, Facts, Moment
from ratelimit.doctor.haproxy import judge_haproxy
from ratelimit.doctor.peers import judge_peers
from ratelimit.model import UNKNOWN, Limit


def judge(facts: Facts, limits: Sequence[Limit]) -> list[Check]:
    """Return all checks, in the order in which to search for a fault."""
    return [
        *_agent(facts),
        _api(facts.after, facts.api),
        *_questions(facts),
        *_unasked(facts.after.status),
        *_unknown_clients(facts.after.status),
        *_forwarders(facts.after.status),
        *_store(facts),
        *_versions(facts),
        *_secrets(facts),
        *judge_peers(facts, limits),
        *judge_haproxy(facts, limits),
    ]


def _agent(facts: Facts) -> Iterator[Check]:
    for spop in facts.spop:
        subject = f"agent {spop.address}"
        if spop.problem:
            yield broken(
                subject,
                f"no agent answers at this address: {spop.problem}",
                "start it with `ratelimit serve` and the same --config as here; see "
                "its log if it ends; until then HAProxy counts alone",
            )
        else:
            yield ok(subject, "answers HAProxy's health check")


def _api(moment: Moment, url: str) -> Check:
    if moment.status is None:
        return broken(
            "ops API",
            moment.status_problem,
            "check that the agent runs with this `[ops] listen`; --url sets another address, "
            "--token-file a token with the role view",
        )
    return ok("ops API", f"{url} answers, node {moment.status.node}")


def _questions(facts: Facts) -> Iterator[Check]:
    """Report messages that reached the agent and could not be checked."""
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
        yield broken(
            "groups",
            f"HAProxy uses limits that the agent does not have: {unknown} messages {since}"
            f"{f', for {names}' if names else ''}; the requests were allowed",
            "the name of a SPOE message is the name of a limit: check which group `http-request "
            "send-spoe-group rl GROUP` sends and which messages of spoe.conf it has, or add "
            "[limits.NAME]",
        )
    elif keyless > 0:
        yield unsure(
            "groups",
            f"{keyless} messages {since} had no valid key; the requests were allowed",
            "check `args key=...` of the messages in spoe.conf; a missing header is "
            "not a valid key, so send the group only if the header exists",
        )
    elif status.checks:
        yield ok("groups", "every message had a limit and a key")


def _unasked(status: AgentStatus | None) -> Iterator[Check]:
    """Report limits about which HAProxy has not asked; see ``peers`` for HAProxies that count."""
    if status is None or not status.checks or status.peers:
        return
    unasked = [limit.name for limit in status.limits if limit.name != UNKNOWN and not limit.checks]
    if unasked:
        fields = ", ".join(f"limits.{name}" for name in unasked[:SHOWN])
        yield unsure(
            "limits",
            f"HAProxy has not asked about {fields} since the agent's start, so no client is "
            "limited by them",
            "nothing is wrong if there was no such request; otherwise spoe.conf needs a message of "
            "this name in a group, and haproxy.cfg an `http-request send-spoe-group rl GROUP`; "
            "the shipped files send login with RATELIMIT_LOGIN_PATH, api_key with "
            "RATELIMIT_API_KEYS",
        )


def _unknown_clients(status: AgentStatus | None) -> Iterator[Check]:
    """Report requests whose client no trusted proxy named."""
    if status is None:
        return
    limit = next((one for one in status.limits if one.name == UNKNOWN), Counts(name=UNKNOWN))
    if not limit.checks:
        return
    refused = limit.throttled + limit.blocked + limit.denied
    yield unsure(
        "unknown clients",
        f"{limit.checks} of {status.checks} requests since the agent's start came through a "
        f"trusted proxy that did not name their client, and {refused} of them were refused",
        "health checks of a load balancer are such requests; otherwise check that the proxies of "
        "lb.lst append to X-Forwarded-For and that the CDN of cdn.lst is the one in front; "
        'to keep out other customers of the CDN see haproxy/README.md, "Trusted proxies"',
    )


def _forwarders(status: AgentStatus | None) -> Iterator[Check]:
    """Report proxies that are in no list, whose clients are counted as one."""
    if status is None or not status.forwarders:
        return
    keys = [one.key for one in status.forwarders]
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    yield unsure(
        "trusted proxies",
        f"peers in no list of trusted proxies send many different X-Forwarded-For: "
        f"{', '.join(keys[:SHOWN])}{more}; the clients of each are counted as one",
        "if one is your load balancer, add it to lb.lst and reload HAProxy; others are "
        "foreign proxies or clients that forge the header and need no change",
    )


def _noted(status: AgentStatus, word: str) -> str:
    found = [ascii(note.message) for note in status.unchecked if word in note.problem]
    return ", ".join(found[:SHOWN])


def _store(facts: Facts) -> Iterator[Check]:
    if facts.store_problem:
        yield broken(
            "store",
            facts.store_problem,
            "check that Redis runs and `[store] url` is right; until then each agent counts alone",
        )
    elif facts.sight is None:
        yield ok("store", "memory://: this node counts alone")
    else:
        yield ok("store", f"{facts.sight.server} answers")
        yield clock_check(
            "clock of the store",
            facts.sight.ahead,
            facts.sight.error,
            "nodes use the store's clock, but HAProxy ends blocks by the local clock",
        )


def _secrets(facts: Facts) -> Iterator[Check]:
    if facts.exposed:
        yield unsure(
            "secrets",
            f"every user of this machine can read {'; '.join(facts.exposed)}",
            "make the agent's user or group the owner: chown, chmod 640",
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
            f"{version}: {', '.join(names[:SHOWN])}{' and more' if len(names) > SHOWN else ''}"
            for version, names in sorted(found.items())
        )
        yield broken(
            "versions",
            f"the nodes run different versions: {listed}",
            "install the same version on all nodes and restart them",
        )
    elif nodes or status is not None:
        count = max(1, len(nodes))
        shown = f"{count} nodes run" if count > 1 else "the node runs"
        yield ok("versions", f"{shown} {__version__}")
