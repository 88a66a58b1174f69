"""What Prometheus reads: the figures of the running parts, looked up when it asks and not before.

No metric has a label that grows with clients: there are limits, verdicts, tasks and webhooks, which
the program and its configuration name. ``docs/metrics.md`` lists them; a test holds that it leaves
none out.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ratelimit.agent.server import Agent
from ratelimit.engine import compiled
from ratelimit.engine.layout import SECOND
from ratelimit.events.webhooks import Webhooks
from ratelimit.haproxy.edges import Edges
from ratelimit.histogram import Histogram
from ratelimit.model import VERDICTS
from ratelimit.process import log as logs
from ratelimit.process.supervisor import Supervisor
from ratelimit.store import Node, Store
from ratelimit.store.base import SharedStore


class Reload(Protocol):
    """How a reload of the configuration went."""

    @property
    def ok(self) -> bool:
        """Whether it was taken."""

    @property
    def at(self) -> float:
        """When, in seconds since the epoch."""


class Source(Protocol):
    """What is running; ``control.Control`` is one."""

    @property
    def agent(self) -> Agent:
        """Knows the limiter and the sync too."""

    @property
    def store(self) -> Store:
        """Where blocks are kept."""

    @property
    def about(self) -> Node:
        """This node."""

    @property
    def edges(self) -> Edges:
        """Tells HAProxy what the blocklist says."""

    @property
    def tasks(self) -> Supervisor:
        """What the node does next to the answers."""

    @property
    def reloaded(self) -> Reload | None:
        """How the last one went; None before the first."""


class Metrics(Collector):
    """The metrics of a node, with those of its process and of Python's garbage collector."""

    def __init__(self, source: Source, webhooks: Webhooks) -> None:
        self._source = source
        self._webhooks = webhooks
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(self)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all of them and their content type: OpenMetrics if ``Accept`` names it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it is now."""
        source = self._source
        yield _labelled(
            GaugeMetricFamily,
            "build_info",
            "Which program runs; always 1.",
            ("version", "compiled", "python"),
            [((source.about.version, _yes(compiled()), platform.python_version()), 1)],
        )
        last = source.reloaded
        taken, at = (last.ok, last.at) if last else (True, source.about.since)
        yield _gauge("reload_success", "1 if the last reload, or the start, was taken.", taken)
        yield _gauge("reload_timestamp_seconds", "When that was.", at)
        yield _labelled(
            CounterMetricFamily,
            "task_failures",
            "Failures of what goes on next to the answers; each task is started again.",
            ("task",),
            [((task.name,), task.failures) for task in source.tasks.tasks.values()],
        )
        written = logs.state()
        yield _counter("log_dropped", "Lines of the log that found no room.", written.dropped)
        yield _gauge("log_waiting_bytes", "Bytes of the log that wait.", written.waiting)
        yield from self._checks()
        yield from self._blocks()
        yield from self._connections()
        yield from self._store()
        yield from self._sync()
        yield from self._told()

    def _checks(self) -> Iterator[Metric]:
        agent = self._source.agent
        engine = agent.limiter.engine
        yield _counter("checks", "Messages that named a limit and a key.", engine.checks)
        yield _labelled(
            CounterMetricFamily,
            "verdicts",
            "What became of the checks.",
            ("limit", "verdict"),
            [
                ((rule.limit.name, verdict), getattr(rule, verdict))
                for rule in engine.rules
                for verdict in VERDICTS
            ],
        )
        yield _counter(
            "refusals",
            "Checks that were refused, for whatever reason, or would have been without shadow.",
            sum(rule.throttled + rule.blocked + rule.denied for rule in engine.rules),
        )
        yield _counter(
            "unknown_messages", "Messages whose name is no limit.", agent.responder.unknown
        )
        yield _counter(
            "keyless_messages", "Messages without a usable key.", agent.responder.keyless
        )
        yield _histogram(
            "answer_seconds",
            "From a read to its answer; a read has many checks.",
            agent.answer_times,
        )
        yield _labelled(
            GaugeMetricFamily,
            "fuse_blown",
            "1 while a fuse is blown: the limit throttles and blocks no further client.",
            ("limit",),
            [((rule.limit.name,), getattr(rule, "fused", False)) for rule in engine.rules],
        )
        table = engine.table
        yield _gauge("table_clients", "Places of the table in use.", table.entries)
        yield _gauge("table_capacity", "Places of the table.", table.capacity)
        yield _counter("table_evictions", "Clients that made room for others.", table.evictions)

    def _blocks(self) -> Iterator[Metric]:
        limiter = self._source.agent.limiter
        blocklist = limiter.blocklist
        yield _counter("blocks_made", "Blocks that this node made by itself.", limiter.blocks)
        yield _gauge(
            "blocks_active",
            "Blocks of all nodes that have not ended.",
            blocklist.active(self._source.agent.sync.now() // SECOND),
        )
        yield _gauge(
            "blocklist_entries", "Entries of the blocklist, ended ones included.", len(blocklist)
        )
        yield _gauge("blocklist_capacity", "Entries that fit.", blocklist.max_entries)
        yield _counter("blocklist_refused", "Blocks that found no room.", blocklist.refused)

    def _connections(self) -> Iterator[Metric]:
        agent = self._source.agent
        yield _gauge("haproxy_connections", "Open connections of HAProxy.", len(agent.peers))
        yield _counter("haproxy_connections_refused", "Connections over the most.", agent.refused)
        yield _counter(
            "untrusted_connections",
            "Connections of peers that are not in agent.trusted.",
            agent.untrusted,
        )
        yield _counter(
            "protocol_errors", "Connections that ended by an error.", agent.protocol_errors
        )

        edges = self._source.edges
        yield _counter(
            "edge_faults",
            "Blocks by hand and lifts that an HAProxy did not take at once.",
            edges.faults,
        )
        yield _counter("edge_dropped", "Those that found no room to wait.", edges.dropped)
        yield _counter(
            "edge_corrected",
            "Entries of edge tables that were not as the blocklist says, and are now.",
            edges.corrected,
        )
        yield _gauge(
            "edges_behind",
            "HAProxy processes whose edge table may not be as the blocklist says.",
            edges.behind,
        )

    def _store(self) -> Iterator[Metric]:
        store = self._source.store
        shared = isinstance(store, SharedStore)
        yield _gauge("store_up", "1 if the store can be used.", store.up)
        yield _gauge(
            "store_partitioned",
            "1 while this node counts without the others.",
            shared and not store.up,
        )
        yield _counter("store_outages", "Outages of the store.", store.outages)
        yield _gauge(
            "journal_up",
            "1 if this node can keep blocks and lifts in a file of its own.",
            bool(store.journal) and not store.journal_problem,
        )
        yield _gauge("store_outbox", "Blocks and lifts still to be written.", len(store.outbox))
        yield _counter(
            "store_outbox_dropped", "Changes that found no room there.", store.outbox.dropped
        )
        yield _counter(
            "store_unsigned", "Entries without a valid signature, ignored.", store.unsigned
        )
        yield _gauge(
            "store_clock_offset_seconds",
            "How far the time of all nodes is ahead of this machine's.",
            store.clock_offset / SECOND,
        )
        yield _gauge(
            "nodes", "Live nodes of the fleet; in an outage, those known last.", store.nodes
        )

    def _sync(self) -> Iterator[Metric]:
        sync = self._source.agent.sync
        yield _histogram("sync_seconds", "How long exchanges of counts took.", sync.times)
        yield _counter("sync_clients", "Clients in exchanges, each time anew.", sync.records)
        yield _counter("sync_failures", "Exchanges that failed.", sync.failures)
        yield _counter(
            "sync_late", "Checks answered without the store, which was too slow.", sync.late
        )
        yield _gauge(
            "sync_lag_seconds", "Age of the other nodes' counts of hot clients.", sync.lag / SECOND
        )
        exchanges = [
            ((exchange.rule.limit.name,), exchange) for exchange in sync.limiter.engine.exchanges
        ]
        for family, name, text, attribute in (
            (GaugeMetricFamily, "hot_clients", "Clients shared now.", "size"),
            (GaugeMetricFamily, "hot_clients_capacity", "Clients that can be.", "capacity"),
            (
                CounterMetricFamily,
                "hot_clients_refused",
                "Clients counted alone for want of room.",
                "overflow",
            ),
        ):
            values = [(limit, getattr(exchange, attribute)) for limit, exchange in exchanges]
            yield _labelled(family, name, text, ("limit",), values)

    def _told(self) -> Iterator[Metric]:
        hooks = self._webhooks.hooks
        for family, name, text, attribute in (
            (CounterMetricFamily, "webhook_sent", "Events that the receiver took.", "sent"),
            (CounterMetricFamily, "webhook_failed", "Events given up.", "failed"),
            (CounterMetricFamily, "webhook_dropped", "Events that found no room.", "dropped"),
            (GaugeMetricFamily, "webhook_queue", "Events that wait.", "waiting"),
        ):
            values = [((hook.name,), getattr(hook, attribute)) for hook in hooks]
            yield _labelled(family, name, text, ("webhook",), values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ratelimit_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ratelimit_{name}", text, value=value)


def _labelled(
    family: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    metric = family(f"ratelimit_{name}", text, labels=labels)
    for of, value in values:
        metric.add_metric(of, value)
    return metric


def _histogram(name: str, text: str, times: Histogram) -> Metric:
    buckets = [(repr(bound / SECOND), float(count)) for bound, count in times.buckets()]
    buckets.append(("+Inf", float(times.count)))
    return HistogramMetricFamily(
        f"ratelimit_{name}", text, buckets=buckets, sum_value=times.total / SECOND
    )
