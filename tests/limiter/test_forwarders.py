"""Peers in no list that speak for many clients are found, and bounded."""

from __future__ import annotations

from ipaddress import ip_address

from ratelimit.engine.layout import SIGHTS
from ratelimit.limiter.forwarders import FORGET, MANY, MAX_PEERS, Forwarders
from ratelimit.steps import finish

NOW = 1_700_000_000


class Node:
    """What an engine has seen, and who looks at it."""

    def __init__(self) -> None:
        self.seen = [0] * (3 * SIGHTS)
        self.sights = 0
        self.forwarders = Forwarders()

    def see(self, peer: str, *values: int) -> None:
        address = ip_address(peer)
        number = int(address) | (0xFFFF << 32 if address.version == 4 else 0)
        for via in values:
            at = 3 * (self.sights % SIGHTS)
            self.seen[at : at + 3] = number >> 64, number & (1 << 64) - 1, via
            self.sights += 1

    def look(self, now: int = NOW) -> list[str]:
        return [peer.key for peer in finish(self.forwarders.look(self.seen, self.sights, now))]

    @property
    def found(self) -> list[str]:
        return [peer.key for peer in self.forwarders.found()]


def test_a_peer_is_told_of_once_when_it_speaks_for_many() -> None:
    node = Node()
    node.see("192.0.2.1", *range(1, MANY))
    node.see("192.0.2.2", *[5] * 500)
    assert (node.look(), node.found) == ([], [])
    assert node.look(NOW + 1) == []
    node.see("192.0.2.1", 1, 2, 3)
    assert node.look(NOW + 2) == [], "none of them is another one"
    node.see("192.0.2.1", 77)
    assert node.look(NOW + 3) == ["192.0.2.1"]
    node.see("192.0.2.1", *range(900))
    node.see("2001:db8::1", *range(1, MANY + 1))
    assert node.look(NOW + 4) == ["2001:db8::1"], "by its own address"
    assert node.found == ["192.0.2.1", "2001:db8::1"]


def test_more_than_is_kept_is_a_sample() -> None:
    node = Node()
    node.see("192.0.2.1", *range(1, MANY + 1))
    node.see("192.0.2.2", *range(1, SIGHTS + 1))
    assert node.look() == ["192.0.2.2"]


def test_peers_are_forgotten_in_time() -> None:
    node = Node()
    node.see("192.0.2.1", *range(1, MANY + 1))
    node.see("192.0.2.2", *range(1, MANY))
    node.look()
    node.see("192.0.2.1", 5)
    node.look(NOW + FORGET - 1)
    node.see("192.0.2.2", MANY)
    assert node.look(NOW + FORGET) == ["192.0.2.2"], "it was still known"
    assert node.look(NOW + 2 * FORGET - 1) == []
    assert node.found == ["192.0.2.2"], "the other one has gone quiet"
    node.see("192.0.2.3", *range(1, MANY))
    node.look(NOW + 3 * FORGET)
    assert node.look(NOW + 4 * FORGET) == []
    node.see("192.0.2.3", MANY)
    assert node.look(NOW + 4 * FORGET) == [], "so many within the time, and no longer"
    assert node.found == []


def test_peers_are_bounded_and_those_that_speak_for_few_go_first() -> None:
    node = Node()
    node.see("192.0.2.1", *range(1, MANY + 1))
    node.look()
    for number in range(3 * MAX_PEERS):
        node.see(f"198.51.{number >> 8}.{number & 255}", 1)
        node.look()
    assert len(node.forwarders._peers) == MAX_PEERS
    assert node.found == ["192.0.2.1"]
    for number in range(2 * MAX_PEERS):
        node.see(f"203.0.{number >> 8}.{number & 255}", *range(1, MANY + 1))
        node.look()
    assert len(node.found) == MAX_PEERS


def test_it_is_done_in_small_steps() -> None:
    node = Node()
    node.see("192.0.2.1", *range(1, SIGHTS + 1))
    steps = node.forwarders.look(node.seen, node.sights, NOW)
    assert sum(1 for _ in steps) == SIGHTS // 64
