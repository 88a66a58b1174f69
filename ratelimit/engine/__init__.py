"""How a client is found and counted, and when it is refused; no protocol and no I/O.

``key`` finds out who asks, ``table`` remembers how often, ``rule`` says how much is too much, and
``check`` runs all three for a query. All of it compiles (see the .pxd files beside
the modules) and all of it runs as plain Python; time is always an argument.
"""

from __future__ import annotations


def compiled() -> bool:
    """Whether the request path runs compiled; it is compiled as a whole or not at all."""
    # Imported here, because modules of this package are imported by others of it.
    from ratelimit.engine import check

    return not check.__file__.endswith(".py")
