"""The services of docker-compose.yml, started by podman with the file's own settings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.composefile import ROOT, Compose, Service, Volume, read
from tests.images.engine import AGENT, DEVELOPMENT, SERVERS, podman, until
from tests.images.switch import SERVER, Switch

IMAGES = {
    "RATELIMIT_IMAGE": AGENT,
    "DEVELOPMENT_IMAGE": DEVELOPMENT,
    **dict.fromkeys(("REDIS_IMAGE", "HAPROXY_IMAGE", "PROMETHEUS_IMAGE"), SERVERS),
}


@dataclass(frozen=True)
class Container:
    """One that was started; ``name`` is podman's, ``namespace`` the path of its network."""

    name: str
    service: Service
    namespace: str
    address: str
    output: Path

    def healthy(self) -> bool:
        """Run the health check of the compose file."""
        return not self.service.health.command or self._does(*self.service.health.command)

    def _does(self, *command: str) -> bool:
        try:
            podman("exec", self.name, *command)
        except AssertionError:
            return False
        return True

    def well(self) -> None:
        """Wait until its health check passes."""
        try:
            until(self.healthy, f"{self.name} is healthy")
        except AssertionError as error:
            error.add_note(self.log())
            raise

    def execute(self, *command: str) -> str:
        return podman("exec", self.name, *command)

    def state(self, field: str) -> int:
        return int(podman("inspect", "--format", f"{{{{{field}}}}}", self.name))

    @contextlib.contextmanager
    def crashed(
        self, between: contextlib.AbstractContextManager[object] | None = None
    ) -> Iterator[None]:
        """Kill the first process, as a crash would; in the end wait until another one is well.

        ``between`` is held at the kill.
        """
        process, restarts = self.state(".State.Pid"), self.state(".RestartCount")
        assert process > 0, f"{self.name} does not run, and 0 would be our own group\n{self.log()}"
        with between or contextlib.nullcontext():
            os.kill(process, signal.SIGKILL)
        yield
        until(lambda: self.state(".RestartCount") > restarts, f"{self.name} is started again")
        self.well()

    def log(self) -> str:
        """Return both of its outputs."""
        return self.output.read_text()


class Stack:
    """What "docker compose up" would have started."""

    def __init__(self, folder: Path, switch: Switch, variables: dict[str, str]) -> None:
        self.compose: Compose = read(IMAGES | variables)
        self.folder = folder
        self.switch = switch
        self.containers: dict[str, Container] = {}
        self._prefix = switch.name
        self._volumes: set[str] = set()
        self.secrets = folder / "secrets"
        subprocess.run(["sh", ROOT / "containers" / "secrets.sh", self.secrets], check=True)

    def up(self, *names: str) -> None:
        """Start services, each when those that it depends on are well."""
        for service in self.compose.chosen(*self.compose.profiles()):
            if service.name in names:
                for other, condition in service.depends.items():
                    for container in self.of(other) if condition == "service_healthy" else ():
                        container.well()
                for number in range(service.replicas):
                    self.start(service, number + 1)
        for name in names:
            for container in self.of(name):
                container.well()

    def of(self, name: str) -> list[Container]:
        return [c for c in self.containers.values() if c.service.name == name]

    def start(self, service: Service, number: int = 1) -> Container:
        """Start one container of a service."""
        name = f"{self._prefix}-{service.name}-{number}"
        shared = service.network_mode.removeprefix("service:")
        if shared:
            namespace, address = self.of(shared)[0].namespace, self.of(shared)[0].address
        else:
            namespace, address = self.switch.port(service.name)
        output = self.folder / f"{name}.log"
        container = Container(name, service, namespace, address, output)
        self.containers[name] = container
        network = (f"--network=ns:{namespace}", f"--dns={SERVER}", "--no-hosts")
        log = ("--log-driver=k8s-file", f"--log-opt=path={output}")
        # Health is asked for by ourselves: podman has systemd do it, which is not there.
        run = ("run", "--detach", "--no-healthcheck", f"--name={name}")
        podman(*run, *log, *network, *self._settings(service))
        return container

    def _settings(self, service: Service) -> Iterator[str]:
        yield from (f"--env={name}={value}" for name, value in service.environment.items())
        yield from (f"--tmpfs={path}" for path in service.tmpfs)
        yield from (f"--cap-drop={name}" for name in service.cap_drop)
        # podman writes no-new-privileges:true without its value.
        yield from (f"--security-opt={text.removesuffix(':true')}" for text in service.security)
        # What is not in the file would be raised above what this machine may grant.
        limits = {"nofile": 1024, "nproc": 1000, **service.ulimits}
        yield from (f"--ulimit={name}={value}:{value}" for name, value in limits.items())
        yield from (self._mount(volume) for volume in service.volumes)
        yield from (
            f"--volume={self.secrets / name}:/run/secrets/{name}:ro" for name in service.secrets
        )
        yield f"--restart={service.restart}"
        yield f"--user={service.user}"
        if service.hostname:
            yield f"--hostname={service.hostname}"
        if service.read_only:
            # podman would add folders that can be written; docker does not.
            yield from ("--read-only", "--read-only-tmpfs=false")
        if service.stop_signal:
            yield f"--stop-signal={service.stop_signal}"
        if service.resources:
            yield f"--cpus={service.resources.cpus}"
            yield f"--memory={service.resources.memory}"
            yield f"--pids-limit={service.resources.pids}"
        if service.entrypoint:
            yield f"--entrypoint={json.dumps(service.entrypoint)}"
        yield from (service.image, *service.command)

    def _mount(self, volume: Volume) -> str:
        if not volume.named:
            return f"--volume={ROOT / volume.source}:{volume.target}:ro"
        name = f"{self._prefix}-{volume.source}"
        if name not in self._volumes:
            options = self.compose.volumes[volume.source].items()
            podman("volume", "create", *(f"--opt={key}={value}" for key, value in options), name)
            self._volumes.add(name)
        return f"--volume={name}:{volume.target}"

    def down(self) -> None:
        for name in self.containers:
            podman("rm", "--force", "--time=3", name)
        for name in self._volumes:
            podman("volume", "rm", name)


@contextlib.contextmanager
def stack(folder: Path, **variables: str) -> Iterator[Stack]:
    with contextlib.closing(Switch(folder)) as switch:
        made = Stack(folder, switch, variables)
        try:
            yield made
        finally:
            made.down()
