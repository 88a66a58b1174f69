"""What Prometheus reads, from an agent that really answers; and what is made of it elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvloop
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from ratelimit.agent.peers import Peers
from ratelimit.agent.server import Agent
from ratelimit.events.webhooks import Receiver, Webhooks
from ratelimit.haproxy.api import Runtime
from ratelimit.haproxy.push import Edges
from ratelimit.limiter.limiter import Limiter, Sharing
from ratelimit.model import Address, Limit
from ratelimit.node.metrics import Metrics
from ratelimit.node.operations import Control
from ratelimit.process.supervisor import Supervisor
from ratelimit.store import MemoryStore, Node, Store
from ratelimit.store.base import StoreError
from ratelimit.store.redis.store import RedisStore
from ratelimit.store.redis.url import parse as parse_url
from ratelimit.store.sync import Sync
from tests.agent.test_server import LOOPBACK, connected, ended, frame
from tests.helpers import wire
from tests.helpers.fake_haproxy import FakeHaproxy, counts, hub_of, ipv4, limits, verdicts
from tests.helpers.servers import PROGRAM, Server, until
from tests.helpers.world import World, free_port
from tests.helpers.world import run as in_world

ROOT = Path(__file__).parent.parents[1]
MONITORING = ROOT / "monitoring"
LIMITS = [Limit("default", rate=5, block=()), Limit("login", rate=1, block=(60,), fuse=0)]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Reloaded:
    ok: bool = True
    at: float = 1_700_000_000


@dataclass
class Parts:
    """What the metrics read of ``Control``."""

    agent: Agent
    store: Store
    about: Node
    webhooks: Webhooks  # not of the source, but of its metrics
    edges: Edges
    peers: Peers
    reloaded: Reloaded | None = None
    tasks: Supervisor = field(default_factory=Supervisor)


def read(metrics: Metrics) -> Samples:
    text, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"ratelimit_{name}", frozenset(labels.items())]


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Parts, Metrics, Address]]:
    limiter = Limiter(LIMITS, max_clients=100_000, node="n1", sharing=Sharing.HOT)
    sync = Sync(limiter, 0.01, False)
    about = Node("n1", "1.2.3", 1_700_000_000)
    store = MemoryStore(str(tmp_path), sync.events, about)
    sync.attach(store, about)
    agent = Agent(limiter, sync)
    await store.start()
    webhooks = Webhooks([Receiver("https://hooks.example/secret-path")], "n1")
    peers = Peers(hub_of(limiter, sync.now()), sync)
    parts = Parts(agent, store, about, webhooks, Edges(limiter, Runtime(["/nowhere"])), peers)
    parts.tasks.task("tick")
    try:
        yield parts, Metrics(cast(Control, parts), webhooks), await agent.listen(LOOPBACK)
    finally:
        await agent.close(1)
        await store.close()


def run(test: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), running(tmp_path) as it:
            await test(*it)

    uvloop.run(main())


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *messages: bytes) -> None:
    """Send messages, a frame and a read for each, and wait for the answers."""
    for message in messages:
        writer.write(wire.notify(message))
        assert (await frame(reader)).kind == wire.ACK


def test_figures_rise_with_what_the_agent_does(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        before = read(metrics)
        assert value(before, "checks_total") == value(before, "haproxy_connections") == 0
        plain = wire.message("default", key=wire.address("192.0.2.1"))
        login = wire.message("login", key=wire.address("192.0.2.2"))
        async with connected(address) as (reader, writer):
            await ask(reader, writer, *[plain] * 30, *[login] * 4)
            await ask(reader, writer, wire.message("nobody", key=wire.address("192.0.2.1")))
            await ask(reader, writer, wire.message("default", key=wire.NULL))
            seen = read(metrics)
        assert value(seen, "checks_total") == 34
        for limit, verdict, count in (
            ("default", "allowed", 5),
            ("default", "throttled", 25),
            ("default", "blocked", 0),
            ("login", "allowed", 1),
            ("login", "throttled", 0),
            ("login", "blocked", 3),
        ):
            assert value(seen, "verdicts_total", limit=limit, verdict=verdict) == count
        assert value(seen, "refusals_total") == 28
        assert value(seen, "unknown_messages_total") == 1
        assert value(seen, "keyless_messages_total") == 1
        assert value(seen, "haproxy_connections") == 1
        assert value(seen, "blocks_made_total") == value(seen, "blocks_active") == 1
        assert value(seen, "blocklist_entries") == 1
        assert value(seen, "table_clients") == 2
        assert value(seen, "table_capacity") == 100_000
        # 36 reads, of which each 16th has its time taken.
        assert value(seen, "answer_seconds_count") == 2
        assert value(seen, "answer_seconds_bucket", le="+Inf") == 2
        assert 0 < value(seen, "answer_seconds_sum") < 20
        assert value(seen, "store_up") == value(seen, "nodes") == 1
        assert value(seen, "store_partitioned") == 0
        assert value(seen, "journal_up") == 1
        (built,) = (labels for name, labels in seen if name == "ratelimit_build_info")
        assert {("version", "1.2.3")} < built
        assert seen["process_resident_memory_bytes", frozenset()] > 1 << 20

    run(test, tmp_path)


def test_what_goes_wrong_is_counted(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        async with connected(address) as (reader, writer):
            writer.write(wire.hello())  # a second one
            await ended(reader)
        seen = read(metrics)
        assert value(seen, "reload_success") == 1
        assert value(seen, "reload_timestamp_seconds") == parts.about.since > 0
        parts.reloaded = Reloaded(ok=False, at=1_700_000_500.5)
        parts.agent.limiter.blocklist.refused = 7
        (table,) = parts.edges.runtime._tables
        table.faults, table.dropped, table.corrected = 5, 4, 3
        parts.tasks.task("tick").failed(OSError("no memory"))
        hook = parts.webhooks.hooks[0]
        parts.webhooks.send("fuse", {})
        hook.sent, hook.failed, hook.dropped = 3, 2, 1
        seen = read(metrics)
        assert value(seen, "protocol_errors_total") == 1
        assert value(seen, "reload_success") == 0
        assert value(seen, "reload_timestamp_seconds") == 1_700_000_500.5
        assert value(seen, "blocklist_refused_total") == 7
        assert value(seen, "edge_faults_total") == 5
        assert value(seen, "task_failures_total", task="tick") == 1
        assert value(seen, "edge_dropped_total") == 4
        assert value(seen, "edge_corrected_total") == 3
        assert value(seen, "edges_behind") == 1
        name = "1:hooks.example"
        assert value(seen, "webhook_sent_total", webhook=name) == 3
        assert value(seen, "webhook_failed_total", webhook=name) == 2
        assert value(seen, "webhook_dropped_total", webhook=name) == 1
        assert value(seen, "webhook_queue", webhook=name) == 1
        assert "secret-path" not in str(seen)

    run(test, tmp_path)


def test_haproxies_that_are_peers(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        now = parts.agent.sync.now()
        tables = counts("rl_login"), verdicts("rlv_login"), limits(tags=1)
        haproxy = FakeHaproxy(parts.peers.hub, now, tables=tables)
        haproxy.connect(now)
        for number in (1, 2):
            haproxy.session.update(tables[0], ipv4("192.0.2.7"), [number, 0, number, 0])
        haproxy.pump(now)
        parts.peers.refused, parts.peers.untrusted, parts.peers.protocol_errors = 1, 2, 3
        parts.peers.hub.refused_hellos = 4
        seen = read(metrics)
        assert value(seen, "peers_sessions") == value(seen, "peers_taught") == 1
        assert value(seen, "peers_counting") == 1
        assert value(seen, "peers_updates_total") == 2
        assert value(seen, "peers_resyncs_total") == 1
        assert value(seen, "peers_tables_refused") == 1
        assert value(seen, "peers_verdicts") == 1
        assert value(seen, "peers_waiting") == 0
        assert value(seen, "peers_refused_total") == 1
        assert value(seen, "peers_untrusted_total") == 2
        assert value(seen, "peers_protocol_errors_total") == 3
        assert value(seen, "peers_refused_hellos_total") == 4
        parts.peers.hub.end(haproxy.link)
        seen = read(metrics)
        assert value(seen, "peers_sessions") == 0
        assert value(seen, "peers_updates_total") == 2

    run(test, tmp_path)


def test_clients_add_no_series(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        async with connected(address) as (reader, writer):
            before = read(metrics)
            for number in range(2000):
                key = wire.text(f"client {number}")
                await ask(reader, writer, wire.message("login", key=key, hits=wire.uint32(2)))
            await ask(reader, writer, *(wire.message(f"no {n}", key=wire.NULL) for n in range(99)))
            after = read(metrics)
        assert value(after, "blocks_active") == 2000
        assert before.keys() == after.keys()

    run(test, tmp_path)


def test_active_blocks_are_those_that_have_not_ended(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        async with connected(address) as (reader, writer):
            for number in range(10):
                key = wire.address(f"192.0.2.{number}")
                await ask(reader, writer, wire.message("login", key=key, hits=wire.uint32(2)))
        assert value(read(metrics), "blocks_active") == 10
        parts.agent.limiter.lift_now("login", "192.0.2.3", time.time_ns())
        assert value(read(metrics), "blocks_active") == 9
        parts.agent.sync.epoch += 61 * 1_000_000_000
        seen = read(metrics)
        assert value(seen, "blocks_active") == 0
        assert value(seen, "blocklist_entries") == 9

    run(test, tmp_path)


def test_openmetrics_for_who_asks_for_it(tmp_path: Path) -> None:
    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        text, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith(b"# EOF\n")
        names = {family.name for family in parse_openmetrics(text.decode())}  # type: ignore[no-untyped-call]
        assert {"ratelimit_checks", "ratelimit_answer_seconds", "process_cpu_seconds"} <= names
        for accept in ("", "text/html", "*/*", "nonsense;;;,"):
            assert metrics.exposition(accept)[1].startswith("text/plain")

    run(test, tmp_path)


@pytest.mark.integration
def test_a_shared_store_is_seen_to_go_and_counts_to_be_exchanged(tmp_path: Path) -> None:
    assert PROGRAM is not None, "redis-server is not installed"
    server = Server(tmp_path).start()

    async def test() -> None:
        limiter = Limiter(
            [Limit(rate=1000)], 1000, node="n1", sharing=Sharing.HOT, shared_clients=1
        )
        sync = Sync(limiter, 0.01, False)
        about = Node("n1", "1.2.3", 0)
        store = RedisStore(parse_url(server.url), events=sync.events, node=about)
        sync.attach(store, about)
        agent = Agent(limiter, sync)
        webhooks = Webhooks([], "n1")
        peers = Peers(hub_of(limiter, sync.now()), sync)
        parts = Parts(agent, store, about, webhooks, Edges(limiter, Runtime([])), peers)
        metrics = Metrics(cast(Control, parts), webhooks)
        await store.start()
        exchanging = asyncio.create_task(sync.run())
        try:
            limiter.divide(2, up=True)
            assert value(read(metrics), "sync_lag_seconds") == 0
            async with connected(await agent.listen(LOOPBACK)) as (reader, writer):
                message = wire.message("default", key=wire.text("k"), hits=wire.uint32(400))
                await ask(reader, writer, message)
                await until(lambda: sync.times.count >= 1)
                for _ in range(2):
                    again = wire.message("default", key=wire.text("l"), hits=wire.uint32(400))
                    await ask(reader, writer, again)
            seen = read(metrics)
            assert value(seen, "sync_seconds_count") >= 1
            assert value(seen, "sync_clients_total") >= 1
            assert value(seen, "hot_clients", limit="default") == 1
            assert value(seen, "hot_clients_capacity", limit="default") == 1
            assert value(seen, "hot_clients_refused_total", limit="default") == 1
            assert 0 < value(seen, "sync_lag_seconds") < 10
            assert value(seen, "store_up") == 1 and value(seen, "store_partitioned") == 0
            server.kill()
            await until(lambda: not store.up)
            seen = read(metrics)
            assert value(seen, "store_up") == 0 and value(seen, "store_partitioned") == 1
            assert value(seen, "journal_up") == 0, "it has none"
            assert value(seen, "store_outages_total") == 1
            with pytest.raises(StoreError):
                await store.claim("x", "y", 1)
        finally:
            exchanging.cancel()
            await asyncio.gather(exchanging, return_exceptions=True)
            await agent.close(1)
            await store.close()

    try:
        uvloop.run(test())
    finally:
        server.kill()


# ---- what is made of them -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """Return the type of each of our families, and its samples' names."""
    found: dict[str, tuple[str, set[str]]] = {}

    async def test(parts: Parts, metrics: Metrics, address: Address) -> None:
        for family in parse(metrics.exposition()[0].decode()):
            full = f"{family.name}_total" if family.type == "counter" else family.name
            found[full] = (family.type, {sample.name for sample in family.samples})

    run(test, tmp_path_factory.mktemp("store"))
    return found


