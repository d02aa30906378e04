from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedlog.telemetry.metrics import MAX_METRIC_NAMES, MAX_REASONS, ServerMetrics
from fedlog.telemetry.status import ClientStatus, Evaluation, RoundReport, Status

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


def report(number: int, **facts: object) -> RoundReport:
    return RoundReport.model_validate(
        {"round": number, "version": number, "digest": "d", "seconds": 0.3, **facts}
    )


def measured(version: int, **metrics: float) -> dict[str, Evaluation]:
    return {"HeldOut": Evaluation(version=version, examples=10, clients=1, metrics=metrics)}


def value(metrics: ServerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics(job="digits", versions={"fedlog": "0.1.0", "kafka-python": "3"})


def exercise(metrics: ServerMetrics) -> None:
    metrics.observe(
        report(
            1,
            selected=5,
            accepted=4,
            late=1,
            lost=1,
            refused={"stale": 2},
            refused_records={"malformed": 3},
            adapted={"Cut": 2},
            bytes_up=10,
            bytes_raw_up=20,
            bytes_down=5,
            bytes_raw_down=6,
            learning_rate=0.1,
            train_metrics={"loss": 0.7},
            evaluations=measured(1, accuracy=0.9, loss=0.2, f1=0.8),
        )
    )
    client = ClientStatus(id="a/0", state="training", last_seen_s=1)
    metrics.set_status(
        Status(run="r", job="digits", phase="Training", round=2, rounds=9, clients=[client])
    )


def test_a_round_and_a_status_are_what_prometheus_reads(metrics: ServerMetrics) -> None:
    exercise(metrics)
    assert value(metrics, "fedlog_accuracy", test_set="HeldOut") == 0.9
    assert value(metrics, "fedlog_loss", test_set="HeldOut") == 0.2
    assert value(metrics, "fedlog_metric", metric="f1", test_set="HeldOut") == 0.8
    assert value(metrics, "fedlog_training_metric", metric="loss") == 0.7
    assert value(metrics, "fedlog_round") == 2
    assert value(metrics, "fedlog_clients", state="training") == 1
    assert value(metrics, "fedlog_clients", state="lost") == 0
    assert value(metrics, "fedlog_phase", phase="Training") == 1
    assert value(metrics, "fedlog_phase", phase="Failed") == 0
    assert value(metrics, "fedlog_updates_accepted_total", timeliness="on_time") == 3
    assert value(metrics, "fedlog_updates_accepted_total", timeliness="late") == 1
    assert value(metrics, "fedlog_updates_adapted_total", coverage="cut") == 2
    assert value(metrics, "fedlog_updates_adapted_total", coverage="partial") == 0
    assert value(metrics, "fedlog_updates_refused_total", reason="stale") == 2
    assert value(metrics, "fedlog_records_refused_total", reason="malformed") == 3
    transferred = "fedlog_transferred_bytes_total"
    assert value(metrics, transferred, direction="up", form="raw") == 20
    assert value(metrics, transferred, direction="down", form="encoded") == 5
    assert value(metrics, "fedlog_round_duration_seconds_bucket", le="0.25") == 0
    assert value(metrics, "fedlog_round_duration_seconds_bucket", le="0.5") == 1
    assert (value(metrics, "fedlog_process_peak_memory_bytes") or 0) > 1e7
    info = {"job": "digits", "namespace": "default", "fedlog": "0.1.0", "kafka_python": "3"}
    assert value(metrics, "fedlog_info", **info) == 1


def test_late_evaluations_do_not_count_the_round_again(metrics: ServerMetrics) -> None:
    metrics.observe(report(1, accepted=3))
    metrics.observe(report(1, accepted=3, evaluations=measured(1, accuracy=0.5)))
    assert value(metrics, "fedlog_rounds_committed_total") == 1
    assert value(metrics, "fedlog_updates_accepted_total", timeliness="on_time") == 3
    assert value(metrics, "fedlog_accuracy", test_set="HeldOut") == 0.5


def test_figures_of_an_older_version_do_not_replace_newer_ones(metrics: ServerMetrics) -> None:
    metrics.observe(report(2, evaluations=measured(2, accuracy=0.7)))
    metrics.observe(report(1, evaluations=measured(1, accuracy=0.5)))
    assert value(metrics, "fedlog_accuracy", test_set="HeldOut") == 0.7


def test_names_that_others_choose_are_bounded(metrics: ServerMetrics) -> None:
    figures = {f"metric-{n}": float(n) for n in range(200)}
    refused = {f"reason{n}: details of a/{n}": 1 for n in range(200)}
    metrics.observe(report(1, evaluations=measured(1, **figures), refused=refused))
    text = metrics.render().decode()
    assert len(set(re.findall(r'fedlog_metric{metric="([^"]*)"', text))) == MAX_METRIC_NAMES
    reasons = set(re.findall(r'fedlog_updates_refused_total{reason="([^"]*)"', text))
    assert len(reasons) == MAX_REASONS + 1
    assert "other" in reasons
    assert value(metrics, "fedlog_updates_refused_total", reason="other") == 200 - MAX_REASONS


def test_two_servers_share_a_process(metrics: ServerMetrics) -> None:
    other = ServerMetrics(job="other")
    other.observe(report(1))
    assert value(metrics, "fedlog_rounds_committed_total") == 0
    assert value(other, "fedlog_rounds_committed_total") == 1


def test_every_metric_is_in_the_table_with_its_type_and_labels(metrics: ServerMetrics) -> None:
    exercise(metrics)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", TABLE.read_text(), re.MULTILINE)
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`(?=[:,; ]|$)", labels)) - {"other"})
        for name, kind, labels in rows
    }
    served = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.endswith("_created"):
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        total = "_total" if family.type == "counter" else ""
        served[family.name + total] = (family.type, labels)
    info = served.pop("fedlog_info")
    assert info == ("gauge", {"job", "namespace", "fedlog", "kafka_python"})
    kind, labels = documented.pop("fedlog_info")
    assert kind == "info"
    assert {"job", "namespace", "fedlog"} <= labels
    assert served == documented


def test_the_initial_model_counts_in_bytes_and_not_as_a_round(metrics: ServerMetrics) -> None:
    for _ in range(2):
        metrics.observe(report(0, bytes_down=7, bytes_raw_down=8))
    transferred = "fedlog_transferred_bytes_total"
    assert value(metrics, transferred, direction="down", form="encoded") == 7
    assert value(metrics, transferred, direction="down", form="raw") == 8
    assert value(metrics, "fedlog_rounds_committed_total") == 0
