"""The two shipped configurations of HAProxy have the same rules where the modes do not differ."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from ratelimit.haproxy.process import files
from tests.helpers.world import PEERS_FILE, SPOE_FILE

ONLY_SPOE = {
    "global": [r'\.if !version_atleast\(3\.0\) && strneq\("\$\{RATELIMIT_IPV4_PREFIX-32\}",32\)'],
}
ONLY_PEERS = {
    "global": [
        r"\.if !version_atleast\(3\.0\) && \(.*",
        r"localpeer .*",
        r"setenv CLAIMS .*",
        r"\.if defined\(RATELIMIT_DIRECT\)",
        r"setenv ACCEPTED connection",
        r"\.else",
        r"setenv ACCEPTED session",
        r"\.endif",
    ],
    # What the frontend of haproxy.cfg does before it chooses the backend, so that a request of
    # peers.cfg that needs no other rule passes early.
    "backend app": [
        r".*(txn|sess)\.proto\).*",
        r"http-request del-header .*",
        r'\.if strneq\("\$\{RATELIMIT_CDN_HEADER-.*',
        r"\.if defined\(RATELIMIT_API_KEYS\)",
        r"http-request set-header .*",
        r"\.endif",
    ],
}
"""Lines of the parts that are the same otherwise."""

OWN = {
    "frontend web",
    "defaults refusal",
    "backend spoa",
    "backend t_block",
    "backend t_alone",
    "backend t_unknown",
    "peers ratelimit",
}
"""The parts in which the modes differ as a whole."""


def parts(file: str) -> dict[str, list[str]]:
    """Return the lines of each section; no comments."""
    found: dict[str, list[str]] = {}
    part = ""
    for line in (files() / file).read_text().splitlines():
        if re.match(r"\w", line):
            part = line
        text = re.sub(r" +# .*", "", line.strip()) if line.strip()[:1] != "#" else ""
        if text:
            found.setdefault(part, []).append(text)
    return found


SPOE, PEERS = parts(SPOE_FILE), parts(PEERS_FILE)


def test_every_part_is_compared() -> None:
    assert OWN | set(ONLY_SPOE) | set(ONLY_PEERS) <= set(SPOE) | set(PEERS)
    assert {"global", "defaults", "backend app", "resolvers dns"} <= set(SPOE) - OWN
    assert set(SPOE) - OWN == set(PEERS) - OWN


@pytest.mark.parametrize("part", sorted(set(SPOE) - OWN))
def test_the_rules_are_the_same(part: str) -> None:
    kinds = {*ONLY_SPOE.get(part, ()), *ONLY_PEERS.get(part, ())}

    def shared(of: dict[str, list[str]], only: dict[str, list[str]]) -> list[str]:
        for pattern in only.get(part, []):
            assert any(re.fullmatch(pattern, line) for line in of[part]), f"no line is {pattern}"
        return [line for line in of[part] if not any(re.fullmatch(kind, line) for kind in kinds)]

    assert shared(SPOE, ONLY_SPOE) == shared(PEERS, ONLY_PEERS)


IN_BOTH = (
    r"acl (refused|is_login|from_lb src|from_cdn src|origin_found) .*",
    r".*\$\{PLAIN_PATH\}.*",
    r".*SEVERAL_KEYS.*",
    r"http-request set-var\(txn\.origin\) .*",
    r"http-request (deny|return) (?!.*client_left).*",
    r"log global",
    r"timeout .*",
)
"""Lines that are the same in the parts in which the modes differ."""


@pytest.mark.parametrize("kind", IN_BOTH)
def test_the_parts_that_differ_share_their_common_rules(kind: str) -> None:
    def common(of: dict[str, list[str]]) -> set[str]:
        lines = [line for part in ("frontend web", "defaults refusal") for line in of[part]]
        return {line for line in lines if re.fullmatch(kind, line)}

    assert common(SPOE) == common(PEERS) != set()


CLAIMS = """
    cf-connecting-ip cf-connecting-ipv6 client-ip true-client-ip fastly-client-ip proxy-client-ip
    wl-proxy-client-ip x-real-ip x-client-ip x-cluster-client-ip x-remote-addr x-originating-ip
    forwarded x-forwarded forwarded-for forwarded-proto x-forwarded-for x-forwarded-proto
"""


def test_both_files_remove_the_same_claims_of_an_address() -> None:
    """Those of peers.cfg leave out the two that HAProxy replaces anyway."""
    (spoe,) = re.findall(r"del-header (\^\(cf\S+\)\$) -m reg", "\n".join(SPOE["frontend web"]))
    (peers,) = re.findall(r"setenv CLAIMS '(.*)'", "\n".join(PEERS["global"]))
    for claim in CLAIMS.split():
        first, *parts = claim.split("-")
        for signs in itertools.product("-_", repeat=len(parts)):
            name = first + "".join(sign + part for sign, part in zip(signs, parts, strict=True))
            assert re.match(spoe, name), name
            replaced = name in ("x-forwarded-for", "x-forwarded-proto")
            assert bool(re.fullmatch(peers, name)) != replaced, name


SETTING = r"RATELIMIT_[A-Z0-9_]+"


def test_both_files_have_the_same_variables() -> None:
    """Those that only one has are of its mode."""
    of_spoe, of_peers = (
        set(re.findall(SETTING, (files() / file).read_text())) for file in (SPOE_FILE, PEERS_FILE)
    )
    assert of_spoe - of_peers == {"RATELIMIT_SPOP", "RATELIMIT_SPOE"}
    only = of_peers - of_spoe
    assert {re.sub(r"(UNKNOWN|LOGIN|API_KEY)_", "", name) for name in only} == {
        "RATELIMIT_COUNTERS",
        "RATELIMIT_IPV4_PREFIX",
        "RATELIMIT_IPV6_PREFIX",
        "RATELIMIT_LIMIT2",
        "RATELIMIT_LIMIT3",
        "RATELIMIT_LOCALPEER",
        "RATELIMIT_PEERS",
        "RATELIMIT_PEERS2",
        "RATELIMIT_PEERS_LISTEN",
        "RATELIMIT_WINDOW",
    }


def test_a_variable_has_one_default() -> None:
    """In all the places where a file names it, and in both files."""
    pairs = Counter[tuple[str, str]]()
    for file in (SPOE_FILE, PEERS_FILE):
        text = (files() / file).read_text()
        pairs.update(set(re.findall(rf"\$\{{({SETTING})(?:\[\*\])?-([^}}]*)\}}", text)))
    names = Counter(name for name, _ in pairs)
    assert {name: count for name, count in names.items() if count > 1} == {}
