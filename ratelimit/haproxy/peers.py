"""HAProxy's peers in its runtime API, ``show peers`` (management.txt, section 9.3); no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

ESTABLISHED = "ESTA"
"""``Peer.status`` of a peer that has accepted HAProxy's hello."""

_SECTION = re.compile(r"0x\S+: \[[^]]*\] id=(\S+) ")
_PEER = re.compile(
    r" +0x\S+: id=(\S+)\((local|remote),(active|inactive)\) addr=(\S+) .*\blast_status=(\S+)"
)
_SHARED = re.compile(r" +0x\S+ local_id=\d+ remote_id=(\d+) ")
_TABLE = re.compile(r" +table:0x\S+ id=(\S+) ")


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer of an HAProxy.

    Attributes:
        name: as in HAProxy's configuration.
        local: whether it is HAProxy itself.
        active: whether there is a connection.
        address: ``HOST:PORT`` as HAProxy shows it; a unix socket has no useful form.
        status: of the last attempt: ``ESTA``, ``CONN``, ``HSHK``, ``RETR``, ``PROT``, ``VERS``,
            ``NAME``, ``UNKN`` or ``NONE``.
        tells: tables that the peer has announced, by the last part of their names.
    """

    name: str
    local: bool
    active: bool
    address: str
    status: str
    tells: tuple[str, ...] = ()

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return self.active and self.status == ESTABLISHED


@dataclass(frozen=True, slots=True)
class Section:
    """A section ``peers``, and the tables that its peers share, by the last part of their names."""

    name: str
    peers: tuple[Peer, ...] = ()
    tables: frozenset[str] = frozenset()

    @property
    def local(self) -> str:
        """The name that HAProxy has for itself; empty if the section does not have it."""
        return next((peer.name for peer in self.peers if peer.local), "")

    @property
    def remote(self) -> list[Peer]:
        """The other peers."""
        return [peer for peer in self.peers if not peer.local]


def read_peers(answer: Iterable[str]) -> tuple[Section, ...]:
    """Return the sections in the answer to ``show peers``."""
    sections: list[Section] = []
    announced = False
    for line in answer:
        if found := _SECTION.match(line):
            sections.append(Section(found[1]))
        elif not sections:
            continue
        elif found := _PEER.match(line):
            name, place, state, address, status = found.groups()
            peer = Peer(name, place == "local", state == "active", address, status)
            sections[-1] = replace(sections[-1], peers=(*sections[-1].peers, peer))
        elif found := _SHARED.match(line):
            announced = found[1] != "0"
        elif (found := _TABLE.match(line)) and sections[-1].peers:
            table = found[1].rpartition("/")[2]
            *others, peer = sections[-1].peers
            if announced:
                peer = replace(peer, tells=(*peer.tells, table))
            sections[-1] = replace(
                sections[-1], peers=(*others, peer), tables=sections[-1].tables | {table}
            )
    return tuple(sections)
