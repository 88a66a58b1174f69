"""The services, started as docker-compose.yml says: ``make test-images``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.clients import Visitor, ask, block, client, knows_block, lift, one, uses_store
from tests.images.engine import podman, until
from tests.images.stack import Stack, stack


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All but the profiles "cluster" and "load"; Grafana is in no package of Debian's."""
    with stack(tmp_path_factory.mktemp("stack")) as made:
        made.up("redis", "ratelimit", "app", "haproxy", "ratelimit2", "haproxy2", "prometheus")
        yield made


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
    """With a client whose idle connection keeps the old process of HAProxy for a while."""
    agent, haproxy = one(up, "ratelimit"), one(up, "haproxy")
    with Visitor(client(up), haproxy) as visitor, client(up).idle(haproxy):
        podman("kill", "--signal=HUP", agent.name)
        until(lambda: "configuration reloaded" in agent.log(), "the agent has read its file")
        workers = haproxy.log().count("Loading success")
        podman("kill", "--signal=USR2", haproxy.name)
        until(lambda: haproxy.log().count("Loading success") > workers, "HAProxy has a new worker")
        haproxy.well()
        visitor.goes_on()
    assert set(visitor.answers) == {"200"}


# ---- what it is there for ----------------------------------------------------------------------


def test_a_client_is_blocked_by_both_nodes_and_others_are_not(up: Stack) -> None:
    bad, good = client(up), client(up)
    first, second = one(up, "haproxy"), one(up, "haproxy2")
    bad.floods(first)
    bad.gets("429", second)
    assert good.statuses(first, 5) == {"200": 5}
    assert good.statuses(second, 5) == {"200": 5}


def test_a_block_by_hand_is_known_to_both_nodes_until_it_is_lifted(up: Stack) -> None:
    bad, agents = client(up), [one(up, "ratelimit"), one(up, "ratelimit2")]
    proxies = [one(up, "haproxy"), one(up, "haproxy2")]
    block(agents[0], bad.address)
    for agent, haproxy in zip(agents, proxies, strict=True):
        knows_block(agent, bad.address)
        bad.gets("429", haproxy)
    lift(agents[1], bad.address)
    for haproxy in proxies:
        bad.gets("200", haproxy)


def test_logins_have_a_limit_of_their_own(up: Stack) -> None:
    bad, haproxy = client(up), one(up, "haproxy")
    bad.floods_login(haproxy)
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
    until(lambda: value('up{job="haproxy"}') == ["1", "1"], "both HAProxies are scraped")
    until(lambda: len(value('haproxy_backend_status{proxy="app",state="UP"}')) == 2, "theirs too")
    rules = client(up).curl(f"http://{prometheus.address}:9090/api/v1/rules")
    assert "RatelimitDown" in "".join(rules)


# ---- what happens when something dies ----------------------------------------------------------


def test_the_agent_dies_and_no_request_fails(up: Stack) -> None:
    haproxy, agent, bad = one(up, "haproxy"), one(up, "ratelimit"), client(up)
    block(agent, bad.address)
    bad.gets("429", haproxy)
    with Visitor(client(up), haproxy) as visitor:
        with agent.crashed():
            assert bad.statuses(haproxy) == {"429": 1}
            visitor.goes_on()
        knows_block(agent, bad.address)
        bad.sees_agent(haproxy)
    assert set(visitor.answers) == {"200"}
    client(up).floods(haproxy)


def test_an_application_dies_and_no_request_fails(up: Stack) -> None:
    """But one that it was just at work on, which this is not about."""
    haproxy, app = one(up, "haproxy"), up.of("app")[0]
    with Visitor(client(up), haproxy) as visitor, app.crashed(between=visitor.asking):
        visitor.goes_on()
    assert set(visitor.answers) == {"200"}


def test_redis_dies_and_the_blocks_are_there_again(up: Stack) -> None:
    haproxy, agent, redis = one(up, "haproxy"), one(up, "ratelimit"), one(up, "redis")
    block(agent, "192.0.2.99")
    with Visitor(client(up), haproxy) as visitor:
        with redis.crashed():
            visitor.goes_on()
        until(lambda: uses_store(agent), "the agent uses it")
        with agent.crashed():  # so that it has nothing but what was kept
            visitor.goes_on()
        knows_block(agent, "192.0.2.99")
    assert set(visitor.answers) == {"200"}


def test_haproxy_dies_and_comes_back(up: Stack) -> None:
    haproxy, good = one(up, "haproxy"), client(up)
    with haproxy.crashed():
        bad = client(up)
    good.gets("200", haproxy)
    good.sees_agent(haproxy)
    bad.floods(haproxy)


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
        until(lambda: not job.state(".State.Pid"), "the job has ended")
        assert job.state(".State.ExitCode") == 0, job.log()
        agent, haproxy, bad = one(up, "ratelimit"), one(up, "haproxy"), client(up)
        until(lambda: uses_store(agent), "the agent uses it")
        bad.floods(haproxy)
        block(agent, bad.address)
        with agent.crashed():
            assert bad.statuses(haproxy) == {"429": 1}
        knows_block(agent, bad.address)


# ---- each without the others -------------------------------------------------------------------


def test_each_service_starts_without_those_that_it_can_do_without(tmp_path: Path) -> None:
    """As on a machine where Redis and the agent are not well at the start, and names unknown."""
    with stack(tmp_path) as up:
        up.up("haproxy")
        haproxy, good = one(up, "haproxy"), client(up)
        assert good.statuses(haproxy) == {"503": 1}  # there is nothing to send it to yet
        up.up("app")
        good.gets("200", haproxy)
        client(up).floods(haproxy)
        up.up("ratelimit")
        good.sees_agent(haproxy)
        assert not uses_store(one(up, "ratelimit"))
        client(up).floods_login(haproxy)
        up.up("redis")
        until(lambda: uses_store(one(up, "ratelimit")), "the agent has found Redis")
        client(up).floods_login(haproxy)
