"""A limit in the form for the request path: precomputed numbers, and its counters.

The window is divided into ``SUB_WINDOWS`` parts. At a time in part ``tick``, the parts ``tick -
15`` to ``tick`` are wholly in the window, and of part ``tick - 16`` the share ``weight / 2^20``. A
client has these 17 counters in a ring; ``bucket`` and ``oldest`` are the indices of the first and
the last. They depend on time only and are computed once for all checks of a read.
"""

from __future__ import annotations

from ratelimit.engine.layout import M64, RING, WEIGHT_BITS
from ratelimit.model import SUB_WINDOWS, Limit
from ratelimit.notation import SECOND

_MAX_NAME = 64  # an ACK with the name fits into the smallest frame
_MAX_WINDOW = SUB_WINDOWS << 63 - WEIGHT_BITS  # keeps at() within 64 bits; 39 hours
_NEVER = 1 << 62


class Rule:
    """One limit; ``index`` identifies its clients in the table.

    ``place`` is its index among the limits in force. ``allowed``, ``throttled``, ``blocked`` and
    ``denied`` (by a list) count verdicts since the start, also in shadow mode; ``asked`` are those
    about which HAProxy has asked, instead of counting itself. ``seen`` and
    ``refused`` count different clients of the present minute, ``seen_before`` and
    ``refused_before`` those of the previous one. ``fused`` is true while the fuse is blown.
    ``told`` are the constant variables of answers for a limit with ``told_rate``, for ``spop.ack``.
    """

    def __init__(self, limit: Limit, index: int) -> None:
        if not 1 <= len(limit.name.encode()) <= _MAX_NAME:
            raise ValueError(f"the name of a limit must have 1 to {_MAX_NAME} bytes")
        if not SUB_WINDOWS <= limit.window <= _MAX_WINDOW:
            raise ValueError(f"a window must have {SUB_WINDOWS} to {_MAX_WINDOW} ns")
        self.name = limit.name.encode()
        self.name_size = len(self.name)
        self.index = index
        self.place = 0
        self.sub_window = limit.window // SUB_WINDOWS
        # In whole seconds, for answers; 0 if it is not whole.
        self.seconds = limit.window // SECOND if limit.window % SECOND == 0 else 0
        # Seconds after which a client without hits has its whole limit again.
        self.refill = -(-limit.window // SECOND)
        self.nodes = 1
        self.share = _NEVER
        self.near = _NEVER
        self.fused = False
        self.told = b""
        self.told_rate = 0
        self.change(limit)
        self.now = 0
        self.tick = 0
        self.elapsed = 0
        self.bucket = 0
        self.oldest = 0
        self.weight = 0
        self.asked = 0
        self.allowed = 0
        self.throttled = 0
        self.blocked = 0
        self.denied = 0
        self.seen = 0
        self.refused = 0
        self.seen_before = 0
        self.refused_before = 0

    def change(self, limit: Limit) -> None:
        """Change a limit of the same name and window; its counts are kept."""
        self.limit = limit
        self.rate = limit.rate
        self.strict = limit.strict
        self.shadow = limit.shadow
        self.headers = limit.headers
        self.ipv4_mask = (M64 << (32 - limit.ipv4_prefix)) & M64
        mask = ((1 << 128) - 1) << (128 - limit.ipv6_prefix)
        self.hi_mask = mask >> 64 & M64
        self.lo_mask = mask & M64
        self.now = 0  # recompute the weight
        self.blow(self.fused)

    def blow(self, fused: bool) -> None:
        """Blow or reset the fuse."""
        self.fused = fused
        self.ladder = bool(self.limit.block) and not fused

    def minute(self) -> None:
        """Begin a new minute."""
        self.seen_before = self.seen
        self.refused_before = self.refused
        self.seen = 0
        self.refused = 0

    def divide(self, nodes: int) -> None:
        """Share clients with ``nodes`` nodes, including this one; 1 shares none.

        A client is shared above ``share`` hits, so that an unshared client has at most half of the
        limit on all nodes together. Above ``near``, nodes are notified again, because the client
        may have reached further nodes; below it, even their unsent hits are within the limit.
        """
        self.nodes = nodes
        self.share = self.limit.rate // (2 * nodes) if nodes > 1 else _NEVER
        self.near = self.limit.rate - (nodes - 1) * self.share - 1 if nodes > 1 else _NEVER

    def share_all(self, shared: bool) -> None:
        """Share every client, whatever its hits, or none."""
        self.share = 0 if shared else _NEVER

    def at(self, now: int) -> None:
        """Set the time, in epoch nanoseconds."""
        if now == self.now:
            return
        self.now = now
        self.tick = now // self.sub_window
        self.elapsed = now - self.tick * self.sub_window
        self.bucket = self.tick % RING
        self.oldest = (self.bucket + 1) % RING
        if self.strict:
            self.weight = 1 << WEIGHT_BITS
        else:
            self.weight = ((self.sub_window - self.elapsed) << WEIGHT_BITS) // self.sub_window
