"""The accuracies that the digits task is held to, by a plain loop: no broker takes part."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from benchmarks.learning_loop import plain_loop

from fedlog.job.loading import loads

JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {{name: digits}}
spec:
  task: {{entrypoint: "fedlog.tasks.digits:task", parameters: {{model: {model}}}}}
  rounds: {rounds}
  seed: {seed}
  partitioning: {partitioning}
  clients: [{{name: site, replicas: 10}}]
  training: {{localEpochs: {epochs}, batchSize: 10, learningRate: "0.1"}}
  evaluation: {{heldOut: {{}}}}
"""
IID = "{name: Iid}"
SKEWED = '{name: Dirichlet, parameters: {alpha: "0.1"}}'


def reached(model: str, partitioning: str, epochs: int, rounds: int, seed: int) -> float:
    text = JOB.format(
        model=model, rounds=rounds, seed=seed, partitioning=partitioning, epochs=epochs
    )
    accuracy: list[float] = plain_loop(loads(text, path=Path("job.yaml")))["accuracy"]
    return accuracy[-1]


@pytest.mark.parametrize(
    ("model", "partitioning", "epochs", "rounds", "wanted"),
    [
        ("sklearn", IID, 5, 8, 0.95),
        ("sklearn", SKEWED, 1, 30, 0.90),
        pytest.param("mlp", IID, 5, 8, 0.95, marks=pytest.mark.soak),
        pytest.param("mlp", SKEWED, 1, 30, 0.90, marks=pytest.mark.soak),
    ],
    ids=["sklearn-iid", "sklearn-skewed", "mlp-iid", "mlp-skewed"],
)
def test_digits_median_of_five_seeds(
    model: str, partitioning: str, epochs: int, rounds: int, wanted: float
) -> None:
    last = [reached(model, partitioning, epochs, rounds, seed) for seed in range(5)]
    assert statistics.median(last) >= wanted, last
