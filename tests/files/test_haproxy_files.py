"""The two shipped configurations of HAProxy have the same rules where the modes do not differ."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ratelimit.haproxy.process import files
from tests.helpers.world import PEERS_FILE, SPOE_FILE

ONLY_SPOE = {
    "global": [r'\.if !version_atleast\(3\.0\) && strneq\("\$\{RATELIMIT_IPV4_PREFIX-32\}",32\)'],
    "frontend web": [r"log-format .*"],
    "1": [r".*\(sess\.block_end\).*table_gpt0\(t_block\).*", r".*txn\.via.*", r"acl is_blocked .*"],
    "5": [
        r"http-response set-header RateLimit.*",
        r".*X-RateLimit-Remaining %\[.*",
        r".*X-RateLimit-Reset %\[var\(txn\.rl\.reset\)\].*",
    ],
    "defaults refusal": [
        r"acl told .*",
        r"http-request set-var(-fmt)?\(.*!told.*",
        r'http-request set-var-fmt\(txn.quota\) "\\"default.*',
    ],
}
"""The lines of each part that only haproxy.cfg has; "1" to "5" are parts of the frontend."""

ONLY_PEERS = {
    "global": [r"\.if !version_atleast\(3\.0\) && \(.*", r"localpeer .*"],
    "frontend web": [r"log-format .*"],
    "1": [
        r"tcp-request connection set-var\(sess\.(kind|block_end)\).*rlv_default.*",
        r"acl is_blocked .*",
    ],
    "5": [r"acl limit_found .*", r"use_backend rl_unknown .*"],
    "defaults refusal": [
        r"http-request set-log-level silent .*",
        r"acl (edge|local|no_window) .*",
        r"http-request set-var\(txn\.rl\.(reason|limit_name|limit)\) .*",
        r"http-request set-var\(txn\.(window|hits)\) .*",
        r"http-request set-var\(txn\.retry_after\) .*(edge|local|lt 1 })",
        r"http-request set-var-fmt\(txn\.(policy|quota)\) .*",
    ],
}

OWN = {
    "2",
    "3",
    "4",
    "backend spoa",
    "backend t_block",
    "backend t_alone",
    "backend t_unknown",
    "peers ratelimit",
}
"""The parts in which the modes differ as a whole."""


def parts(file: str) -> dict[str, list[str]]:
    """Return the lines of each section, and of each numbered part of a frontend; no comments."""
    found: dict[str, list[str]] = {}
    part = ""
    for line in (files() / file).read_text().splitlines():
        if number := re.match(r" +# ---- (\d)\.", line):
            part = number[1]
        elif re.match(r"\w", line):
            part = line
        text = re.sub(r" +# .*", "", line.strip()) if line.strip()[:1] != "#" else ""
        if text:
            found.setdefault(part, []).append(text)
    return found


SPOE, PEERS = parts(SPOE_FILE), parts(PEERS_FILE)


def test_every_part_is_compared() -> None:
    assert OWN | set(ONLY_SPOE) | set(ONLY_PEERS) <= set(SPOE) | set(PEERS)
    assert {"1", "5", "backend app", "resolvers dns", "defaults refusal"} <= set(SPOE) - OWN
    assert set(SPOE) - OWN == set(PEERS) - OWN


@pytest.mark.parametrize("part", sorted(set(SPOE) - OWN))
def test_the_rules_are_the_same(part: str) -> None:
    def shared(of: dict[str, list[str]], only: dict[str, list[str]]) -> list[str]:
        left = list(of[part])
        for pattern in only.get(part, []):
            matching = [line for line in left if re.fullmatch(pattern, line)]
            assert matching, f"no line is {pattern}"
            left = [line for line in left if line not in matching]
        return left

    assert shared(SPOE, ONLY_SPOE) == shared(PEERS, ONLY_PEERS)


IN_PARTS_OF_BOTH = (
    r"http-request set-var\(txn\.client\) (?!.*unknown_client).*",
    r".*map_ip_int.*",
    r"acl (is_allowed|refused|is_login) .*",
    r"http-request set-var\(txn\.path\) .*",
    r"http-request (deny status 400 .*SEVERAL_KEYS.*|del-header .*)",
    r"\.if defined.*",
)
"""The lines of the parts 2 to 4 that are the same in both files."""


def test_the_parts_that_differ_share_their_common_rules() -> None:
    def common(of: dict[str, list[str]]) -> list[str]:
        lines = [line for part in "234" for line in of[part]]
        found = [line for line in lines if any(re.fullmatch(p, line) for p in IN_PARTS_OF_BOTH)]
        assert all(any(re.fullmatch(p, line) for line in lines) for p in IN_PARTS_OF_BOTH)
        return found

    assert common(SPOE) == common(PEERS)


SETTING = r"RATELIMIT_[A-Z0-9_]+"


def test_both_files_have_the_same_variables() -> None:
    """Those that only one has are of its mode."""
    of_spoe, of_peers = (
        set(re.findall(SETTING, (files() / file).read_text())) for file in (SPOE_FILE, PEERS_FILE)
    )
    assert of_spoe - of_peers == {"RATELIMIT_SPOP", "RATELIMIT_SPOE"}
    only = of_peers - of_spoe
    assert {re.sub(r"(UNKNOWN|LOGIN|API_KEY)_", "", name) for name in only} == {
        "RATELIMIT_IPV4_PREFIX",
        "RATELIMIT_IPV6_PREFIX",
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
