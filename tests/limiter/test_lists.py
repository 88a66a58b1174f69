from __future__ import annotations

import os
from ipaddress import ip_network
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.config import load
from ratelimit.engine.networks import Networks
from ratelimit.exceptions import ConfigError
from ratelimit.limiter.keys import parse_network
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.lists import ListFile, Lists, read_lists
from ratelimit.model import Limit
from ratelimit.steps import finish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read(
    allow: Sequence[str], deny: Sequence[str], allow_files: Sequence[str], deny_files: Sequence[str]
) -> Lists:
    allowed, denied = ([ListFile.read(file) for file in some] for some in (allow_files, deny_files))
    return finish(read_lists(allow, deny, allowed, denied))


def test_a_file_has_one_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "deny.lst"
    file.write_text("# bad ones\n192.0.2.0/24\t# all of them\n\n 2001:db8::1 \r\n", "utf-8-sig")
    lists = read([], ["198.51.100.1"], [], [str(file)])
    assert (lists.allow, lists.deny) == (0, 3)
    limiter = Limiter([Limit()], 8, lists=lists)
    for key, found in {
        "192.0.2.255": "deny",
        "192.0.3.0": "",
        "2001:db8::1": "deny",
        "2001:db8::2": "",
        "2001:db8::/64": "mixed",
        "198.51.100.1": "deny",
        "::ffff:198.51.100.1": "deny",
        "a string": "",
    }.items():
        assert limiter.listed(key) == found


def test_who_is_allowed_is_not_denied() -> None:
    lists = read(["10.1.0.0/16"], ["10.0.0.0/8", "10.1.2.0/24"], [], [])
    limiter = Limiter([Limit()], 8, lists=lists)
    assert limiter.listed("10.1.2.3") == "allow"
    assert limiter.listed("10.2.0.0") == "deny"


def test_all_that_is_wrong_in_files_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "allow.lst"
    file.write_text("192.0.2.1\nexample.com\n192.0.2.1/24\n")
    bad = tmp_path / "bad.lst"
    bad.write_bytes(b"\xff\n" * 20)
    with pytest.raises(ConfigError) as caught:
        read([], [], [str(file), str(tmp_path / "none")], [str(bad)])
    problems = caught.value.problems
    assert problems[0] == f"{file}: line 2: not an address or a network: 'example.com'"
    assert problems[1].startswith(f"{file}: line 3: '192.0.2.1/24' has bits set")
    assert problems[2] == f"lists.allow_files.1: {tmp_path / 'none'}: No such file or directory"
    assert problems[-1] == f"{bad}: line 20: the last of 10 more errors"
    assert len(problems) == 14


def test_an_entry_that_is_wrong_is_told_with_its_place_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ratelimit.toml"
    file.write_text('[lists]\nallow = ["192.0.2.1"]\ndeny = ["192.0.2.2", "example.com"]\n')
    with pytest.raises(ConfigError) as caught:
        load(file).read_lists()
    wrong = "not an address or a network: 'example.com'"
    assert caught.value.problems == [f"{file}: lists.deny.1: {wrong}"]
    monkeypatch.setenv("RATELIMIT_LISTS__DENY", "example.com")
    with pytest.raises(ConfigError) as caught:
        load(file).read_lists()
    assert caught.value.problems == [f"environment: RATELIMIT_LISTS__DENY: {wrong}"]


def test_what_is_no_file_of_lines_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    long = tmp_path / "long.lst"
    long.write_text("192.0.2.1\n" + "1" * 100_000)
    with pytest.raises(ConfigError) as caught:
        read([], [], [str(pipe), "/dev/zero", str(long), "a\0b"], [])
    assert caught.value.problems == [
        f"lists.allow_files.0: {pipe}: not a file",
        "lists.allow_files.1: /dev/zero: not a file",
        f"lists.allow_files.2: {long}: line 2 is too long",
        "lists.allow_files.3: a\0b: embedded null byte",
    ]


def test_a_file_that_changes_while_it_is_read_is_not_taken() -> None:
    # The kernel says of it that it is empty, and then there is something.
    file = "/proc/self/status"
    with pytest.raises(ConfigError) as caught:
        read([], [], [], [file])
    [problem] = caught.value.problems
    assert problem.startswith(f"lists.deny_files.0: {file}: changed while it was read")


ADDRESSES = st.one_of(
    st.sampled_from(["0.0.0.0", "255.255.255.255", "::", "::ffff", "ffff::", "2001:db8::1"]),
    st.ip_addresses(v=4, network="192.0.2.0/27").map(str),
    st.ip_addresses(v=6, network="2001:db8::/122").map(str),
    st.ip_addresses().map(str),
)


def is_network(text: str) -> bool:
    try:
        parse_network(text)
    except ValueError:
        return False
    return True


WRITTEN = st.builds(
    lambda address, bits: str(
        ip_network(f"{address}/{bits * (4 if ':' in address else 1)}", False)
    ),
    ADDRESSES,
    st.integers(0, 32),
).filter(is_network)


@given(st.lists(WRITTEN, max_size=6), st.lists(WRITTEN, max_size=6), st.lists(ADDRESSES))
def test_networks_of_lists_are_apart_and_say_the_same(
    allow: list[str], deny: list[str], asked: list[str]
) -> None:
    lists = finish(read_lists(allow, deny, [], []))
    networks = [(ip_network(text), value) for text, value in lists.networks()]
    for version in (4, 6):
        ends = sorted((int(one[0]), int(one[-1])) for one, _ in networks if one.version == version)
        assert all(last < first for (_, last), (first, _) in pairwise(ends)), "none overlap"
    engine = Networks(lists.starts, lists.values)
    for text in [*asked, *(entry.partition("/")[0] for entry in allow + deny)]:
        address = parse_network(text).network_address
        number = int(address) | (0xFFFF << 32 if address.version == 4 else 0)
        found = [value for one, value in networks if address in one]
        expected = engine.value(number >> 64, number & (1 << 64) - 1)
        assert found == ([expected] if expected else [])
