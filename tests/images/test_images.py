"""The images, started as docker-compose.yml says: ``make test-images``."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.composefile import ROOT
from tests.images import engine
from tests.images.engine import AGENT, DEVELOPMENT, LIMIT, podman
from tests.images.stack import Container, Stack, stack, until

REQUESTS = 300
RATE = 100
"""Requests a second of a client, of the default limit."""


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    engine.build()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All but the profiles "cluster" and "load"; Grafana is in no package of Debian's."""
    with stack(tmp_path_factory.mktemp("stack")) as made:
        made.up("redis", "ratelimit", "app", "haproxy", "ratelimit2", "haproxy2", "prometheus")
        yield made


@dataclass
class Client:
    """A machine with an address of its own."""

    namespace: str
    address: str

    def curl(self, *arguments: str) -> list[str]:
        """Return the lines that curl prints."""
        name = Path(self.namespace).name
        command = ("ip", "netns", "exec", name, "curl", "-s", "--max-time", "20", *arguments)
        return subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.splitlines()

    def statuses(self, server: Container, count: int = 1) -> Counter[str]:
        """Send requests as the README does, and count their answers."""
        url = f"http://{server.address}:8080/[1-{count}]"
        return Counter(self.curl("-o", "/dev/null", "-w", "%{http_code}\\n", url))


def client(up: Stack) -> Client:
    return Client(*up.switch.port())


def one(up: Stack, name: str) -> Container:
    (found,) = up.of(name)
    return found


def ask(agent: Container, *words: str) -> str:
    """Run a command of ours inside the agent's container."""
    return agent.execute("ratelimit", *words, "--token-file", "/run/secrets/operator_token")


def blocked(agent: Container) -> set[str]:
    return {block["key"] for block in json.loads(ask(agent, "blocks", "--json"))}


def block(agent: Container, key: str) -> None:
    """Block an address for longer than any test takes."""
    ask(agent, "blocks", "add", key, "--ttl", "1h")


def uses_store(agent: Container) -> bool:
    up: bool = json.loads(ask(agent, "status", "--json"))["store"]["up"]
    return up


@dataclass
class Visitor:
    """Asks all the time, at a tenth of its limit, and counts the answers."""

    client: Client
    server: Container
    answers: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _visit(self) -> None:
        while not self._over.is_set():
            self.answers += self.client.statuses(self.server)
            self._over.wait(10 / RATE)


# ---- the image ---------------------------------------------------------------------------------


def test_size() -> None:
    found = engine.size()
    assert 0 < found.own < found.whole < LIMIT


