"""Commands of the runtime API: which entries they name, and that no key injects one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.haproxy import commands
from ratelimit.haproxy.commands import Prefixes
from ratelimit.limiter.keys import key_network
from tests.helpers.runtime import EVIL


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("64:ff9b::c000:201", "::ffff:192.0.2.1"),
        ("198.51.100.0/24", "::ffff:198.51.100.0"),
        ("2001:db8::/64", "2001:db8::"),
        ("2001:db8::/32", "2001:db8::"),
        ("2001:DB8:0:0::1", None),  # a part of its /64, as are the next two
        ("2001:db8::", None),
        ("2001:db8::/96", None),
    ],
)
def test_an_entry_blocks_nobody_else(key: str, entry: str | None) -> None:
    network = key_network(key)
    assert network is not None
    assert commands.entry_to_push(network, Prefixes()) == entry


@pytest.mark.parametrize(
    ("key", "pushed", "entries"),
    [
        ("10.0.0.0/24", "::ffff:10.0.0.0", ["::ffff:10.0.0.0"]),
        ("10.0.0.0", None, ["::ffff:10.0.0.0", "64:ff9b::a00:0"]),  # not the other 255
        ("10.0.0.7", None, ["::ffff:10.0.0.7", "64:ff9b::a00:7", "::ffff:10.0.0.0"]),
        ("64:ff9b::a00:7", None, ["::ffff:10.0.0.7", "64:ff9b::a00:7", "::ffff:10.0.0.0"]),
        ("2001:db8::/56", "2001:db8::", ["2001:db8::"]),
        ("2001:db8::/64", None, ["2001:db8::"]),  # not the other 255
        ("2001:db8:0:1::/64", None, ["2001:db8:0:1::", "2001:db8::"]),
        ("::1", None, ["::1", "::", "::ffff:0.0.0.0"]),
        (
            "2002:c000:204:7::1",
            None,
            [
                "2002:c000:204:7::1",
                "2002:c000:204::",
                "::ffff:192.0.2.0",
            ],
        ),
        ("2002:c000::/32", "2002:c000::", ["2002:c000::", "::ffff:192.0.0.0"]),
    ],
)
def test_clients_of_other_prefixes(key: str, pushed: str | None, entries: list[str]) -> None:
    network = key_network(key)
    assert network is not None
    prefixes = Prefixes(24, 56)
    assert commands.entry_to_push(network, prefixes) == pushed
    assert commands.entries_of(network, prefixes) == entries


@pytest.mark.parametrize(
    ("key", "network", "inside"),
    [
        ("192.0.2.7", "192.0.2.0/24", True),
        ("64:ff9b::c000:207", "192.0.2.0/24", True),
        ("64:ff9b::c000:307", "192.0.2.0/24", False),
        ("2001:db8::", "2001:db8::/32", True),
        ("2001:db8::", "::/0", True),
        ("192.0.2.7", "::/0", True),  # as in the lists
        ("2001:db8::", "0.0.0.0/0", False),
        ("a key", "::/0", False),
    ],
)
def test_an_entry_is_within_a_network_as_the_agent_counts(
    key: str, network: str, inside: bool
) -> None:
    parsed = key_network(network)
    assert parsed is not None
    assert commands.within(key, parsed) is inside


COMMAND = re.compile(
    r"(set table t_block key [0-9a-f:.]+ data\.gpt0 [0-9]+"
    r"|(clear|show) table t_block key [0-9a-f:.]+)"
    r"(;(clear|show) table t_block key [0-9a-f:.]+"
    r"|;set table t_block key [0-9a-f:.]+ data\.gpt0 [0-9]+)*"
)


@given(
    st.one_of(
        st.text(),
        st.sampled_from(EVIL),
        st.ip_addresses().map(str),
        st.tuples(st.ip_addresses(), st.text(max_size=9)).map(lambda pair: f"{pair[0]}{pair[1]}"),
    ),
    st.integers(),
)
def test_no_key_writes_a_command_of_its_own(key: str, until: int) -> None:
    network = key_network(key)
    if network is None:
        return
    entries = commands.entries_of(network, Prefixes())
    pushed = commands.entry_to_push(network, Prefixes())
    wanted = [commands.show_entries(entries), *map(commands.clear_entry, entries)]
    wanted += [commands.set_entry(pushed, until)] if pushed else []
    for command in wanted:
        assert COMMAND.fullmatch(command), command


def test_lines_fit_into_the_buffer_of_haproxy() -> None:
    wanted = [commands.clear_entry(f"2001:db8::{n:x}") for n in range(1000)]
    lines = list(commands.batches(wanted))
    assert max(map(len, lines)) <= commands.MAX_COMMAND
    assert ";".join(lines) == ";".join(wanted)
