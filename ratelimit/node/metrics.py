"""The metrics for Prometheus, collected from the running parts on each request.

No label grows with the number of clients: labels are limits, verdicts, tasks and webhooks.
``docs/metrics.md`` lists all metrics; a test checks that the list is complete.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ratelimit.engine import compiled
from ratelimit.events.webhooks import Webhooks
from ratelimit.histogram import Histogram
from ratelimit.model import VERDICTS
from ratelimit.notation import SECOND
from ratelimit.process import log as logs
from ratelimit.store.base import SharedStore

if TYPE_CHECKING:
    from ratelimit.node.operations import Control


class Metrics(Collector):
    """The metrics of a node, its process, and Python's garbage collector."""

    def __init__(self, source: Control, webhooks: Webhooks) -> None:
        self._source = source
        self._webhooks = webhooks
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(self)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their content type: OpenMetrics if ``Accept`` names it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics."""
        source = self._source
        yield _labelled(
            GaugeMetricFamily,
            "build_info",
            "Version of the program; always 1.",
            ("version", "compiled", "python"),
            [((source.about.version, "yes" if compiled() else "no", platform.python_version()), 1)],
        )
        last = source.reloaded
        taken, at = (last.ok, last.at) if last else (True, source.about.since)
        yield _gauge("reload_success", "1 if the last reload, or the start, succeeded.", taken)
        yield _gauge("reload_timestamp_seconds", "Time of the last reload, or of the start.", at)
        yield _labelled(
            CounterMetricFamily,
            "task_failures",
            "Failures of background tasks; a failed task is restarted.",
            ("task",),
            [((task.name,), task.failures) for task in source.tasks.tasks.values()],
        )
        written = logs.state()
        yield _counter("log_dropped", "Log lines that were dropped.", written.dropped)
        yield _gauge("log_waiting_bytes", "Bytes of the log that wait.", written.waiting)
        yield from self._checks()
        yield from self._blocks()
        yield from self._connections()
        yield from self._peers()
        yield from self._store()
        yield from self._sync()
        yield from self._told()

    def _checks(self) -> Iterator[Metric]:
        agent = self._source.agent
        engine = agent.limiter.engine
        yield _counter("checks", "Messages with a limit and a key.", engine.checks)
        yield _labelled(
            CounterMetricFamily,
            "verdicts",
            "Verdicts of the checks.",
            ("limit", "verdict"),
            [
                ((rule.limit.name, verdict), getattr(rule, verdict))
                for rule in engine.rules
                for verdict in VERDICTS
            ],
        )
        yield _counter(
            "refusals",
            "Checks that were refused, or would have been without shadow mode.",
            sum(rule.throttled + rule.blocked + rule.denied for rule in engine.rules),
        )
        yield _counter(
            "unknown_messages", "Messages whose name is no limit.", agent.responder.unknown
        )
        yield _counter("keyless_messages", "Messages without a valid key.", agent.responder.keyless)
        yield _histogram(
            "answer_seconds",
            "Time from a read to its answer; a read may have many checks.",
            agent.answer_times,
        )
        yield _labelled(
            GaugeMetricFamily,
            "fuse_blown",
            "1 while a fuse is blown: the limit only throttles.",
            ("limit",),
            [((rule.limit.name,), rule.fused) for rule in engine.rules],
        )
        table = engine.table
        yield _gauge("table_clients", "Clients in the table.", table.entries)
        yield _gauge("table_capacity", "Clients for which the table has room.", table.capacity)
        yield _counter("table_evictions", "Clients evicted from the table.", table.evictions)

    def _blocks(self) -> Iterator[Metric]:
        limiter = self._source.agent.limiter
        blocklist = limiter.blocklist
        yield _counter("blocks_made", "Blocks that limits of this node have made.", limiter.blocks)
        yield _gauge(
            "blocks_active",
            "Blocks of all nodes that have not ended.",
            blocklist.active(self._source.agent.sync.now() // SECOND),
        )
        yield _gauge("blocklist_entries", "Entries, including ended ones.", len(blocklist))
        yield _gauge("blocklist_capacity", "Most entries of the blocklist.", blocklist.max_entries)
        yield _counter("blocklist_refused", "Blocks that had no room.", blocklist.refused)
        yield _counter(
            "lifts_dropped", "Lifts that were forgotten before their end.", blocklist.lifts.dropped
        )

    def _connections(self) -> Iterator[Metric]:
        agent = self._source.agent
        yield _gauge("haproxy_connections", "Open connections of HAProxy.", len(agent.peers))
        yield _counter(
            "haproxy_connections_refused", "Connections beyond the maximum.", agent.refused
        )
        yield _counter(
            "untrusted_connections",
            "Connections of peers that are not in agent.trusted.",
            agent.untrusted,
        )
        yield _counter(
            "protocol_errors", "Connections closed by a protocol error.", agent.protocol_errors
        )

        edges = self._source.edges
        yield _counter(
            "edge_faults",
            "Changes that an HAProxy did not apply at once.",
            edges.runtime.missed,
        )
        yield _counter("edge_dropped", "Changes dropped from a full queue.", edges.dropped)
        yield _counter(
            "edge_corrected",
            "Entries of edge tables that differed from the blocklist and were corrected.",
            edges.runtime.corrected,
        )
        yield _gauge(
            "edges_behind",
            "HAProxy processes whose edge table may differ from the blocklist.",
            edges.runtime.behind,
        )

    def _peers(self) -> Iterator[Metric]:
        peers = self._source.peers
        hub = peers.hub
        links = list(hub.by_name.values())
        yield _gauge("peers_sessions", "HAProxies that are connected as peers.", len(links))
        yield _gauge(
            "peers_taught",
            "HAProxies that are connected as peers and have all verdicts.",
            sum(link.complete for link in links),
        )
        yield _gauge(
            "peers_counting",
            "HAProxies that are connected as peers and for which this agent counts.",
            sum(link.origin is not None and link.origin.counting for link in links),
        )
        yield _counter("peers_updates", "Updates of HAProxy's tables.", hub.updates)
        yield _counter("peers_resyncs", "Times that an HAProxy has told all entries.", hub.resyncs)
        yield _gauge(
            "peers_waiting",
            "Verdicts that wait to be sent to an HAProxy.",
            sum(link.waiting for link in links),
        )
        yield _gauge(
            "peers_unacknowledged",
            "Updates that an HAProxy has not acknowledged yet.",
            sum(link.session.unacknowledged for link in links),
        )
        yield _gauge(
            "peers_tables_refused",
            "Tables of connected HAProxies that can't be used.",
            sum(len(link.refused) for link in links),
        )
        yield _gauge(
            "peers_verdicts",
            "Blocks that HAProxy's tables must hold.",
            sum(len(table.values) for table in hub.verdicts.values()),
        )
        yield _counter("peers_refused", "Sessions beyond the maximum.", peers.refused)
        yield _counter(
            "peers_refused_hellos",
            "Sessions refused because of the name of the HAProxy.",
            hub.refused_hellos,
        )
        yield _counter(
            "peers_untrusted",
            "Connections of peers that are not in agent.trusted.",
            peers.untrusted,
        )
        yield _counter(
            "peers_protocol_errors",
            "Sessions that ended with an error.",
            peers.protocol_errors,
        )

    def _store(self) -> Iterator[Metric]:
        store = self._source.store
        shared = isinstance(store, SharedStore)
        yield _gauge("store_up", "1 if the store is up.", store.up)
        yield _gauge(
            "store_partitioned",
            "1 while this node counts without the other nodes.",
            shared and not store.up,
        )
        yield _counter("store_outages", "Outages of the store.", store.outages)
        yield _gauge(
            "journal_up",
            "1 if this node can write its journal.",
            bool(store.journal) and not store.journal_problem,
        )
        yield _gauge("store_outbox", "Changes that wait to be written.", len(store.outbox))
        yield _counter(
            "store_outbox_dropped", "Changes dropped from a full queue.", store.outbox.dropped
        )
        yield _counter(
            "store_unsigned", "Entries ignored because of an invalid signature.", store.unsigned
        )
        yield _gauge(
            "store_clock_offset_seconds",
            "Time of the store minus the clock of this machine.",
            store.clock_offset / SECOND,
        )
        yield _gauge("nodes", "Live nodes; during an outage, the last known number.", store.nodes)

    def _sync(self) -> Iterator[Metric]:
        sync = self._source.agent.sync
        yield _histogram("sync_seconds", "Duration of exchanges of counts.", sync.times)
        yield _counter("sync_clients", "Clients in exchanges, in each of them.", sync.records)
        yield _counter("sync_failures", "Exchanges that failed.", sync.failures)
        yield _counter(
            "sync_late", "Checks answered without the store, which was too slow.", sync.late
        )
        yield _gauge("sync_lag_seconds", "Age of the counts of other nodes.", sync.lag / SECOND)
        exchanges = [
            ((exchange.rule.limit.name,), exchange) for exchange in sync.limiter.engine.exchanges
        ]
        for family, name, text, attribute in (
            (GaugeMetricFamily, "hot_clients", "Clients that are shared with other nodes.", "size"),
            (GaugeMetricFamily, "hot_clients_capacity", "Clients that can be shared.", "capacity"),
            (
                CounterMetricFamily,
                "hot_clients_refused",
                "Clients not shared because there was no room.",
                "overflow",
            ),
        ):
            values = [(limit, getattr(exchange, attribute)) for limit, exchange in exchanges]
            yield _labelled(family, name, text, ("limit",), values)

    def _told(self) -> Iterator[Metric]:
        hooks = self._webhooks.hooks
        for family, name, text, attribute in (
            (CounterMetricFamily, "webhook_sent", "Events that the receiver accepted.", "sent"),
            (CounterMetricFamily, "webhook_failed", "Events given up.", "failed"),
            (CounterMetricFamily, "webhook_dropped", "Events dropped for lack of room.", "dropped"),
            (GaugeMetricFamily, "webhook_queue", "Events that wait to be sent.", "waiting"),
        ):
            values = [((hook.name,), getattr(hook, attribute)) for hook in hooks]
            yield _labelled(family, name, text, ("webhook",), values)


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
