"""Clients with other models than the global one."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

import fedlog
from fedlog.client.trainer import Trainer
from fedlog.job.loading import JobFile, loads
from fedlog.learning.strategies import make_strategy
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.wire.limits import Limits
from fedlog.wire.records import Training
from fedlog.wire.updates import decode_update, encode_update

TASKS = Path(__file__).parent / "adaptation"
JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {{name: adapted}}
spec:
  task: {{entrypoint: "{task}.py:task"}}
  rounds: {rounds}
  seed: {seed}
  partitioning: {{name: Iid}}
  training: {{localEpochs: 2, batchSize: 16, learningRate: "0.1"}}
  evaluation: {{heldOut: {{}}}}
  weightAdaptation: {policy}
  clients:
  - {{name: site-a, replicas: 2}}
  - {{name: site-b, replicas: 2, parameters: {other}}}
"""


def job(task: str, other: str, policy: str, *, rounds: int, seed: int = 0) -> JobFile:
    text = JOB.format(task=task, rounds=rounds, seed=seed, policy=policy, other=other)
    return loads(text, path=TASKS / "job.yaml")


def learned(job_file: JobFile) -> float:
    """Held-out accuracy after all rounds: one process, the update as bytes, no broker."""
    spec = job_file.job.spec
    trainer = Trainer(job_file, {}, [*spec.client_ids(), "evaluator/0"])
    weights = {n: np.array(a) for n, a in trainer._task.model({}, spec.seed).weights().items()}
    strategy = make_strategy(spec.strategy, spec.weight_adaptation)
    work = Training(local_epochs=2, batch_size=16, learning_rate=0.1)
    limits = Limits.for_model(sum(a.nbytes for a in weights.values()))
    for round_ in range(1, spec.rounds + 1):
        aggregation = strategy.begin(weights, {})
        for client in spec.client_ids():
            trained = trainer.train(
                client,
                round_,
                work,
                f"v{round_ - 1}",
                weights,
                evaluate=False,
                should_stop=lambda: False,
            )
            assert trained is not None
            payload = b"".join(encode_update(trained.delta, trained.views))
            aggregation.fold(
                decode_update(payload, limits, client=client, examples=trained.examples)
            )
        aggregation.close_into(weights)
    result = trainer.evaluate("evaluator/0", "HeldOut", "last", weights)
    assert result is not None
    return result.metrics["accuracy"]


@pytest.mark.parametrize(
    ("rounds", "seeds"),
    [(8, 1), pytest.param(15, 5, marks=pytest.mark.soak)],
    ids=["small", "soak"],
)
def test_other_flattened_sizes_learn_within_three_points_of_the_matched_run(
    rounds: int, seeds: int
) -> None:
    """Half of the clients see 6 x 6 of 8 x 8 pixels: 288 instead of 512 rows after the flattening.

    The matched run is the same job with one model.
    """
    adapted, matched = (
        [learned(job("crops", other, policy, rounds=rounds, seed=seed)) for seed in range(seeds)]
        for other, policy in (("{pixels: 6}", "Adapt"), ("{}", "Strict"))
    )
    print({"adapted": adapted, "matched": matched})
    assert statistics.median(matched) > 0.9
    assert statistics.median(adapted) >= statistics.median(matched) - 0.03


def run(job_file: JobFile, tmp_path: Path, **overrides: str) -> fedlog.Result:
    return fedlog.run(
        job_file,
        runs=tmp_path,
        quiet=True,
        workers=2,
        overrides=[f"{name}={value}" for name, value in overrides.items()],
    )


def test_strict_refuses_another_model_before_any_training(tmp_path: Path) -> None:
    strict = job("perceptrons", "{hidden: [24]}", "Strict", rounds=3)
    result = run(strict, tmp_path, **{"spec.participation.minClients": "3"})
    assert result.outcome == "Failed"
    assert result.participation.get("site-b/0", 0) == result.participation.get("site-b/1", 0) == 0
    assert result.folder is not None
    logs = RunFolder(result.folder).logs
    server = (logs / "server.log").read_text()
    assert (
        "site-b/0: the model is not the global one, and spec.weightAdaptation is Strict" in server
    )
    assert "coefs_.0 is float32[64, 24], there is float32[64, 32]" in server
    assert "set spec.weightAdaptation to Adapt or Partial or Fresh" in server
    clients = "".join(path.read_text() for path in logs.glob("*.log") if path.name != "server.log")
    for row in (
        r"intercepts_.1  float32[10]      intercepts_.1  float32[10]      all",
        r"coefs_.1       float32[24, 10]  coefs_.1       float32[32, 10]  24x10 of 32x10",
    ):
        assert row in clients
    assert "trained round" not in "".join(line for line in clients.splitlines() if "site-b" in line)


@pytest.mark.parametrize(
    ("policy", "other", "kind"),
    [
        ("Adapt", "{hidden: [24]}", "Cut"),
        ("Partial", "{hidden: [24]}", "Partial"),
        ("Fresh", "{hidden: [24, 16]}", "Cut"),
    ],
)
def test_a_job_goes_through_with_another_model(
    policy: str, other: str, kind: str, tmp_path: Path
) -> None:
    result = run(job("perceptrons", other, policy, rounds=3), tmp_path)
    assert result.outcome == "Complete"
    assert set(result.participation.values()) == {3}
    assert result.folder is not None
    rounds = [r for r in read_metrics(RunFolder(result.folder).metrics) if r.round > 0]
    assert [dict(report.adapted) for report in rounds] == [{kind: 2}] * 3
    logs = "".join(p.read_text() for p in RunFolder(result.folder).logs.glob("*.log"))
    assert f"its model is not the global one: {policy}" in logs
