"""Which of several agents counts for an HAProxy: the one that holds the lease of its name.

The agents of one HAProxy hear the same counts. With a shared store, one of them holds a lease on
the name of the HAProxy and counts; the others keep the last counters only, and continue from them
when the lease ends. An agent is known by the name that HAProxy has for it (``agent.peer_name``), so
a process that takes the place of another one of this name continues at once.

- An agent that has counted holds its lease for LIFE, but counts for MARGIN less. After that, as
  after a pause of the process, it reads no counts until the store has answered or is lost.
- While the store is lost, everything stays as it was. An agent that does not know who counts,
  counts. Afterwards the agents that have counted ask first, the others after LIFE.
- An agent that has counted while the store was lost, and learns that another one has had the lease
  meanwhile, forgets all its hits: the other one has counted them too. Hits may be lost rather than
  counted twice.
- An agent that takes over from another one counts as soon as it knows all entries, and PAUSE after
  it got the lease: until then it may read what the other one has counted.

Without a shared store, each agent counts. Times are the fleet's, in epoch nanoseconds.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ratelimit.notation import MILLISECOND, SECOND
from ratelimit.peers.sources import Origin

LIFE = 3 * SECOND
MARGIN = SECOND // 2
PAUSE = 100 * MILLISECOND


@dataclass(slots=True)
class Lease:
    """What an agent knows of the lease for one HAProxy.

    Attributes:
        origin: the HAProxy; ``origin.counting`` is the result.
        agreed: the agents agree who counts; until then nothing is read.
        holder: the agent that had the lease last; empty if that is not known.
        until: the agent may count up to this time.
        begins: from this time on it counts, because it takes over from another one; else 0.
        alone: it has counted since the store was lost.
    """

    origin: Origin
    agreed: bool = False
    holder: str = ""
    until: int = 0
    begins: int = 0
    alone: bool = False


class Leases:
    """The leases of an agent, by the names of HAProxies.

    ``shared`` is whether the store gives leases, ``up`` whether it can be reached.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.shared = False
        self.up = False
        self.by_name: dict[str, Lease] = {}
        self._returned = 0

    def begin(self, origin: Origin, now: int) -> Lease:
        """Begin a session with an HAProxy."""
        lease = self.by_name.setdefault(origin.name, Lease(origin))
        if not self.shared:
            lease.agreed = True
        elif not self.up:
            self._guess(lease)
        elif lease.holder != self.agent or now >= lease.until:
            lease.agreed = origin.counting = False
        return lease

    def reads(self, lease: Lease, now: int) -> bool:
        """Return whether counts of an HAProxy may be read now; else ask the store."""
        if not lease.agreed:
            return False
        sure = not (self.shared and self.up and lease.origin.counting)
        return sure or now < lease.until

    def lost(self) -> None:
        """The store can't be reached."""
        self.up = False
        for lease in self.by_name.values():
            self._guess(lease)

    def back(self, now: int) -> None:
        """The store can be reached again."""
        self.up = True
        self._returned = now

    def wanted(self, connected: Container[str], now: int) -> list[str]:
        """Return the HAProxies for which the store must be asked now."""
        late = now - self._returned >= LIFE
        return [
            name
            for name, lease in self.by_name.items()
            if lease.alone or (name in connected and (late or self._is_due(lease)))
        ]

    def unwanted(self, connected: Container[str]) -> list[str]:
        """Return the HAProxies whose leases must be given back."""
        found = [
            name
            for name, lease in self.by_name.items()
            if name not in connected and lease.until and lease.holder == self.agent
        ]
        for name in found:
            self.by_name[name].until = 0
        return found

    def answered(self, name: str, before: str, holder: str, asked: int, now: int) -> bool:
        """Take the answer of the store to a question at ``asked``; return whether to forget hits.

        ``before`` had the lease last, ``holder`` has it now; empty is none.
        """
        lease = self.by_name[name]
        others = before not in ("", self.agent)
        forget = lease.alone and others
        lease.agreed = True
        lease.alone = False
        lease.holder = holder
        if holder != self.agent:
            lease.origin.counting = False
            lease.until = lease.begins = 0
        else:
            lease.until = asked + LIFE - MARGIN
            if others:
                lease.origin.counting = False
                lease.begins = now + PAUSE
            elif not lease.begins:
                lease.origin.counting = True
        return forget

    def start(self, now: int) -> bool:
        """Start to count where it is time; return whether others are waiting."""
        waiting = False
        for lease in self.by_name.values():
            if lease.begins and now >= lease.begins and lease.origin.synced:
                lease.begins = 0
                lease.origin.counting = True
            waiting = waiting or lease.begins > 0
        return waiting

    def _guess(self, lease: Lease) -> None:
        """Decide without the store."""
        if not lease.agreed:
            lease.agreed = True
            lease.origin.counting = lease.holder in ("", self.agent)
        lease.alone = lease.alone or lease.origin.counting

    def _is_due(self, lease: Lease) -> bool:
        return not lease.agreed or lease.origin.counting or lease.holder == self.agent
