"""The configuration: a TOML file, overridden by environment variables, as typed models.

``load()`` reads it. All mistakes are reported in one ``ConfigError``, one line per mistake,
``source: field: problem``. Lines do not repeat values that may be secret.
"""

from __future__ import annotations

import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from ratelimit.agent.trust import trusted_network
from ratelimit.events.webhooks import EVENTS, EventName, Receiver
from ratelimit.exceptions import ConfigError
from ratelimit.files import is_exposed, read_secret
from ratelimit.limiter.lists import ListFile, Lists, read_lists
from ratelimit.model import (
    FUSE,
    MAX_OPEN,
    MAX_RATE,
    NAME,
    SHARED_CLIENTS,
    TABLE_PREFIX,
    UNKNOWN,
    Address,
    Counts,
    Limit,
)
from ratelimit.notation import (
    DAY,
    MILLISECOND,
    SECOND,
    format_duration,
    parse_duration,
    parse_host_port,
    parse_listen,
    parse_unix_path,
    printable,
)
from ratelimit.steps import Steps, finish
from ratelimit.store import MEMORY
from ratelimit.store.redis.url import parse
from ratelimit.tls import server_context, tls_problem

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails
    from pydantic_settings import PydanticBaseSettingsSource

_T = TypeVar("_T")

_ENV_PREFIX = "RATELIMIT_"
_ENV_DELIMITER = "__"
_ENV_LEVELS = 3  # LIMITS__LOGIN__RATE
_MAX_PROBLEMS = 20  # lines per error
_MAX_LINE = 500  # characters per line
_MAX_TRUSTED = 1000  # networks, which are searched at each connection
_MAX_PEERS = 1000  # names of HAProxies


def _duration(value: object) -> int:
    # A variable with the value 0 arrives as a number.
    if value == 0 and type(value) is int:
        return 0
    return parse_duration(value if isinstance(value, str) else "")


def _text(parse: Callable[[str], Address]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value if isinstance(value, str) else ""))


def _between(low: int, high: int, unit: int) -> Callable[[int], int]:
    """Return a check that a duration is from ``low`` to ``high`` and a multiple of ``unit``."""

    def check(value: int) -> int:
        if value % unit:
            raise ValueError(f"must be a multiple of {format_duration(unit)}")
        if not low <= value <= high:
            raise ValueError(f"must be from {format_duration(low)} to {format_duration(high)}")
        return value

    return check


def _sync_interval(value: int) -> int:
    return value if value == 0 else _between(MILLISECOND, 10 * SECOND, MILLISECOND)(value)


def _store_url(url: str) -> str:
    if url != MEMORY:
        parse(url)
    return url


def _webhook_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0
    except ValueError:
        named = False
    if not url.startswith(("http://", "https://")) or not named or not url.isprintable():
        raise ValueError("must be https://HOST[:PORT]/PATH, or http:// in a trusted network")
    if "@" in parts.netloc:
        raise ValueError("must have no user or password; receivers verify the signature")
    return url


def _host_name(name: str) -> str:
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", name):
        raise ValueError("must be a host name or an IPv4 address, without a port")
    return name.lower()


def _origin(text: str) -> str:
    """Return an origin in the form that browsers send (RFC 6454, section 6.2)."""
    found = re.fullmatch(
        r"(https?)://([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", text
    )
    if not found:
        raise ValueError('must be "https://HOST[:PORT]", without a path')
    scheme, host, port = found[1], found[2].lower(), found[3] or ""
    usual = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" + (f":{int(port)}" if port not in ("", usual) else "")


def _path(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError("names the home directory of an unknown user") from None
    return path


def _folder(path: str) -> str:
    if path and (not path.startswith("/") or "\0" in path):
        raise ValueError('must be the absolute path of a directory, such as "/run/ratelimit"')
    return path


def _peer_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,255}", name):
        raise ValueError("must have 1 to 255 of the characters A-Z a-z 0-9 _ . : -")
    return name


def _count_table(name: str) -> str:
    if name and not re.fullmatch(TABLE_PREFIX + NAME, name):
        raise ValueError(
            f'must be the name of a stick table that begins with "{TABLE_PREFIX}", '
            f'such as "{TABLE_PREFIX}default"'
        )
    return name


def _readable(path: str) -> str:
    if path:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
    return path


def _some(named: tuple[_T, ...]) -> tuple[_T, ...]:
    if not named:
        raise ValueError("must name at least one")
    return named


def _different(sockets: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(sockets)) < len(sockets):
        raise ValueError("names a socket twice")
    return sockets


