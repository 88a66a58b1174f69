"""Where blocks outlive the process and, with Redis, where all nodes share one count.

``base`` says what a store is, ``memory`` is the embedded one, ``redis`` the shared one. A store is
never on the request path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit.exceptions import ConfigError
from ratelimit.store.base import Events, Node, Store, StoreError
from ratelimit.store.file import state_folder
from ratelimit.store.memory import MemoryStore
from ratelimit.store.slots import SlotFile
from ratelimit.store.url import parse

if TYPE_CHECKING:
    from ratelimit.store.redis import RedisStore

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
    """Return the store of a URL, not started.

    ``replicas`` is how many of a shared store's must have what a person changes before that is
    acknowledged; ``secret`` is that by which all nodes sign the shared blocklist. Raises
    ConfigError if the URL can't be meant so, or names files that are not there.
    """
    if url == MEMORY:
        return MemoryStore(state_dir, events, node)
    try:
        target = parse(url, tls_server_name)
    except ValueError as error:
        raise ConfigError([f"store.url: {error}"]) from error
    # Takes a tenth of a second to import, which memory:// needs not.
    from ratelimit.store.redis import RedisStore

    return RedisStore(
        target,
        prefix,
        events,
        node=node,
        journal=SlotFile(state_folder(state_dir), target, prefix, events.forget),
        journal_needed=bool(state_dir),
        replicas=replicas,
        secret=secret,
    )
