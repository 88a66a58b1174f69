"""Reads the configuration: a TOML file, overridden by environment variables."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from ratelimit.config.problems import (
    ENV_DELIMITER,
    ENV_PREFIX,
    explained,
    problem_line,
    shortened,
    variable_of,
)
from ratelimit.config.sections import (
    AgentSection,
    HaproxySection,
    LimitSection,
    ListsSection,
    LoadSection,
    OpsSection,
    StoreSection,
    WebhookSection,
)
from ratelimit.config.values import LimitName
from ratelimit.events.webhooks import Receiver
from ratelimit.exceptions import ConfigError
from ratelimit.files import is_exposed, read_secret
from ratelimit.limiter.lists import ListFile, Lists, read_lists
from ratelimit.model import UNKNOWN, Limit
from ratelimit.notation import SECOND
from ratelimit.steps import Steps, finish
from ratelimit.store import MEMORY
from ratelimit.store.redis.url import parse
from ratelimit.tls import mutual_context, tls_problem

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo
    from pydantic_settings import PydanticBaseSettingsSource


_ENV_LEVELS = 3  # LIMITS__LOGIN__RATE
_MAX_PROBLEMS = 20  # lines per error


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
                    raise ConfigError([shortened(f"environment: {name.upper()}: {what}")]) from None
            raise


class Config(BaseSettings):
    """The configuration; every field has a default, ``limits`` has ``default`` and ``unknown``."""

    model_config = SettingsConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
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
        return problem_line(self._path, tuple(field.split(".")), what)

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

    def peers_tls(self, dials: bool = False) -> ssl.SSLContext | None:
        """Return TLS with client certificates for peers, or None. Raises ConfigError.

        It is for ``agent.peers``, or for the agent that ``dials`` one of ``haproxy.peer_sockets``.
        """
        certificate, ca = self.agent.peers_certificate, self.agent.peers_ca
        if not certificate:
            return None
        try:
            return mutual_context(certificate, ca, dials)
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
            if target.has_password and self._path and not variable_of(("store", "url")):
                files.append(("store.url", str(self._path)))
        return [f"{field}: {path}" for field, path in files if path and is_exposed(path)]

    def warnings(self) -> list[str]:
        """Return the settings that have no effect, or less, where HAProxy counts (peers mode)."""
        found = []
        for name, limit in self.limits.items():
            if not (self.agent.peers or limit.is_fed_by_peers):
                continue
            if limit.headers:
                what = "no effect on allowed requests that HAProxy counts itself (peers mode)"
                found.append(self._line(f"limits.{name}.headers", what))
            if limit.window % SECOND and limit.counts == "requests":
                what = (
                    "peers.cfg counts in whole seconds: with this window, HAProxy has no cap of "
                    "its own (peers mode)"
                )
                found.append(self._line(f"limits.{name}.window", what))
            if limit.strict:
                what = "the tables of HAProxy can't feed this limit (peers mode)"
                found.append(self._line(f"limits.{name}.strict", what))
        if self.agent.peers and self.store.sync_interval == 0:
            what = '"0": the tables of HAProxy can\'t feed any limit (peers mode)'
            found.append(self._line("store.sync_interval", what))
        return found

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
        problem_line(path, (name,), "unknown field")
        for name in tables
        if name not in Config.model_fields
    ]
    deep = False
    for variable in os.environ:
        # Other variables belong to the build, to the client, or to Kubernetes.
        if variable.upper().startswith(ENV_PREFIX) and ENV_DELIMITER in variable:
            section, *levels = variable[len(ENV_PREFIX) :].split(ENV_DELIMITER)
            if section.lower() not in Config.model_fields or len(levels) >= _ENV_LEVELS:
                problems.append(shortened(f"environment: {variable}: unknown field"))
                deep = deep or len(levels) >= _ENV_LEVELS
    if deep:
        raise ConfigError(problems)  # the models would recurse through all levels
    try:
        config = Config(**{name: tables[name] for name in tables if name in Config.model_fields})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [explained(path, detail) for detail in details[:_MAX_PROBLEMS]]
        if (more := len(details) - _MAX_PROBLEMS) > 0:
            problems.append(f"{path or 'environment'}: {more} more errors")
    else:
        if config.haproxy.peer_sockets and not config.agent.peers:
            problems.append(problem_line(path, ("haproxy", "peer_sockets"), "needs agent.peers"))
        problems += [
            problem_line(path, ("haproxy", "peer_sockets"), f"{name} is not in agent.peers_allowed")
            for name, _ in config.haproxy.peer_sockets
            if config.agent.peers_allowed and name not in config.agent.peers_allowed
        ]
        if config.store.sync_interval == 0:
            problems += [
                problem_line(
                    path, ("limits", name, "table"), 'impossible with store.sync_interval = "0"'
                )
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