def _ladder(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if any(longer <= block for block, longer in pairwise(blocks)):
        raise ValueError("each block must be longer than the one before it")
    return blocks


def _secret_file(path: str) -> str:
    if path:
        try:
            read_secret(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{path}: {why}") from None
    return path


Duration = Annotated[int, BeforeValidator(_duration)]
"""Text in the file, nanoseconds in memory."""

Listen = Annotated[Address, _text(parse_listen)]
HostPort = Annotated[Address, NoDecode, _text(parse_host_port)]
Window = Annotated[Duration, AfterValidator(_between(100 * MILLISECOND, DAY, MILLISECOND))]
BlockLength = Annotated[Duration, AfterValidator(_between(SECOND, 30 * DAY, SECOND))]
Forget = Annotated[Duration, AfterValidator(_between(SECOND, 366 * DAY, SECOND))]
Hold = Annotated[Duration, AfterValidator(_between(SECOND, DAY, SECOND))]
SyncInterval = Annotated[Duration, AfterValidator(_sync_interval)]
HostName = Annotated[str, AfterValidator(_host_name)]
Origin = Annotated[str, AfterValidator(_origin)]
FilePath = Annotated[str, AfterValidator(_path)]
TrustedNetwork = Annotated[str, AfterValidator(trusted_network)]
StatsSocket = Annotated[str, AfterValidator(parse_unix_path)]
LimitName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""A name that HAProxy accepts for a SPOE message, of at most 64 characters."""

PeerName = Annotated[str, AfterValidator(_peer_name)]
CountTable = Annotated[str, AfterValidator(_count_table)]
ReadableFile = Annotated[str, AfterValidator(_readable)]


class _Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AgentSection(_Section):
    """``[agent]``: the listening addresses for HAProxy and the number of clients in memory."""

    listen: Annotated[tuple[Listen, ...], AfterValidator(_some)] = Field(
        (Address("127.0.0.1", 9190),), strict=False
    )
    http_listen: tuple[str, ...] = Field((), strict=False)
    peers: Annotated[tuple[Listen, ...], AfterValidator(_different)] = Field((), strict=False)
    peer_name: PeerName = "agent"
    peers_allowed: tuple[PeerName, ...] = Field((), strict=False, max_length=_MAX_PEERS)
    peers_ca: ReadableFile = ""
    peers_certificate: ReadableFile = Field("", validate_default=True)
    trusted: tuple[TrustedNetwork, ...] = Field(
        (), strict=False, max_length=_MAX_TRUSTED, validate_default=True
    )
    trusted_proxies: tuple[TrustedNetwork, ...] = Field((), strict=False, max_length=_MAX_TRUSTED)
    max_clients: int = Field(1_000_000, ge=8, le=1_000_000_000)

    @field_validator("http_listen")
    @classmethod
    def _is_reserved(cls, listen: tuple[str, ...]) -> tuple[str, ...]:
        if listen:
            raise ValueError("not available in this version; leave it at its default")
        return listen

    @field_validator("peers_certificate")
    @classmethod
    def _is_verified(cls, certificate: str, info: ValidationInfo) -> str:
        if "peers_ca" in info.data and bool(certificate) != bool(info.data["peers_ca"]):
            raise ValueError("TLS needs both agent.peers_certificate and agent.peers_ca")
        return certificate

    @field_validator("trusted")
    @classmethod
    def _is_safe(cls, trusted: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        listens = (*info.data.get("listen", ()), *info.data.get("peers", ()))
        beyond = [str(one) for one in listens if not one.is_loopback]
        if beyond and not trusted:
            raise ValueError(
                f"must name the networks of the HAProxies, because {beyond[0]} is not on loopback "
                "and every peer can block any client"
            )
        return trusted


class OpsSection(_Section):
    """``[ops]``: the HTTP API for operators."""

    token_file: FilePath = ""
    listen: HostPort = Address("127.0.0.1", 9191)
    hosts: tuple[HostName, ...] = Field((), strict=False, max_length=64)
    origins: tuple[Origin, ...] = Field((), strict=False, max_length=64)

    @field_validator("listen")
    @classmethod
    def _is_safe(cls, listen: Address, info: ValidationInfo) -> Address:
        if not listen.is_loopback and not info.data.get("token_file"):
            raise ValueError("needs ops.token_file unless it is on loopback")
        return listen


class StoreSection(_Section):
    """``[store]``: what the nodes share."""

    url: Annotated[str, AfterValidator(_store_url)] = MEMORY
    sync_interval: SyncInterval = 10 * MILLISECOND
    prefix: Annotated[str, StringConstraints(pattern=f"^{NAME}$")] = "ratelimit"
    state_dir: FilePath = ""
    replicas: int = Field(0, ge=0, le=16)
    shared_clients: int = Field(SHARED_CLIENTS, ge=1, le=1_000_000)
    tls_server_name: str = ""
    secret_file: Annotated[str, AfterValidator(_secret_file)] = ""
    on_outage: Literal["local", "share"] = "local"

    @field_validator("replicas", "secret_file")
    @classmethod
    def _is_shared(cls, value: _T, info: ValidationInfo) -> _T:
        if value and info.data.get("url") == MEMORY:
            raise ValueError("needs a store.url that nodes share, such as redis://")
        return value

    @field_validator("tls_server_name")
    @classmethod
    def _has_tls(cls, name: str, info: ValidationInfo) -> str:
        if name:
            _host_name(name)
            if not info.data.get("url", "rediss").startswith("rediss"):
                raise ValueError("needs a store.url with TLS, such as rediss://")
        return name


class LimitSection(_Section):
    """``[limits.NAME]``: at most ``rate`` hits of one client in any ``window``."""

    rate: int = Field(100, ge=1, le=MAX_RATE)
    window: Window = SECOND
    block: Annotated[tuple[BlockLength, ...], AfterValidator(_ladder)] = Field(
        (10 * SECOND, 60 * SECOND, 600 * SECOND, 3600 * SECOND), strict=False, max_length=32
    )
    forget: Forget = DAY
    strict: bool = False
    shadow: bool = False
    ipv4_prefix: int = Field(32, ge=1, le=32)
    ipv6_prefix: int = Field(64, ge=1, le=128)
    headers: bool = False
    fuse: float = Field(FUSE, ge=0, le=1, strict=False)
    secret: bool = True
    table: CountTable = ""
    counts: Counts = "requests"
    open: int = Field(0, ge=0, le=MAX_OPEN)
    count_refused: bool = True

    @field_validator("strict")
    @classmethod
    def _outlasts_the_window(cls, strict: bool, info: ValidationInfo) -> bool:
        window, ladder = info.data.get("window", 0), info.data.get("block", ())
        if strict and ladder and ladder[0] < window:
            # After a block a client has its whole rate again.
            shown = format_duration(window)
            raise ValueError(f"needs blocks of at least the window, {shown}, or block = []")
        return strict

    @property
    def is_fed_by_peers(self) -> bool:
        """Whether the configuration says that HAProxy's stick tables feed this limit."""
        return bool(self.table or self.open or self.counts != "requests")

    @field_validator("table", "counts", "open")
    @classmethod
    def _is_not_strict(cls, value: _T, info: ValidationInfo) -> _T:
        # Default values are not validated, so the value is one of the file.
        if value not in ("", 0, "requests") and info.data.get("strict"):
            raise ValueError("impossible with strict: HAProxy's peers report a hit afterwards")
        return value


class ListsSection(_Section):
    """``[lists]``: networks that are always allowed or always denied.

    ``read_lists()`` validates the entries.
    """

    allow: tuple[str, ...] = Field((), strict=False)
    deny: tuple[str, ...] = Field((), strict=False)
    allow_files: tuple[str, ...] = Field((), strict=False)
    deny_files: tuple[str, ...] = Field((), strict=False)


class HaproxySection(_Section):
    """``[haproxy]``: the HAProxy processes of this node."""

    sockets: Annotated[tuple[StatsSocket, ...], AfterValidator(_different)] = Field(
        (), strict=False, max_length=64
    )
    maps_dir: Annotated[str, AfterValidator(_folder)] = ""


class WebhookSection(_Section):
    """``[[webhooks]]``: a receiver of events."""

    url: Annotated[str, AfterValidator(_webhook_url)] = Field(repr=False)
    events: Annotated[tuple[EventName, ...], AfterValidator(_some)] = Field(EVENTS, strict=False)
    secret_file: Annotated[str, AfterValidator(_secret_file)] = ""


class LoadSection(_Section):
    """``[load]``: thresholds of the events for high and low load."""

    high: int = Field(0, ge=0)
    low: int = Field(0, ge=0)
    hold: Hold = 30 * SECOND

    @field_validator("low")
    @classmethod
    def _is_lower(cls, low: int, info: ValidationInfo) -> int:
        if low and low >= info.data.get("high", low + 1):
            raise ValueError("must be less than high")
        return low


class _Environment(EnvSettingsSource):
    """Environment variables; a list may be JSON or ``one,two``."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return [part.strip() for part in value.split(",")]

    def explode_env_vars(
        self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]
    ) -> dict[str, Any]:
        try:
            return super().explode_env_vars(field_name, field, env_vars)
        except (ValueError, RecursionError):
            # A number with too many digits, or deeply nested JSON. Find the variable.
            for name, value in env_vars.items():
                try:
                    super().explode_env_vars(field_name, field, {name: value})
                except (ValueError, RecursionError):
                    what = "invalid value: too long or nested too deeply"
                    raise ConfigError([_short(f"environment: {name.upper()}: {what}")]) from None
            raise


class Config(BaseSettings):
    """The configuration; every field has a default, ``limits`` has ``default`` and ``unknown``."""

    model_config = SettingsConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        env_prefix=_ENV_PREFIX,
        env_nested_delimiter=_ENV_DELIMITER,
    )

    agent: AgentSection = AgentSection()
    ops: OpsSection = OpsSection()
    store: StoreSection = StoreSection()
    limits: dict[LimitName, LimitSection] = Field(default={}, validate_default=True)
    lists: ListsSection = ListsSection()
    haproxy: HaproxySection = HaproxySection()
    webhooks: tuple[WebhookSection, ...] = Field((), strict=False)
    load: LoadSection = LoadSection()

    _path: Path | None = PrivateAttr(None)

    @field_validator("limits", mode="before")
    @classmethod
    def _unknown_blocks_no_client(cls, limits: object) -> object:
        # One address of a proxy may stand for many clients, so the default has no blocks.
        given = limits.get(UNKNOWN, {}) if isinstance(limits, dict) else None
        if isinstance(limits, dict) and isinstance(given, dict):
            return limits | {UNKNOWN: {"block": []} | given}
        return limits

    @field_validator("limits")
    @classmethod
    def _has_default(cls, limits: dict[str, LimitSection]) -> dict[str, LimitSection]:
        return {"default": LimitSection()} | limits

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment variables, then the file; no .env file."""
        return _Environment(settings_cls), init_settings

    @property
    def path(self) -> Path | None:
        """The file of the configuration."""
        return self._path

    def wrong(self, field: str, what: str) -> ConfigError:
        """Return the error for a field, such as ``agent.listen``, that fails only in use."""
        return ConfigError([self._line(field, what)])

    def _line(self, field: str, what: str) -> str:
        return _line(self._path, tuple(field.split(".")), what)

    def read_list_files(self) -> tuple[list[ListFile], list[ListFile]]:
        """Read the files of the allow list and of the deny list."""
        lists = self.lists
        return (
            [ListFile.read(path) for path in lists.allow_files],
            [ListFile.read(path) for path in lists.deny_files],
        )

    def list_steps(self, allow: list[ListFile], deny: list[ListFile]) -> Steps[Lists]:
        """Return the steps that build the lists. The steps raise ConfigError with all mistakes."""
        return read_lists(self.lists.allow, self.lists.deny, allow, deny, self._line)

    def read_lists(self) -> Lists:
        """Read the lists and their files. Raises ConfigError with all mistakes."""
        return finish(self.list_steps(*self.read_list_files()))

    def receivers(self) -> tuple[Receiver, ...]:
        """Return the receivers of webhooks. Raises ConfigError if a secret can't be read."""
        return tuple(
            Receiver(hook.url, hook.events, self._secret(f"webhooks.{number}", hook.secret_file))
            for number, hook in enumerate(self.webhooks)
        )

    def peers_tls(self) -> ssl.SSLContext | None:
        """Return TLS with client certificates for ``agent.peers``, or None. Raises ConfigError."""
        certificate, ca = self.agent.peers_certificate, self.agent.peers_ca
        if not certificate:
            return None
        try:
            return server_context(certificate, ca)
        except OSError as error:
            why = tls_problem(error) or error.strerror or str(error)
            raise self.wrong("agent.peers_certificate", why) from error

    def fleet_secret(self) -> bytes:
        """Return the key that signs the blocklist, or nothing. Raises ConfigError."""
        return self._secret("store", self.store.secret_file)

    def _secret(self, section: str, path: str) -> bytes:
        try:
            return read_secret(path) if path else b""
        except (OSError, ValueError) as error:
            raise self.wrong(f"{section}.secret_file", str(error)) from error

    def exposed_files(self) -> list[str]:
        """Return the secret files that every user of this machine can read, with their fields."""
        files = [
            ("ops.token_file", self.ops.token_file),
            ("agent.peers_certificate", self.agent.peers_certificate),
        ]
        for number, hook in enumerate(self.webhooks):
            files.append((f"webhooks.{number}.secret_file", hook.secret_file))
        files.append(("store.secret_file", self.store.secret_file))
        if self.store.url != MEMORY:
            target = parse(self.store.url)
            files += [("store.url", path) for path in target.secret_files()]
            if target.has_password and self._path and not _variable(("store", "url")):
                files.append(("store.url", str(self._path)))
        return [f"{field}: {path}" for field, path in files if path and is_exposed(path)]

    def _fuse(self, limit: LimitSection) -> float:
        """Return the fuse of a limit; one that is stricter than the default has none unless set."""
        if "fuse" in limit.model_fields_set:
            return limit.fuse
        default = self.limits["default"]
        stricter = limit.rate * default.window < default.rate * limit.window
        return 0 if stricter else limit.fuse

    def limits_in_force(self) -> tuple[Limit, ...]:
        """Return the limits in the order of the file."""
        return tuple(
            Limit(
                **limit.model_dump()
                | {
                    "name": name,
                    "block": tuple(length // SECOND for length in limit.block),
                    "forget": limit.forget // SECOND,
                    "fuse": self._fuse(limit),
                }
            )
            for name, limit in self.limits.items()
        )


def load(path: Path | None = None) -> Config:
    """Read the configuration from the file, the environment and the defaults.

    Raises ConfigError with all mistakes.
    """
    tables = {} if path is None else _read(path)
    problems = [
        _line(path, (name,), "unknown field") for name in tables if name not in Config.model_fields
    ]
    deep = False
    for variable in os.environ:
        # Other variables belong to the build, to the client, or to Kubernetes.
        if variable.upper().startswith(_ENV_PREFIX) and _ENV_DELIMITER in variable:
            section, *levels = variable[len(_ENV_PREFIX) :].split(_ENV_DELIMITER)
            if section.lower() not in Config.model_fields or len(levels) >= _ENV_LEVELS:
                problems.append(_short(f"environment: {variable}: unknown field"))
                deep = deep or len(levels) >= _ENV_LEVELS
    if deep:
        raise ConfigError(problems)  # the models would recurse through all levels
    try:
        config = Config(**{name: tables[name] for name in tables if name in Config.model_fields})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [_explain(path, detail) for detail in details[:_MAX_PROBLEMS]]
        if (more := len(details) - _MAX_PROBLEMS) > 0:
            problems.append(f"{path or 'environment'}: {more} more errors")
    else:
        if config.store.sync_interval == 0:
            problems += [
                _line(path, ("limits", name, "table"), 'impossible with store.sync_interval = "0"')
                for name, limit in config.limits.items()
                if limit.is_fed_by_peers
            ]
    if problems:
        raise ConfigError(problems)
    config._path = path  # noqa: SLF001 - a private attribute is no constructor argument
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from error
    except (ValueError, RecursionError) as error:
        # ValueError: TOMLDecodeError, which names the line, and numbers too long for Python.
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _explain(path: Path | None, detail: ErrorDetails) -> str:
    """Return the line for one error of the models."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    message = _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    return _line(path, loc, re.sub("^Input should be", "must be", message))


_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must have 1 to 64 of the characters A-Z a-z 0-9 _ . : -",
}


def _line(path: Path | None, loc: tuple[int | str, ...], message: str) -> str:
    """Return ``source: field: message``; the source is the file or variable to correct."""
    if (found := _variable(loc)) is not None:
        variable, inside = found
        if inside and not str(inside[0]).isdigit():  # the variable holds a table, as JSON
            message = f"{_dotted(inside)}: {message}"
        return _short(f"environment: {variable}: {message}")
    return _short(f"{path or 'defaults'}: {_dotted(loc)}: {message}")


def _short(line: str) -> str:
    """Escape a line, and shorten it in the middle if it is too long."""
    shown = printable(line)
    return shown if len(shown) <= _MAX_LINE else f"{shown[:300]} ... {shown[-190:]}"


def _variable(loc: tuple[int | str, ...]) -> tuple[str, tuple[int | str, ...]] | None:
    """Return the environment variable that set a field, a part of it, or its table, or None.

    The second value is the path from what the variable set to the field.
    """
    names = {name.upper(): name for name in os.environ}
    for size in range(len(loc), 0, -1):
        wanted = _ENV_PREFIX + _ENV_DELIMITER.join(str(part) for part in loc[:size]).upper()
        for name, shown in names.items():
            if name == wanted or (size == len(loc) and name.startswith(wanted + _ENV_DELIMITER)):
                return shown, loc[size:]
    return None


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Return ``limits.default.rate``; names are quoted where TOML requires it."""
    parts = (str(part) for part in loc)
    return ".".join(p if re.fullmatch("[A-Za-z0-9_-]+", p) else ascii(p) for p in parts)
