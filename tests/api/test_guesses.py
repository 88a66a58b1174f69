"""How long a peer waits that gives wrong tokens; time is an argument."""

from __future__ import annotations

from ratelimit.api.guesses import FORGOTTEN, FREE, LONGEST, PEERS, Guesses


def test_the_wait_doubles_up_to_a_bound() -> None:
    guesses = Guesses()
    waits = []
    for number in range(2000):
        waits.append(guesses.wait("192.0.2.1", number))
        guesses.note("192.0.2.1", number)
    assert waits[: FREE + 5] == [0] * (FREE + 1) + [0.125, 0.25, 0.5, 1]
    assert set(waits[FREE + 5 :]) == {LONGEST}
    assert guesses.wait("192.0.2.2", 2000) == 0


def test_a_peer_that_stops_begins_again() -> None:
    guesses = Guesses()
    for _ in range(10):
        guesses.note("192.0.2.1", 0)
    assert guesses.wait("192.0.2.1", FORGOTTEN) == LONGEST
    assert guesses.wait("192.0.2.1", FORGOTTEN + 0.1) == 0
    guesses.note("192.0.2.1", FORGOTTEN + 0.1)
    assert guesses.wait("192.0.2.1", FORGOTTEN + 0.2) == 0


def test_addresses_of_one_network_are_one_peer() -> None:
    guesses = Guesses()
    for number in range(10):
        guesses.note(f"2001:db8::{number}", 0)
    assert guesses.wait("2001:db8:0:0:ffff::1", 0) == LONGEST
    assert guesses.wait("2001:db8:0:1::1", 0) == 0
    assert len(guesses) == 1


def test_peers_by_ipv4_on_a_socket_of_both_kinds_are_several() -> None:
    guesses = Guesses()
    for _ in range(10):
        guesses.note("::ffff:192.0.2.1", 0)
    assert guesses.wait("192.0.2.1", 0) == guesses.wait("::ffff:c000:201", 0) == LONGEST
    assert guesses.wait("::ffff:192.0.2.2", 0) == 0


def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    guesses = Guesses()
    for number in range(3 * PEERS):
        for _ in range(FREE + 1):
            guesses.note(f"10.0.{number >> 8}.{number & 255}", 0)
    assert len(guesses) == PEERS
    assert guesses.wait("10.0.0.0", 0) == 0
    last = 3 * PEERS - 1
    assert guesses.wait(f"10.0.{last >> 8}.{last & 255}", 0) > 0