def test_the_documentation_lists_every_metric_and_no_other(
    families: dict[str, tuple[str, set[str]]],
) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = dict(re.findall(r"^\| `(ratelimit_\w+)` \| (\w+) \|", page, re.MULTILINE))
    ours = {name: kind for name, (kind, _) in families.items() if name.startswith("ratelimit_")}
    assert listed == ours


def expressions() -> list[str]:
    """Return every expression of the dashboard and of the rules."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [note["expr"] for note in board["annotations"]["list"]]
    found += [variable.get("definition", "") for variable in board["templating"]["list"]]
    rules = re.findall(r"^ +expr: (.+)$", (MONITORING / "alerts.yml").read_text(), re.MULTILINE)
    assert len(found) > 40 and len(rules) > 10
    return found + rules


def test_dashboard_and_rules_use_metrics_that_there_are(
    families: dict[str, tuple[str, set[str]]],
) -> None:
    samples = set().union(*(names for _, names in families.values())) | {"up"}
    used = {
        name
        for expression in expressions()
        for name in re.findall(r"\b((?:ratelimit|process|python)_\w+)", expression)
    }
    assert used <= samples
    # Whatever is worth a metric is worth a look.
    assert {name for name in families if name.startswith("ratelimit_")} <= {
        re.sub("_(bucket|count|sum)$", "", name) for name in used
    }


SELECTOR = re.compile(r"\b(haproxy_\w+)\{([^}]*)\}")
LABEL = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a series is one of a selector's, whatever its instance."""
    return all(
        (re.fullmatch(value, labels.get(name, "")) is not None) == (sign[0] == "=")
        if "~" in sign
        else (value == labels.get(name, "")) == (sign[0] == "=")
        for name, sign, value in LABEL.findall(selector)
        if name not in ("instance", "job")
    )


