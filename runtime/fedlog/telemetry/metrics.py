"""What Prometheus reads; the table of it all is docs/reference/metrics.md.

Names and labels are public. Label values are bounded: never a client, a round or a run (those are
in `/status` and the logs); names that tasks or clients choose are kept up to a number.
"""

from __future__ import annotations

import math
import re
import resource
import sys
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fedlog.rounds.phase import Phase
from fedlog.telemetry.status import ClientState, Metrics, RoundReport, Status
from fedlog.telemetry.versions import installed_versions

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_METRIC_NAMES = 32
"""Names in the label `metric`; further ones are left out."""
MAX_REASONS = 16
"""Values of the label `reason`; further ones count as `other`."""

_COVERAGES = ("cut", "partial")

# From a tiny model on one machine (20 ms) to an hour at the edge.
_ROUND_BUCKETS = (0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_FOLD_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class ServerMetrics:
    """The metrics of one server, in a registry of their own: two servers can share a process.

    `observe` and `set_status` belong to one thread; `render` to any.
    """

    def __init__(
        self, *, job: str, namespace: str = "default", versions: Mapping[str, str] | None = None
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._observed = -1
        self._measured: dict[str, int] = {}
        self._metric_names: set[str] = set()
        self._reasons: set[str] = set()

        info = Info("fedlog", "The job and the versions at work.", registry=registry)
        named = installed_versions() if versions is None else versions
        labels = {re.sub(r"\W", "_", name): text for name, text in named.items()}
        info.info({"job": job, "namespace": namespace, **labels})

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._phase = gauge("fedlog_phase", "1 for the phase of the run, 0 for others.", "phase")
        self._round = gauge("fedlog_round", "The round that goes on, or the last one.")
        self._rounds = gauge("fedlog_rounds", "Rounds that the job asks for.")
        self._uptime = gauge("fedlog_uptime_seconds", "Since the server started.")
        self._eta = gauge("fedlog_eta_seconds", "Until the last round is over; NaN if unknown.")
        self._accuracy = gauge("fedlog_accuracy", "Accuracy of the global model.", "test_set")
        self._loss = gauge("fedlog_loss", "Loss of the global model.", "test_set")
        self._metric = gauge(
            "fedlog_metric", "Every figure of the global model.", "metric", "test_set"
        )
        self._training = gauge(
            "fedlog_training_metric", "Figures of the clients' training in a round.", "metric"
        )
        self._learning_rate = gauge("fedlog_learning_rate", "Learning rate of the last round.")
        self._desired = gauge("fedlog_clients_desired", "Clients that the job has.")
        self._joined = gauge("fedlog_clients_joined", "Clients that are here.")
        self._waiting = gauge("fedlog_clients_waited_for", "Clients that are waited for.")
        self._clients = gauge("fedlog_clients", "Clients by state.", "state")
        self._committed = counter("fedlog_rounds_committed", "Rounds that were committed.")
        self._selected = counter("fedlog_clients_selected", "Clients that were asked to train.")
        self._lost = counter("fedlog_clients_lost", "Clients lost before they sent an update.")
        self._accepted = counter("fedlog_updates_accepted", "Updates in a version.", "timeliness")
        self._adapted = counter(
            "fedlog_updates_adapted", "Updates in a version that cover it in part.", "coverage"
        )
        self._refused = counter("fedlog_updates_refused", "Updates that were refused.", "reason")
        self._refused_records = counter(
            "fedlog_records_refused", "Other records of clients that did not count.", "reason"
        )
        self._bytes = counter(
            "fedlog_transferred_bytes", "Bytes of models and updates.", "direction", "form"
        )
        self._round_seconds = Histogram(
            "fedlog_round_duration_seconds",
            "From a round's announcement to its commit.",
            buckets=_ROUND_BUCKETS,
            registry=registry,
        )
        self._fold_seconds = Histogram(
            "fedlog_aggregation_duration_seconds",
            "Reading, checking and folding a round's updates.",
            buckets=_FOLD_BUCKETS,
            registry=registry,
        )
        gauge(
            "fedlog_process_peak_memory_bytes", "Largest resident size of the server so far."
        ).set_function(_peak_memory_bytes)
        ProcessCollector(registry=registry)

        for phase in Phase:
            self._phase.labels(phase)
        for state in ClientState:
            self._clients.labels(state)
        for direction in ("up", "down"):
            for form in ("encoded", "raw"):
                self._bytes.labels(direction, form)
        for timeliness in ("on_time", "late"):
            self._accepted.labels(timeliness)
        for coverage in _COVERAGES:
            self._adapted.labels(coverage)

    def observe(self, report: RoundReport) -> None:
        """A round is over, or its evaluations have come in.

        Counters and durations take a round once, however often it is observed; figures of an
        older version never replace those of a newer one.
        """
        if report.round > self._observed:
            self._observed = report.round
            self._count_bytes(report)
            if report.round > 0:  # round 0 stands for the initial model
                self._count(report)
        for test_set, evaluation in report.evaluations.items():
            if evaluation.version >= self._measured.get(test_set, 0):
                self._measured[test_set] = evaluation.version
                self._set_figures(test_set, evaluation.metrics)

    def set_status(self, status: Status) -> None:
        """The run as it is now."""
        for phase in Phase:
            self._phase.labels(phase).set(phase is status.phase)
        self._round.set(status.round)
        self._rounds.set(status.rounds)
        self._uptime.set(status.seconds)
        self._eta.set(math.nan if status.eta_s is None else status.eta_s)
        self._desired.set(status.clients_desired)
        self._joined.set(status.clients_joined)
        self._waiting.set(len(status.waiting_for))
        counts = dict.fromkeys(ClientState, 0)
        for client in status.clients:
            counts[client.state] += 1
        for state, count in counts.items():
            self._clients.labels(state).set(count)

    def render(self) -> bytes:
        """The text that Prometheus scrapes, of type CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _count(self, report: RoundReport) -> None:
        self._committed.inc()
        self._selected.inc(report.selected)
        self._lost.inc(report.lost)
        self._accepted.labels("on_time").inc(max(0, report.accepted - report.late))
        self._accepted.labels("late").inc(report.late)
        for coverage in _COVERAGES:
            self._adapted.labels(coverage).inc(report.adapted.get(coverage.capitalize(), 0))
        for reason, count in report.refused.items():
            self._refused.labels(self._reason(reason)).inc(count)
        for reason, count in report.refused_records.items():
            self._refused_records.labels(self._reason(reason)).inc(count)
        self._round_seconds.observe(report.seconds)
        self._fold_seconds.observe(report.aggregation_seconds)
        self._learning_rate.set(report.learning_rate)
        for name, value in report.train_metrics.items():
            if self._keeps(name):
                self._training.labels(name).set(value)

    def _count_bytes(self, report: RoundReport) -> None:
        self._bytes.labels("up", "encoded").inc(report.bytes_up)
        self._bytes.labels("up", "raw").inc(report.bytes_raw_up)
        self._bytes.labels("down", "encoded").inc(report.bytes_down)
        self._bytes.labels("down", "raw").inc(report.bytes_raw_down)

    def _set_figures(self, test_set: str, figures: Metrics) -> None:
        if "accuracy" in figures:
            self._accuracy.labels(test_set).set(figures["accuracy"])
        if "loss" in figures:
            self._loss.labels(test_set).set(figures["loss"])
        for name, value in figures.items():
            if self._keeps(name):
                self._metric.labels(name, test_set).set(value)

    def _keeps(self, name: str) -> bool:
        if name not in self._metric_names and len(self._metric_names) >= MAX_METRIC_NAMES:
            return False
        self._metric_names.add(name)
        return True

    def _reason(self, text: str) -> str:
        """The kind of a reason: what stands before its first colon, as an identifier."""
        kind = text.partition(":")[0].lower()
        kind = re.sub(r"[^a-z0-9]+", "_", kind).strip("_")[:40]
        if kind not in self._reasons and len(self._reasons) >= MAX_REASONS:
            return "other"
        self._reasons.add(kind)
        return kind or "other"


def _peak_memory_bytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
