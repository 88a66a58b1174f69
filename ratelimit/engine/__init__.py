"""The request path: bytes of NOTIFY frames in, bytes of ACK frames out.

``key`` finds out who asks, ``table`` remembers how often, ``rule`` says how much is too much, and
``answer`` runs all three over the frames of one read. All of it compiles (see the .pxd files beside
the modules) and all of it runs as plain Python; time is always an argument.
"""

from __future__ import annotations


def compiled() -> bool:
    """Whether the request path runs compiled; it is compiled as a whole or not at all."""
    # Imported here, because modules of this package are imported by others of it.
    from ratelimit.engine import check

    return not check.__file__.endswith(".py")