@pytest.mark.integration
def test_dashboard_and_rules_use_metrics_that_haproxy_has(tmp_path: Path) -> None:
    used = {found for expression in expressions() for found in SELECTOR.findall(expression)}
    assert len(used) > 10
    port = free_port()

    async def test(w: World) -> None:
        assert await w.client("127.0.0.1").statuses(120) == [200] * 100 + [429] * 20
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 404
        series = [sample for family in parse(answer.text) for sample in family.samples]
        for name, selector in used:
            found = [s.value for s in series if s.name == name and matches(selector, s.labels)]
            assert found, f"{name}{{{selector}}}"
        denied = {
            s.labels["proxy"]: s.value
            for s in series
            if s.name == "haproxy_backend_requests_denied_total" and s.value
        }
        assert denied == {"rl_agent": 1, "rl_edge": 19}
        assert "/metrics" not in w.haproxy_log()

    limits = "[limits.default]\nwindow = '30s'\n"
    in_world(tmp_path, test, limits, RATELIMIT_METRICS=f"127.0.0.1:{port}")


def test_the_dashboard_asks_the_source_that_is_chosen() -> None:
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    assert board["templating"]["list"][0]["type"] == "datasource"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] + place["w"] <= 24
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in places
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    for panel in panels:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


def test_every_alert_is_seen_to_fire() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fired: set[str] = set()
    for case in yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]:
        fired.update(x["alertname"] for x in case.get("alert_rule_test", ()) if x["exp_alerts"])
        for check in case.get("promql_expr_test", ()):
            for sample in check["exp_samples"]:
                fired.update(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert fired == alerts


@pytest.mark.integration
@pytest.mark.parametrize(
    "command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]]
)
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    promtool = shutil.which("promtool", path=path)
    assert promtool, "there is no promtool: `make .venv/bin/promtool` gets it"
    ran = subprocess.run(
        [promtool, *command], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
