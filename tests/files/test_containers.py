"""What the Dockerfile, docker-compose.yml and the locks promise, without starting a container.

tests/images/ starts them: ``make test-images``.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ratelimit.api.tokens import Role, read_tokens
from ratelimit.config import load
from tests.helpers.composefile import FILE, ROOT, Service, read

COMPOSE = read()
SERVICES = list(COMPOSE.services.values())
LOCKS = ["run", "wheels", "development"]

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)


def test_compose_file_follows_the_schema_of_the_specification() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@each_service
def test_service_has_no_more_rights_than_it_needs(service: Service) -> None:
    assert service.read_only
    assert service.cap_drop == ("ALL",)
    assert service.cap_add == ()
    assert service.security == ("no-new-privileges:true",)
    user, _, group = service.user.partition(":")
    assert int(user) > 0
    assert group.isdecimal()


@each_service
def test_service_is_bounded(service: Service) -> None:
    resources = service.resources
    assert resources is not None
    assert 0 < resources.cpus <= 2
    assert re.fullmatch(r"\d+[MG]", resources.memory)
    assert 0 < resources.pids <= 128


@each_service
def test_service_is_health_checked_and_comes_back(service: Service) -> None:
    if not service.ends:
        assert service.health.command
        assert service.restart == "unless-stopped"
    for name, condition in service.depends.items():
        assert condition == ("service_started" if serves_without(service) else "service_healthy")
        assert COMPOSE.services[name].health.command


def health_programs() -> list[str]:
    """Return the Python programs of all health checks, of the compose file and of the image."""
    commands = [service.health.command for service in SERVICES]
    dockerfile = (ROOT / "Dockerfile").read_text()
    commands += [
        json.loads(text) for text in re.findall(r"^ +CMD (\[.*\])$", dockerfile, re.MULTILINE)
    ]
    return sorted({command[2] for command in commands if [*command[:2]] == ["python", "-c"]})


@pytest.mark.parametrize("program", health_programs())
def test_health_check_imports_what_there_is(program: str) -> None:
    for statement in ast.parse(program).body:
        if isinstance(statement, ast.ImportFrom):
            assert statement.module
            module = importlib.import_module(statement.module)
            assert {name.name for name in statement.names} <= vars(module).keys()


def serves_without(service: Service) -> bool:
    """HAProxy serves without an agent, and an agent without its store: neither may be held up."""
    return service.name.rstrip("2") in ("haproxy", "ratelimit")


@each_service
def test_service_uses_what_the_file_has(service: Service) -> None:
    assert set(service.secrets) <= COMPOSE.secrets.keys()
    for volume in service.volumes:
        if volume.named:
            assert volume.source in COMPOSE.volumes
        else:
            assert (ROOT / volume.source).exists()
            assert volume.read_only


def test_nothing_in_the_file_is_used_by_nobody() -> None:
    assert COMPOSE.secrets.keys() == {name for s in SERVICES for name in s.secrets}
    used = {volume.source for s in SERVICES for volume in s.volumes if volume.named}
    assert COMPOSE.volumes.keys() == used


def test_no_secret_is_in_the_file() -> None:
    for file in COMPOSE.secrets.values():
        assert file.startswith("./secrets/")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "secrets/" in ignored
    # Whatever is named like a secret is a path.
    for service in SERVICES:
        for name, value in service.environment.items():
            if re.search("PASSWORD|TOKEN|SECRET", name):
                assert value.startswith("/run/secrets/")
    assert not re.search(r"://[^/\s]*:[^/\s]*@", FILE.read_text())


def test_three_applications_are_found_by_dns() -> None:
    haproxy, app = COMPOSE.services["haproxy"], COMPOSE.services["app"]
    assert app.replicas == 3
    port = app.command[-1].rpartition(":")[2]
    assert haproxy.environment["RATELIMIT_BACKEND_DNS"] == f"{app.name}:{port}"


def test_profiles() -> None:
    def names(*profiles: str) -> set[str]:
        return {service.name for service in COMPOSE.chosen(*profiles)}

    always = {"redis", "ratelimit", "haproxy", "app"}
    assert names() == always
    assert names("fleet") - always == {"ratelimit2", "haproxy2"}
    assert names("monitoring") - always == {"prometheus", "grafana"}
    assert names("cluster") - always == {"redis1", "redis2", "redis3", "cluster"}
    assert names("load") - always == {"load"}


def test_agent_takes_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment and the file of the compose file, with secrets as its script makes them."""
    subprocess.run(["sh", ROOT / "containers" / "secrets.sh", tmp_path], check=True)
    service = COMPOSE.services["ratelimit"]
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    config = load(ROOT / "containers" / "ratelimit" / "ratelimit.toml")
    assert {limit.name for limit in config.limits_in_force()} == {"default", "login", "unknown"}
    # SPOP on no network: a socket file, which HAProxy opens as one of its group.
    (spop,) = config.agent.listen
    haproxy = COMPOSE.services["haproxy"]
    assert haproxy.environment["RATELIMIT_SPOP"] == f"unix@{spop.path}"
    assert service.user.partition(":")[2] == haproxy.user.partition(":")[2]
    tokens = read_tokens(tmp_path / "ops_tokens")
    for name, role in (("operator_token", Role.OPERATE), ("view_token", Role.VIEW)):
        caller = tokens.find((tmp_path / name).read_text())
        assert caller is not None
        assert caller.role == role


