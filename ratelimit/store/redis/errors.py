"""Explains a server's errors to an operator."""

from __future__ import annotations

import re

from redis.exceptions import RedisError

from ratelimit.store.redis.url import Endpoint
from ratelimit.tls import tls_problem

OLDEST_REDIS = (7, 0)
OLDEST_VALKEY = (7, 2)

_SHOWN = 120  # characters of a server's error text

_LOGIN = "Redis refuses the user or the password; correct store.url or Redis's ACL"

_LOGIN_MISSING = "Redis requires a password; set it in store.url or in a password_file"
_FORBIDDEN = "Redis's ACL does not permit what the agent needs"
_FOREIGN = "another program uses this key; it is not changed: choose another store.prefix"
_MEMORY = (
    "Redis is out of memory; raise maxmemory, and keep maxmemory-policy noeviction, because an "
    "evicted key is a lost block"
)
_CERTIFICATE = "set its CA with ?cacert=, or its name with store.tls_server_name"
_TOO_OLD = f"too old; {OLDEST_REDIS[0]}.{OLDEST_REDIS[1]} or later is required"

# By the first word of an error, or by a part of its text; the first match is used.
_HINTS = (
    ("WRONGPASS", _LOGIN),
    ("invalid username-password pair", _LOGIN),
    ("invalid password", _LOGIN),
    ("without any password configured", "Redis has no password; remove it from store.url"),
    ("NOAUTH", _LOGIN_MISSING),
    ("Authentication required", _LOGIN_MISSING),
    ("NOPERM", _FORBIDDEN),
    ("has no permissions", _FORBIDDEN),
    ("executing the script can't", _FORBIDDEN),
    ("FOREIGN", _FOREIGN),
    ("WRONGTYPE", _FOREIGN),
    ("READONLY", "this is a replica; use the primary, or redis+sentinel://"),
    ("MASTERDOWN", "a replica without its primary"),
    ("OOM", _MEMORY),
    ("MISCONF", "Redis can't save to its disk and refuses writes"),
    ("LOADING", "Redis is loading its data"),
    ("max number of clients", "Redis accepts no more clients; raise maxclients"),
    ("MOVED", "this is a cluster; use redis+cluster://"),
    ("CLUSTERDOWN", "the cluster is not complete"),
    ("cluster support disabled", "this is not a cluster; use redis://"),
    ("unknown command", _TOO_OLD),
    ("NOPROTO", _TOO_OLD),
)


def explain(error: BaseException, where: Endpoint | str) -> str:
    """Return one line: the server, the problem, and the remedy if known."""
    if problem := tls_problem(error, _CERTIFICATE):
        return f"{where}: TLS: {problem}"
    text = str(error)
    if isinstance(error, RedisError) and error.status_code:
        text = f"{error.status_code} {text}"
    # Since 7.0 an error of a script ends with its position.
    text = re.sub(r",? script: [0-9a-f]{40}.*$", "", text).strip().rstrip(".")
    system = error.__cause__ or error.__context__
    if isinstance(system, OSError) and system.strerror:
        return f"{where}: {system.strerror}"
    for word, hint in _HINTS:
        if text.startswith(f"{word} ") or (word in text and not word.isupper()):
            return f"{where}: {hint} ({text[:_SHOWN]})"
    return f"{where}: {text or type(error).__name__}"


def too_old(server: str, version: str) -> str:
    """Return what is wrong with this kind and version of server; empty if it is supported."""
    oldest = {"redis": OLDEST_REDIS, "valkey": OLDEST_VALKEY}.get(server)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if oldest is None or numbers >= oldest:
        return ""
    return f"{server} {version} is too old; {oldest[0]}.{oldest[1]} or later is required"
