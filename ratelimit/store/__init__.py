"""Stores: they keep blocks beyond the process, and with Redis all nodes share blocks and counts.

``base`` defines the interface, ``embedded`` is the store of a single node, ``redis`` the shared
one. A store is not on the request path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit.exceptions import ConfigError
from ratelimit.store.base import Events, Node, Store, StoreError
from ratelimit.store.embedded import MemoryStore
from ratelimit.store.journal_file import SlotFile, fleet_of
from ratelimit.store.redis.url import parse
from ratelimit.store.secret import KeptSecret
from ratelimit.store.sqlite import state_folder

if TYPE_CHECKING:
    from ratelimit.store.redis.store import RedisStore

__all__ = ["Events", "MemoryStore", "Node", "Store", "StoreError", "open_store"]

MEMORY = "memory://"


def open_store(
    url: str,
    *,
    prefix: str,
    state_dir: str,
    events: Events,
    node: Node,
    tls_server_name: str = "",
    replicas: int = 0,
    secret: bytes = b"",
) -> MemoryStore | RedisStore:
    """Return the store of a URL; it is not started.

    ``replicas`` is how many replicas of a shared store must confirm an operator's change;
    ``secret`` is the fleet's key for signing the blocklist. Raises ConfigError for an invalid URL
    or missing files; StartError if the secret of strings in the state directory is unusable.
    """
    folder = state_folder(state_dir)
    if url == MEMORY:
        kept = KeptSecret(folder / "strings.secret")
        kept.make()
        return MemoryStore(state_dir, events, node, kept)
    try:
        target = parse(url, tls_server_name)
    except ValueError as error:
        raise ConfigError([f"store.url: {error}"]) from error
    # The import takes a tenth of a second, which memory:// does not need.
    from ratelimit.store.redis.store import RedisStore

    kept = KeptSecret(folder / f"strings-{fleet_of(target, prefix)}.secret")
    kept.read()
    return RedisStore(
        target,
        prefix,
        events,
        node=node,
        kept=kept,
        journal=SlotFile(folder, target, prefix, events.forget),
        journal_needed=bool(state_dir),
        replicas=replicas,
        secret=secret,
    )