def test_secrets_stay_as_they_are(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        subprocess.run(["sh", ROOT / "containers" / "secrets.sh", tmp_path / "s"], check=True)
        made.append({path.name: path.read_text() for path in (tmp_path / "s").iterdir()})
    assert made[0] == made[1]
    assert made[0].keys() == COMPOSE.secrets.keys()
    assert len(set(made[0].values())) == len(made[0])
    assert all(len(value) >= 64 for value in made[0].values())
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


def test_prometheus_asks_the_agents_with_their_token() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    for file in config["rule_files"]:
        assert (ROOT / "monitoring" / file).exists()
    job, haproxy = config["scrape_configs"]
    port = COMPOSE.services["ratelimit"].environment["RATELIMIT_OPS__LISTEN"].rpartition(":")[2]
    assert job["static_configs"][0]["targets"] == [f"ratelimit:{port}"]
    assert job["dns_sd_configs"][0]["names"] == ["ratelimit2"]
    secret = job["authorization"]["credentials_file"]
    assert secret == "/run/secrets/" + COMPOSE.services["prometheus"].secrets[0]
    port = COMPOSE.services["haproxy"].environment["RATELIMIT_METRICS"].rpartition(":")[2]
    assert haproxy["static_configs"][0]["targets"] == [f"haproxy:{port}"]
    assert haproxy["dns_sd_configs"][0] == {"names": ["haproxy2"], "type": "A", "port": int(port)}
    services = yaml.safe_load(FILE.read_text())["services"]
    networks = [set(services[name]["networks"]) for name in ("haproxy", "prometheus")]
    assert set.intersection(*networks) == {"operations"}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_versions_and_hashes_alone(lock: str) -> None:
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    assert "://" not in text
    for entry in re.findall(r"^[a-z](?:.*\\\n)*.*", text, re.MULTILINE):
        assert re.match(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==", entry), entry
        assert "--hash=sha256:" in entry


def locked(lock: str) -> dict[str, str]:
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==(\S+)", text, re.MULTILINE))


def wanted(group: str) -> list[Requirement]:
    """Return what pyproject.toml asks for: ``run``, or a group and those that it includes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if group == "run":
        return [Requirement(text) for text in project["project"]["dependencies"]]
    found: list[Requirement] = []
    for entry in project["dependency-groups"][group]:
        found += wanted(entry["include-group"]) if isinstance(entry, dict) else [Requirement(entry)]
    return found


@pytest.mark.parametrize(
    ("lock", "group"),
    [("run", "run"), ("wheels", "wheels"), ("development", "run"), ("development", "lint")],
)
def test_lock_has_what_the_project_asks_for(lock: str, group: str) -> None:
    """After a change of pyproject.toml: ``make lock``."""
    versions = locked(lock)
    for requirement in wanted(group):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
