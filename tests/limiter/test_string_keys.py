"""Keys that are not addresses: what is kept of them, and that any form shown is the same key."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit.limiter.key_input import Given, read, told
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.string_keys import masked, string_text, wire_for, wire_of
from ratelimit.model import EVERY_LIMIT, Block, Entry, Lift, Limit
from ratelimit.steps import finish
from tests.helpers import wire
from tests.helpers.forms import responder
from tests.helpers.strings import HASH, KEY, SECRET, START, limiter, strike

if TYPE_CHECKING:
    from collections.abc import Sequence


TEXTS = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.text(min_size=1, max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text("0123456789abcdef.:/*-%[] x~", min_size=1, max_size=60).map(str.encode),
    st.ip_addresses().map(lambda address: str(address).encode()),
)


def load(made: Limiter, blocks: Sequence[Block]) -> None:
    finish(made.load(blocks))


def old_block(key: str, limit: str = "default", text: str = "") -> Block:
    return Block(key, limit, "over 1 in 1s", 1, START, START + 600, text=text)


@pytest.mark.parametrize(
    ("string", "hint"),
    [
        (KEY, "sk_l"),
        (b"0123456789abcdef", "0123"),
        (b"0123456789abcde", ""),  # too short to spare any
        (b"ab cdefghijklmnopq", "ab"),
        (b"/path/of/sixteen", ""),
        ("schlüssel-des-kunden".encode(), "schl"),
        ("üüüüüüüüüüüü".encode(), ""),
        (b"\xff" * 20, ""),
        (b"a;b\n" * 20, "a"),
    ],
)
def test_a_secret_string_is_a_hint_and_a_hash(string: bytes, hint: str) -> None:
    assert string_text(string, HASH, secret=True) == hint + HASH


@pytest.mark.parametrize(
    ("string", "shown"),
    [
        (b"alice", "alice"),
        ("ünïcode".encode(), "ünïcode"),
        (b"42", "42"),
        (b"a" * 100, "a" * 100),
        (b"a" * 101, "a" * 100 + HASH),
        (b"not \xff UTF-8", "not \\xff UTF-8" + HASH),
        (b"evil\x1b[2J", "evil\\x1b[2J" + HASH),
        (b" a", "a" + HASH),
        (b"like" + HASH.encode(), f"like{HASH}{HASH}"),
        # Given back without the hash, these would be addresses or mistakes.
        (b"192.0.2.7", "192.0.2.7" + HASH),
        (b"0.0.0.0/0", "0.0.0.0/0" + HASH),
        (b"192.0.2.*", "192.0.2.*" + HASH),
    ],
)
def test_a_string_that_is_no_secret_is_itself(string: bytes, shown: str) -> None:
    assert string_text(string, HASH, secret=False) == shown


@given(TEXTS, st.booleans())
@example(b"~", False)
@example(b"like~" + b"a" * 32, False)
@example(b"0.0.0.0/0", False)
@example(b"not \xff UTF-8", False)
@example(b" a", False)
@example(b"\xc2\xa0a", False)
def test_any_form_that_is_shown_is_the_same_key(string: bytes, secret: bool) -> None:
    made = limiter(Limit(secret=secret))
    key = made.string_key(string)
    shown = string_text(string, key, secret)
    assert shown.isprintable()
    again = read(made, shown)
    assert again.key == key
    assert again.shown(secret) in (shown, key)
    # Also what is shown of what was given.
    assert read(made, again.shown(secret)).key == key
    assert read(made, again.shown(True)).key == key
    assert read(made, key).key == key


@given(TEXTS)
def test_no_more_than_a_hint_is_told(string: bytes) -> None:
    made = limiter()
    shown = string_text(string, made.string_key(string), secret=True)
    assert re.fullmatch("[A-Za-z0-9_.-]{0,4}~[0-9a-f]{32}", shown)
    given = string.decode("utf-8", "replace")
    assert re.fullmatch("[A-Za-z0-9_.-]{0,4}~[0-9a-f]{32}|[0-9a-f.:]+(/[0-9]+)?", told(made, given))


@given(st.ip_addresses(), st.integers(1, 32), st.integers(1, 128))
def test_an_address_that_is_shown_is_the_same_key(
    address: object, ipv4_prefix: int, ipv6_prefix: int
) -> None:
    made = limiter(Limit(rate=1, ipv4_prefix=ipv4_prefix, ipv6_prefix=ipv6_prefix, fuse=0))
    block = strike(made, wire.text(str(address)))
    assert block.text == ""
    assert read(made, block.shown) == Given(block.key)


@pytest.mark.parametrize(
    ("key", "string"),
    [
        (wire.text(KEY.decode()), KEY),
        (wire.binary(KEY), KEY),
        (wire.int64(1234567890123456789), b"1234567890123456789"),
    ],
)
def test_no_block_has_the_string_of_a_limit(key: bytes, string: bytes) -> None:
    made = limiter(Limit(rate=1), Limit(name="open", rate=1, secret=False))
    block = strike(made, key)
    assert block.key == made.string_key(string)
    assert block.shown == string_text(string, block.key, secret=True)
    assert read(made, block.key).shown(True) == block.shown, "with the hint, if that is known"
    assert string.decode() not in repr(block) + repr(list(made.blocklist))
    shown = strike(made, key, "open")
    assert (shown.key, shown.shown) == (block.key, string.decode())


def test_a_string_that_is_a_network_blocks_no_network() -> None:
    made = limiter(Limit(rate=1), Limit(name="open", rate=1, secret=False))
    block = strike(made, wire.text("0.0.0.0/0"), "open")
    assert block.key.startswith("~")
    assert not finish(made.explain("0.0.0.0/0"))[1].block


def test_a_secret_that_is_not_kept_blocks_no_string() -> None:
    made = Limiter([Limit(rate=1)], 1000, SECRET, keyed=False)
    made.tick(START * 1_000_000_000)
    frame = wire.notify(wire.message("default", key=wire.text("alice"), hits=wire.int64(2)))
    responder(made.engine).answer(frame, 0, 16380)
    [ack] = wire.frames(responder(made.engine).take())
    assert ack.items["reason"] == "throttle"
    assert not len(made.blocklist)
    assert strike(made, wire.text("192.0.2.7")).key == "192.0.2.7"
    made.rekey(bytes(16))
    load(made, [])
    assert strike(made, wire.text("alice")).key == made.string_key(b"alice")


@pytest.mark.parametrize(
    ("secret", "old", "shown"),
    [
        (True, KEY.decode(), "sk_l"),
        (True, "alice", ""),
        (True, "long " * 40 + HASH, "long"),
        (True, "1.2.3.4.5", ""),
        (False, "alice", "alice"),
        (False, "long " * 40 + HASH, ("long " * 40)[:100]),
    ],
)
@pytest.mark.parametrize("limit", ["default", EVERY_LIMIT])
def test_entries_of_earlier_versions_hold_and_are_hidden(
    secret: bool, old: str, shown: str, limit: str
) -> None:
    made = limiter(Limit(secret=secret))
    load(made, [old_block(old, limit)])
    [block] = made.blocklist
    assert block.key == (HASH if HASH in old else made.string_key(old.encode()))
    assert block.shown == (shown if shown == "alice" else shown + block.key)
    if HASH not in old:
        assert read(made, old).key == block.key
        assert finish(made.explain(block.key))[0].until == START + 600
    made.lift(Lift(old, limit, block.order + 1, START + 600))
    assert not len(made.blocklist), "lifted by a version that has it under its string"


def test_a_string_is_not_hashed_by_a_secret_that_is_not_kept() -> None:
    made = Limiter([Limit()], 1000, SECRET, keyed=False)
    made.tick(START * 1_000_000_000)
    block = replace(old_block(HASH), text="alice")
    load(made, [block])
    assert list(made.blocklist) == [block]


def test_a_limit_that_becomes_secret_hides_what_it_showed() -> None:
    names = Limit(rate=1, secret=False)
    made = limiter(names)
    strikes = [strike(made, wire.text(name)) for name in ("alice", KEY.decode())]
    made.apply(Block(made.string_key(b"bob"), EVERY_LIMIT, "", 0, START, START + 60, text="bob"))
    hidden: list[Entry] = []
    made.on_made.append(hidden.append)
    finish(finish(made.reload([replace(names, secret=True)], made.lists)))
    assert {block.shown for block in made.blocklist} == {
        made.string_key(b"alice"),
        "sk_l" + made.string_key(KEY),
        made.string_key(b"bob"),
    }
    assert {one.key: one.shown for one in hidden if isinstance(one, Block)} == {
        block.key: block.shown for block in made.blocklist
    }, "so that the store does not show them either"
    for block in strikes:
        assert finish(made.explain(block.key))[0].until == block.until, "in force as before"
    finish(finish(made.reload([names], made.lists)))
    assert "alice" not in repr(list(made.blocklist)), "what is hidden is not known any more"


def test_a_string_that_is_shown_is_known_by_another_secret() -> None:
    made = limiter(Limit(secret=False))
    block = replace(old_block(HASH), text="alice")
    made.rekey(bytes(range(16)))
    load(made, [block])
    [held] = made.blocklist
    assert held.key == made.string_key(b"alice") != HASH
    assert finish(made.explain(held.key))[0].until == block.until


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        (HASH, HASH),
        (KEY.decode(), "sk_l... (22 characters)"),
        ("long " * 40 + HASH, HASH),
        ("half\ud800", "half\ud800"),
    ],
)
def test_a_damaged_entry_is_named_without_the_string(key: str, shown: str) -> None:
    assert masked(key) == shown


def test_a_digest_is_kept_as_the_key_of_haproxys_tables_and_a_text_never_is() -> None:
    digest = sha256(b"sk_live_1").digest()
    assert wire_of(digest) == digest.hex()
    assert wire_of(b"an API key with 32 bytes in all.") == ""
    assert wire_of(digest[:31]) == ""


def test_only_a_limit_whose_keys_are_digests_has_them_in_its_blocks() -> None:
    for digests in ({"default"}, {"other"}):
        made = limiter()
        made.digests |= digests
        digest = sha256(b"sk_live_1").digest()
        block = strike(made, wire.binary(digest))
        assert block.wire == (digest.hex() if "default" in digests else "")


def test_a_string_that_an_operator_gave_has_the_key_of_its_digest_if_that_is_the_client() -> None:
    made = limiter()
    digest = sha256(b"sk_live_1").digest()
    key = made.string_key(digest)
    assert wire_for(b"sk_live_1", key, made.string_key) == digest.hex()
    assert wire_for(b"sk_live_1", made.string_key(b"sk_live_1"), made.string_key) == ""


def test_an_operator_names_a_client_by_its_string_where_haproxy_has_its_digest() -> None:
    made = limiter()
    string = "sk_live_1234567890"
    digest = made.string_key(sha256(string.encode()).digest())
    assert read(made, string).key == made.string_key(string.encode())
    made.digests.add("default")
    given_key = read(made, string)
    assert given_key.key == digest
    assert given_key.shown(True) == f"sk_l{digest}" == told(made, string)
    # A limit that takes the string itself from SPOE still has its clients.
    strike(made, wire.text(string))
    assert read(made, string).key == made.string_key(string.encode())


def test_a_digest_is_shown_as_its_hash() -> None:
    digest = sha256(b"sk_live_1").digest()
    assert string_text(digest, HASH, True) == string_text(digest, HASH, False) == HASH