def test_runtime_image_has_the_program_compiled_and_no_compiler() -> None:
    """On a file system that can't be written, as nobody in particular, without a network."""
    bare = ("--rm", "--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
    bounds = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    assert "(compiled)" in podman("run", *bare, *bounds, AGENT, "version")
    script = (
        "id -u; command -v gcc cc ld make pip npm; find / -xdev -perm /6000 -user 10001; exit 0"
    )
    shell = ("--entrypoint", "sh", AGENT, "-c", script)
    assert podman("run", *bare, *bounds, *shell).split() == ["10001"]


def test_the_same_sources_make_the_same_files() -> None:
    again = f"{AGENT}-again"
    engine.image(again, ROOT / "Dockerfile", "runtime", cached=False)
    first, second = engine.files(AGENT), engine.files(again)
    engine.buildah("rmi", again)
    assert "opt/ratelimit/bin/ratelimit" in first
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()


def test_image_says_how_it_is_run() -> None:
    about = json.loads(podman("image", "inspect", AGENT))[0]
    assert about["Config"]["Entrypoint"] == ["ratelimit"]
    assert about["Config"]["Cmd"] == ["serve"]
    assert about["User"] == "ratelimit"
    assert about["Healthcheck"]["Test"][0] == "CMD"
    assert about["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_alone_is_well_and_ends_at_once(tmp_path: Path) -> None:
    """With its own health check and defaults, and only the folder of the state to write to."""
    health = json.loads(podman("image", "inspect", AGENT))[0]["Healthcheck"]["Test"][1:]
    name = f"ratelimit-alone-{tmp_path.name}"
    bounds = ("--ulimit=nofile=8192:8192", "--ulimit=nproc=1000:1000")
    bare = ("--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
    state = f"--volume={name}:/var/lib/ratelimit"
    podman("run", "--detach", "--no-healthcheck", "--name", name, *bare, *bounds, state, AGENT)

    def well() -> bool:
        try:
            podman("exec", name, *health)
        except AssertionError:
            return False
        return True

    try:
        until(well, "the health check of the image")
        # SIGTERM reaches the agent itself; otherwise podman would kill it after the time.
        podman("stop", "--time=10", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
    finally:
        podman("rm", "--force", name)
        podman("volume", "rm", name)


def test_the_development_image_runs_the_tests() -> None:
    engine.image(DEVELOPMENT, ROOT / "Dockerfile", "development")
    options = ("--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    found = podman("run", *options, DEVELOPMENT, "pytest", "-q", "tests/engine")
    assert re.search(r"\d+ passed", found)
    assert "failed" not in found


# ---- as the file says --------------------------------------------------------------------------


def test_rights_and_bounds_of_the_file_are_in_force(up: Stack) -> None:
    for container in up.containers.values():
        process = container.state(".State.Pid")
        pairs = re.findall(
            r"^(\w+):\s+(.*)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE
        )
        status = dict(pairs)
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) == 0
        assert status["NoNewPrivs"] == "1"
        user, group = container.service.user.split(":")
        assert set(status["Uid"].split()) == {user}
        assert set(status["Gid"].split()) == {group}
        mounts = Path(f"/proc/{process}/mounts").read_text().splitlines()
        (root,) = [line.split()[3] for line in mounts if line.split()[1] == "/"]
        assert "ro" in root.split(",")
        assert container.service.resources
        assert memory_bound(process) == bytes_of(container.service.resources.memory)


def memory_bound(process: int) -> int:
    """Return the bytes that the kernel allows to a process and those beside it."""
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for file in (
            Path(f"/sys/fs/cgroup/{controllers}{path}/memory.limit_in_bytes"),
            Path(f"/sys/fs/cgroup{path}/memory.max"),
        ):
            if file.exists():
                return int(file.read_text())
    raise AssertionError("no bound")


def bytes_of(text: str) -> int:
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]]


def test_the_doctor_finds_nothing_broken(up: Stack) -> None:
    url = ("--url", "http://127.0.0.1:9191")
    checks = json.loads(ask(one(up, "ratelimit"), "doctor", *url, "--json"))
    assert not [check for check in checks if check["state"] == "broken"]


def test_signals_reload_the_limits_and_haproxy(up: Stack) -> None:
    agent, haproxy = one(up, "ratelimit"), one(up, "haproxy")
    with Visitor(client(up), haproxy) as visitor:
        podman("kill", "--signal=HUP", agent.name)
        until(lambda: "configuration reloaded" in agent.log(), "the agent has read its file")
        workers = haproxy.log().count("New worker")
        podman("kill", "--signal=USR2", haproxy.name)
        until(lambda: haproxy.log().count("New worker") > workers, "HAProxy has a new worker")
        until(haproxy.healthy, "it is well")
    assert set(visitor.answers) == {"200"}


# ---- what it is there for ----------------------------------------------------------------------


def test_a_client_is_blocked_by_both_nodes_and_others_are_not(up: Stack) -> None:
    bad, good = client(up), client(up)
    first, second = one(up, "haproxy"), one(up, "haproxy2")
    assert bad.statuses(first, REQUESTS) == {"200": RATE, "429": REQUESTS - RATE}
    assert bad.address in blocked(one(up, "ratelimit"))
    until(lambda: bad.address in blocked(one(up, "ratelimit2")), "the second node knows the block")
    assert bad.statuses(second, 5) == {"429": 5}
    assert good.statuses(first, 5) == {"200": 5}
    assert good.statuses(second, 5) == {"200": 5}


def test_a_lifted_block_is_gone_at_the_edge(up: Stack) -> None:
    bad, haproxy, agent = client(up), one(up, "haproxy"), one(up, "ratelimit")
    bad.statuses(haproxy, REQUESTS)
    assert bad.statuses(haproxy) == {"429": 1}
    ask(agent, "blocks", "remove", bad.address)
    until(lambda: bad.statuses(haproxy) == {"200": 1}, "it is served again")


def test_logins_have_a_limit_of_their_own(up: Stack) -> None:
    bad, haproxy = client(up), one(up, "haproxy")
    url = f"http://{haproxy.address}:8080/login?[1-15]"
    answers = Counter(bad.curl("-X", "POST", "-o", "/dev/null", "-w", "%{http_code}\\n", url))
    assert answers == {"200": 10, "429": 5}
    assert bad.statuses(haproxy) == {"200": 1}


def test_all_three_applications_are_used_and_a_fourth_is_found(up: Stack) -> None:
    agent, service = one(up, "ratelimit"), up.compose.services["app"]

    def servers() -> set[str]:
        (report,) = json.loads(ask(agent, "haproxy", "servers", "--json"))
        (backend,) = [found for found in report["backends"] if found["name"] == "app"]
        return {
            server["address"].partition(":")[0]
            for server in backend["servers"]
            if server["status"].startswith("UP")
        }

    def expected() -> set[str]:
        return {container.address for container in up.of("app")}

    assert len(expected()) == 3
    until(lambda: servers() == expected(), "three applications are up")
    up.start(service, 4)
    assert len(expected()) == 4
    until(lambda: servers() == expected(), "HAProxy has found the fourth")


def test_prometheus_sees_both_nodes_and_has_the_rules(up: Stack) -> None:
    prometheus = one(up, "prometheus")

    def value(query: str) -> list[str]:
        found = prometheus.execute("promtool", "query", "instant", "http://127.0.0.1:9090", query)
        return re.findall(r"=> (\S+)", found)

    until(lambda: value('up{job="ratelimit"}') == ["1", "1"], "both nodes are scraped")
    until(lambda: value("ratelimit_store_up") == ["1", "1"], "their figures are there")
    rules = client(up).curl(f"http://{prometheus.address}:9090/api/v1/rules")
    assert "RatelimitDown" in "".join(rules)


# ---- what happens when something dies ----------------------------------------------------------


def test_the_agent_dies_and_no_request_fails(up: Stack) -> None:
    haproxy, agent, bad = one(up, "haproxy"), one(up, "ratelimit"), client(up)
    block(agent, bad.address)
    with Visitor(client(up), haproxy) as visitor:
        agent.crash()
        assert bad.statuses(haproxy) == {"429": 1}
        until(lambda: agent.state(".RestartCount") == 1, "it is started again")
        until(agent.healthy, "it is well again")
        until(lambda: bad.address in blocked(agent), "it knows the blocks of before")
        until(lambda: "spoa/agent is UP" in haproxy.log(), "HAProxy asks it again")
    assert set(visitor.answers) == {"200"}
    fresh = client(up)
    assert fresh.statuses(haproxy, REQUESTS) == {"200": RATE, "429": REQUESTS - RATE}


def test_an_application_dies_and_no_request_fails(up: Stack) -> None:
    haproxy, app = one(up, "haproxy"), up.of("app")[0]
    with Visitor(client(up), haproxy) as visitor:
        app.crash()
        until(lambda: app.state(".RestartCount") == 1, "it is started again")
        until(app.healthy, "it is well again")
    assert set(visitor.answers) == {"200"}


def test_redis_dies_and_the_blocks_are_there_again(up: Stack) -> None:
    haproxy, agent, redis = one(up, "haproxy"), one(up, "ratelimit"), one(up, "redis")
    block(agent, "192.0.2.99")
    with Visitor(client(up), haproxy) as visitor:
        redis.crash()
        until(lambda: redis.state(".RestartCount") == 1, "it is started again")
        until(redis.healthy, "it is well again")
        until(
            lambda: json.loads(ask(agent, "status", "--json"))["store"]["up"], "the agent uses it"
        )
    assert set(visitor.answers) == {"200"}
    agent.crash()  # so that it has nothing but what Redis kept
    until(lambda: agent.state(".RestartCount") >= 1 and agent.healthy(), "the agent is back")
    assert "192.0.2.99" in blocked(agent)


def test_haproxy_dies_and_comes_back(up: Stack) -> None:
    haproxy, bad = one(up, "haproxy"), client(up)
    haproxy.crash()
    until(lambda: haproxy.state(".RestartCount") == 1, "it is started again")
    until(haproxy.healthy, "it is well again")
    until(lambda: bad.statuses(haproxy) == {"200": 1}, "it serves")
    time.sleep(1)
    assert bad.statuses(haproxy, REQUESTS)["429"] == REQUESTS - RATE


# ---- secrets and the cluster -------------------------------------------------------------------


def test_no_secret_can_be_seen_from_outside(up: Stack) -> None:
    secrets = {path.name: path.read_text().strip() for path in up.secrets.iterdir()}
    for container in up.containers.values():
        seen = podman("inspect", container.name) + podman("top", container.name, "args")
        seen += container.log()
        for name, secret in secrets.items():
            assert secret not in seen, f"{name} shows in {container.name}"


def test_a_redis_cluster_of_three(tmp_path: Path) -> None:
    nodes = "redis1,redis2,redis3"
    store = f"redis+cluster://{nodes}?password_file=/run/secrets/redis_password"
    with stack(tmp_path, STORE=store) as up:
        up.up("redis", *nodes.split(","), "ratelimit", "app", "haproxy")
        job = up.start(up.compose.services["cluster"])
        until(
            lambda: job.state(".State.ExitCode") == 0 and not job.state(".State.Pid"), "a cluster"
        )
        agent, haproxy, bad = one(up, "ratelimit"), one(up, "haproxy"), client(up)
        until(
            lambda: json.loads(ask(agent, "status", "--json"))["store"]["up"], "the agent uses it"
        )
        assert bad.statuses(haproxy, REQUESTS) == {"200": RATE, "429": REQUESTS - RATE}
        block(agent, bad.address)
        agent.crash()
        until(lambda: agent.state(".RestartCount") == 1 and agent.healthy(), "the agent is back")
        until(lambda: bad.address in blocked(agent), "the cluster kept the block")
