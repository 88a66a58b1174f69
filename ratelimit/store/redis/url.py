"""Parses and validates the URL of a store; opens only the files that it names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from ratelimit.model import Address
from ratelimit.tls import client_context

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379


class Kind(Enum):
    """How the server of a key is found."""

    SINGLE = "redis"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Endpoint(Address):
    """The address of a server, in the form for errors."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.path or self.host_port


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials for a server; a password in a file is read at each connection."""

    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""

    def read_password(self) -> str:
        """Return the password. Raises OSError if its file can't be read."""
        if self.password_file:
            return Path(self.password_file).read_text("utf-8").rstrip("\r\n")
        return self.password


@dataclass(frozen=True, slots=True)
class Target:
    """The servers of a store and how to connect to them.

    Attributes:
        endpoints: the server; for Sentinel and Cluster some servers, enough to find the others.
        service: name of the master in Sentinel.
        sentinel: credentials for the Sentinels themselves.
        tls: None without TLS.
        tls_key: file of the private key, or empty.
    """

    kind: Kind
    endpoints: tuple[Endpoint, ...]
    db: int = 0
    login: Login = Login()
    service: str = ""
    sentinel: Login = Login()
    tls: ssl.SSLContext | None = None
    tls_key: str = ""

    @property
    def has_password(self) -> bool:
        """Whether the URL contains a password."""
        return bool(self.login.password or self.sentinel.password)

    def secret_files(self) -> list[str]:
        """Return the files that contain a password or a key."""
        return [self.login.password_file, self.sentinel.password_file, self.tls_key]


_SCHEMES = {
    "redis": (Kind.SINGLE, False),
    "rediss": (Kind.SINGLE, True),
    "redis+sentinel": (Kind.SENTINEL, False),
    "rediss+sentinel": (Kind.SENTINEL, True),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
    "unix": (Kind.SINGLE, False),
    "redis+unix": (Kind.SINGLE, False),
}

_PARAMETERS = {"password_file"}
_TLS_PARAMETERS = {"cacert", "cert", "key"}
_SENTINEL_PARAMETERS = {"sentinel_user", "sentinel_password", "sentinel_password_file"}


def parse(url: str, tls_server_name: str = "") -> Target:
    """Parse a URL; with TLS, certificates must have the name ``tls_server_name``, if given.

    ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``, ``rediss://`` for the same with TLS,
    ``unix://[USER:PASSWORD@]/PATH``, ``redis+sentinel://HOST[:PORT],…/SERVICE[/DB]`` and
    ``redis+cluster://HOST[:PORT],…``, the last two also with ``rediss``. Query parameters:
    ``password_file``; with TLS ``cacert``, ``cert`` and ``key``, all PEM; for Sentinels with their
    own password ``sentinel_user``, ``sentinel_password``, ``sentinel_password_file``; with a unix
    socket ``db``.

    Raises ValueError; its text contains no password.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme not in _SCHEMES:
        schemes = ("memory", *_SCHEMES)
        raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in schemes)}")
    kind, tls = _SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    if "#" in rest or "#" in query:
        raise ValueError("write # in a user, a password or a path as %23")
    socket = scheme.endswith("unix")
    allowed = _PARAMETERS | (_TLS_PARAMETERS if tls else set())
    allowed |= _SENTINEL_PARAMETERS if kind is Kind.SENTINEL else {"db"} if socket else set()
    options = _options(query, allowed)
    # A password may contain any character, a host and a path none of these; a path may contain @.
    authority, slash, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    if password and "password_file" in options:
        raise ValueError("has both a password and password_file")
    login = _login(unquote(user), unquote(password), options.get("password_file", ""))
    if tls_server_name and not tls:
        raise ValueError("has no TLS, so store.tls_server_name can't be verified")
    context = _tls(options, tls_server_name) if tls else None
    key = options.get("key", options.get("cert", "")) if tls else ""
    if socket:
        if hosts or not path:
            raise ValueError(f"must have an absolute path: {scheme}:///run/redis/redis.sock")
        return Target(
            kind, (Endpoint(path=unquote(slash + path)),), _db(options.get("db", "")), login
        )
    default = SENTINEL_PORT if kind is Kind.SENTINEL else DEFAULT_PORT
    endpoints = tuple(_endpoint(host, default) for host in hosts.split(","))
    if kind is Kind.SINGLE:
        if len(endpoints) > 1:
            raise ValueError("has several servers; use redis+sentinel:// or redis+cluster://")
        return Target(kind, endpoints, _db(path), login, tls=context, tls_key=key)
    if kind is Kind.CLUSTER:
        if _db(path):
            raise ValueError("a cluster has only database 0")
        return Target(kind, endpoints, 0, login, tls=context, tls_key=key)
    service, _, db = path.partition("/")
    if not service:
        raise ValueError(f"must name the service: {scheme}://HOST/SERVICE")
    sentinel = _login(
        options.get("sentinel_user", ""),
        options.get("sentinel_password", ""),
        options.get("sentinel_password_file", ""),
    )
    return Target(kind, endpoints, _db(db), login, unquote(service), sentinel, context, key)


def _options(query: str, allowed: set[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("after the ? there must be name=value pairs joined by &") from None
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ValueError("has the same parameter twice")
    for name, value in pairs:
        if name not in allowed:
            raise ValueError(f"{name}: unknown parameter; known: {', '.join(sorted(allowed))}")
        if not value:
            raise ValueError(f"{name}: must not be empty")
    return options


def _login(user: str, password: str, password_file: str) -> Login:
    if user and not password and not password_file:
        raise ValueError("has a user without a password")
    login = Login(user, password, password_file)
    try:
        empty = not login.read_password()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"password_file: {password_file}: {why}") from None
    if password_file and empty:
        raise ValueError(f"password_file: {password_file}: empty")
    return login


def _tls(options: dict[str, str], name: str) -> ssl.SSLContext:
    cacert, cert, key = (options.get(name) for name in ("cacert", "cert", "key"))
    if key and not cert:
        raise ValueError("key: needs cert")
    try:
        # If a CA is given, no other is trusted.
        context = client_context(cacert, name)
    except OSError as error:
        raise ValueError(f"cacert: {cacert}: {_why(error)}") from None
    if cert:
        try:
            # Without a password, a protected key would prompt on the terminal.
            context.load_cert_chain(cert, key, password="")
        except OSError as error:
            shown = f"cert, key: {cert}, {key}" if key else f"cert: {cert}"
            raise ValueError(f"{shown}: {_why(error)}") from None
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not PEM, or certificate and key do not match ({error.reason or 'no certificate'})"
    return error.strerror or str(error)


def _endpoint(text: str, default_port: int) -> Endpoint:
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("write an IPv6 address as [2001:db8::1]:6379")
        port = port[1:]
    elif text.count(":") == 1:
        host, port = text.split(":")
    elif ":" in text:
        raise ValueError("write an IPv6 address as [2001:db8::1]:6379")
    if not host or any(sign.isspace() for sign in host):
        raise ValueError("must name a host")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("a port must be a number from 1 to 65535")
    return Endpoint(unquote(host), int(port) if port else default_port)


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("a database must be a number, as in redis://host:6379/0")
    return int(text or 0)
