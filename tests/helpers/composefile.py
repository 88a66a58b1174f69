"""Reads docker-compose.yml, as far as it uses the compose specification, into typed services.

A key that is not known here is an error, so that no setting of the file goes untested by oversight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::-([^}]*))?\})")

_ONLY_FOR_COMPOSE = {"build", "logging", "networks", "ports"}


@dataclass(frozen=True)
class Health:
    """A health check of a container; ``command`` is empty if there is none."""

    command: tuple[str, ...] = ()
    interval: str = ""
    timeout: str = ""
    retries: int = 0
    start_period: str = ""


@dataclass(frozen=True)
class Volume:
    """A mount at ``target``: a directory or file, or a named volume if without a slash."""

    source: str
    target: str
    read_only: bool

    @property
    def named(self) -> bool:
        return "/" not in self.source


@dataclass(frozen=True)
class Resources:
    """Resource limits of a container."""

    cpus: float
    memory: str
    pids: int


@dataclass(frozen=True)
class Service:
    """A service; ``depends`` has the condition of each service that must start first."""

    name: str
    image: str
    command: tuple[str, ...]
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    hostname: str
    read_only: bool
    tmpfs: tuple[str, ...]
    cap_drop: tuple[str, ...]
    cap_add: tuple[str, ...]
    security: tuple[str, ...]
    ulimits: Mapping[str, int]
    restart: str
    stop_signal: str
    stop_grace_period: str
    network_mode: str
    secrets: tuple[str, ...]
    volumes: tuple[Volume, ...]
    health: Health
    depends: Mapping[str, str]
    profiles: tuple[str, ...]
    replicas: int
    resources: Resources | None

    @property
    def ends(self) -> bool:
        """Whether the service is a job that ends by itself."""
        return self.restart == "no"


@dataclass(frozen=True)
class Compose:
    """The file: services, secret files by name, options of volumes by name."""

    services: Mapping[str, Service]
    secrets: Mapping[str, str]
    volumes: Mapping[str, Mapping[str, str]]

    def profiles(self) -> set[str]:
        return {profile for service in self.services.values() for profile in service.profiles}

    def chosen(self, *profiles: str) -> list[Service]:
        """Return the services of "docker compose up", in the order of their dependencies."""
        wanted = {
            name: service
            for name, service in self.services.items()
            if not service.profiles or set(service.profiles) & set(profiles)
        }
        ordered: list[Service] = []
        while wanted:
            ready = [s for s in wanted.values() if not wanted.keys() & s.depends.keys()]
            assert ready, f"these wait for each other: {', '.join(wanted)}"
            ordered += ready
            for service in ready:
                del wanted[service.name]
        return ordered


def read(environment: Mapping[str, str] | None = None) -> Compose:
    """Return the file as compose reads it, with these variables."""
    variables = environment or {}
    raw = _fill_in(yaml.safe_load(FILE.read_text()), variables)
    services = {name: _service(name, dict(about)) for name, about in raw["services"].items()}
    volumes = {name: (about or {}).get("driver_opts", {}) for name, about in raw["volumes"].items()}
    return Compose(services, {k: v["file"] for k, v in raw["secrets"].items()}, volumes)


def _fill_in(value: Any, variables: Mapping[str, str]) -> Any:
    """Substitute variables, and replace $$ by $."""
    if isinstance(value, dict):
        return {name: _fill_in(part, variables) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill_in(part, variables) for part in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: (variables.get(m[1]) or m[2] or "") if m[1] else "$", value)
    return value


def _service(name: str, about: dict[str, Any]) -> Service:
    for key in _ONLY_FOR_COMPOSE:
        about.pop(key, None)
    deploy = about.pop("deploy", {})
    limits = deploy.get("resources", {}).get("limits")
    service = Service(
        name=name,
        image=about.pop("image"),
        command=tuple(about.pop("command", ())),
        entrypoint=tuple(about.pop("entrypoint", ())),
        environment=about.pop("environment", {}),
        user=about.pop("user", ""),
        hostname=about.pop("hostname", ""),
        read_only=about.pop("read_only", False),
        tmpfs=tuple(about.pop("tmpfs", ())),
        cap_drop=tuple(about.pop("cap_drop", ())),
        cap_add=tuple(about.pop("cap_add", ())),
        security=tuple(about.pop("security_opt", ())),
        ulimits=about.pop("ulimits", {}),
        restart=about.pop("restart", "no"),
        stop_signal=about.pop("stop_signal", ""),
        stop_grace_period=about.pop("stop_grace_period", ""),
        network_mode=about.pop("network_mode", ""),
        secrets=tuple(about.pop("secrets", ())),
        volumes=tuple(_volume(text) for text in about.pop("volumes", ())),
        health=_health(about.pop("healthcheck", {})),
        depends={k: v["condition"] for k, v in about.pop("depends_on", {}).items()},
        profiles=tuple(about.pop("profiles", ())),
        replicas=deploy.get("replicas", 1),
        resources=Resources(float(limits["cpus"]), limits["memory"], limits["pids"])
        if limits
        else None,
    )
    assert not about, f"{name}: not known here: {', '.join(about)}"
    return service


def _volume(text: str) -> Volume:
    source, target, *mode = text.split(":")
    return Volume(source, target, mode == ["ro"])


def _health(about: dict[str, Any]) -> Health:
    if not about or about.get("disable"):
        return Health()
    kind, *words = about["test"]
    command = ("sh", "-c", *words) if kind == "CMD-SHELL" else tuple(words)
    times = {key: about[key] for key in ("interval", "timeout", "retries", "start_period")}
    return Health(command, **times)
