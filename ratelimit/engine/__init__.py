"""Finding, counting and limiting clients; no protocol and no I/O.

``key`` identifies a client, ``table`` counts its hits, ``rule`` holds a limit, and ``check`` uses
all three for a query. The package compiles (see the .pxd files) and also runs as plain Python; time
is always an argument.
"""

from __future__ import annotations


def compiled() -> bool:
    """Return whether the request path is compiled; it is compiled as a whole or not at all."""
    # Imported here to avoid an import cycle.
    from ratelimit.engine import check

    return not check.__file__.endswith(".py")
