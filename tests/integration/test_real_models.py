"""Real models through the whole system: CIFAR-10 in its own file format, one curve on every log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlog
from fedlog.telemetry.run_folder import read_metrics
from fedlog.transport.apache import ApacheKafka

CLASSES = 10
RECORD = 1 + 3072


def write_cifar10(folder: Path, *, per_batch: int) -> Path:
    """Images that can be told apart: each class has its own colour and its own bright corner."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 215, (CLASSES, 3))
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.permutation(np.arange(per_batch) % CLASSES)
        images = rng.normal(0, 30, (per_batch, 3, 32, 32)) + colours[labels][:, :, None, None]
        records = np.empty((per_batch, RECORD), np.uint8)
        records[:, 0] = labels
        records[:, 1:] = np.clip(images, 0, 255).astype(np.uint8).reshape(per_batch, -1)
        (folder / name).write_bytes(records.tobytes())
    return folder


def job(entrypoint: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "real"},
        "spec": {
            "task": {"entrypoint": entrypoint, "parameters": spec.pop("parameters", {})},
            "evaluation": {"heldOut": {}},
            "partitioning": {"name": "Iid"},
            **spec,
        },
    }


@pytest.mark.parametrize("model", ["cnn", "lightweight"])
def test_cifar10_is_learned_from_its_binary_form(tmp_path: Path, model: str) -> None:
    data = write_cifar10(tmp_path / "cifar-10-batches-bin", per_batch=80)
    result = fedlog.run(
        job(
            "fedlog.tasks.cifar10:task",
            parameters={"model": model},
            rounds=3,
            training={"localEpochs": 2, "batchSize": 16, "learningRate": "0.05"},
            clients=[{"name": "site", "replicas": 2, "data": {"path": str(data)}}],
        ),
        data={"evaluator": data},
        runs=tmp_path / "runs",
        quiet=True,
    )
    assert (result.outcome, result.rounds) == ("Complete", 3)
    assert result.folder is not None
    loss = [r.metric("loss", "HeldOut") for r in read_metrics(result.folder / "metrics.jsonl")]
    assert loss[-1] < 0.8 * loss[0]
    assert (result.folder / "model.keras").stat().st_size > 10_000


@pytest.mark.apache_kafka
def test_the_same_job_gives_the_same_versions_on_both_brokers(
    tmp_path: Path, apache_kafka: ApacheKafka
) -> None:
    document = job(
        "fedlog.tasks.digits:task",
        parameters={"model": "sklearn"},
        rounds=5,
        training={"localEpochs": 2, "batchSize": 10, "learningRate": "0.1"},
        clients=[{"name": "site", "replicas": 4}],
    )
    curves = []
    for name, broker in (("embedded", None), ("apache", apache_kafka.bootstrap_servers)):
        # One worker: the updates come in the same order, so even the last bit is the same.
        result = fedlog.run(document, broker=broker, workers=1, runs=tmp_path / name, quiet=True)
        assert result.outcome == "Complete"
        assert result.folder is not None
        reports = read_metrics(result.folder / "metrics.jsonl")
        curves.append([(r.digest, r.metric("accuracy", "HeldOut")) for r in reports])
    assert len(curves[0]) == 6
    assert curves[0] == curves[1]


@pytest.mark.apache_kafka
def test_100_mb_pass_through_a_broker_with_its_default_limits(
    tmp_path: Path, apache_kafka: ApacheKafka
) -> None:
    document = job(
        "fedlog.tasks.noop:task",
        parameters={"sizeBytes": 100_000_000},
        rounds=1,
        evaluation={"every": 0},
        clients=[{"name": "site", "replicas": 2}],
    )
    result = fedlog.run(document, broker=apache_kafka.bootstrap_servers, runs=tmp_path, quiet=True)
    assert (result.outcome, result.rounds) == ("Complete", 1)
    assert result.participation == {"site/0": 1, "site/1": 1}
    assert result.bytes_up > 200_000_000
