"""The same federated training as a plain loop in one process: no Kafka, no other processes.

    python -m benchmarks.learning_loop [JOB.yaml] [--set path=value]...

It is the floor for `fedlog run`: the same task, data, learner and seeds, every client in every
round, the mean of the trained weights as numpy writes it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedlog.client.trainer import training_seed
from fedlog.job.loading import JobFile, load
from fedlog.job.model import EVALUATOR_GROUP
from fedlog.job.schedule import learning_rate
from fedlog.learning.weights import is_averaged
from fedlog.tasks.base import Partition, TrainingConfig
from fedlog.tasks.loading import load_task
from fedlog.tasks.partitioners import make_partitioner

DEFAULT_JOB = Path(__file__).parents[1] / "examples/mnist/federatedjob.yaml"


def silent(line: str) -> None:
    """Say nothing."""


def plain_loop(job: JobFile, say: Callable[[str], None] = silent) -> dict[str, Any]:
    """FedAvg over `spec.rounds` rounds.

    Returns accuracy (held-out, per round), loss, seconds (per round), total_s (all rounds),
    setup_s (imports, model, data: what a process pays before its first round).
    """
    spec = job.job.spec
    began = time.perf_counter()
    task = load_task(spec.task, base=job.base, config_maps=job.config_maps)
    learner = task.model(spec.task.parameters, spec.seed)
    partitioner = make_partitioner(spec.partitioning)
    groups = [(g.name, g.data.path) for g in spec.clients for _ in range(g.replicas)]
    clients = [
        task.data(
            Partition(
                number,
                len(groups),
                group,
                path=None if path is None else str(job.base / path),
                partitioner=partitioner,
                seed=spec.seed,
            ),
            spec.task.parameters,
        ).train
        for number, (group, path) in enumerate(groups)
    ]
    held_out = task.held_out(Partition(0, 1, EVALUATOR_GROUP, seed=spec.seed), spec.task.parameters)  # type: ignore[attr-defined]  # optional in the protocol; the built-in tasks have it
    weights = learner.weights()
    setup_s = time.perf_counter() - began

    accuracy, loss, seconds = [], [], []
    for round_ in range(1, spec.rounds + 1):
        began = time.perf_counter()
        total = {name: np.zeros(a.shape, np.float64) for name, a in weights.items()}
        examples = 0
        for number, data in enumerate(clients):
            learner.set_weights(weights)
            fitted = learner.fit(
                data,
                TrainingConfig(
                    epochs=spec.training.local_epochs,
                    batch_size=spec.training.batch_size,
                    learning_rate=learning_rate(spec.training, round_ - 1, spec.rounds),
                    seed=training_seed(spec.seed, round_, number),
                ),
            )
            for name, array in learner.weights().items():
                total[name] += fitted.examples * array.astype(np.float64)
            examples += fitted.examples
        weights = {
            name: (total[name] / examples).astype(a.dtype) if is_averaged(a) else a
            for name, a in weights.items()
        }
        learner.set_weights(weights)
        metrics = learner.evaluate(held_out).metrics
        seconds.append(time.perf_counter() - began)
        accuracy.append(metrics.get("accuracy", float("nan")))
        loss.append(metrics["loss"])
        say(
            f"round {round_:3d}  accuracy {accuracy[-1]:.4f}  loss {loss[-1]:.4f}  "
            f"{seconds[-1]:.2f} s"
        )
    return {
        "accuracy": accuracy,
        "loss": loss,
        "seconds": seconds,
        "total_s": sum(seconds),
        "setup_s": setup_s,
    }


def main() -> None:
    """Print a line per round, then the totals."""
    parser = argparse.ArgumentParser(description="A job's training as a plain loop.")
    parser.add_argument("job", nargs="?", type=Path, default=DEFAULT_JOB)
    parser.add_argument("--set", action="append", default=[], metavar="path=value")
    options = parser.parse_args()
    result = plain_loop(load(options.job, overrides=options.set), print)
    median = statistics.median(result["seconds"])
    print(
        f"total {result['total_s']:.2f} s, median round {median:.2f} s, "
        f"setup {result['setup_s']:.2f} s, last accuracy {result['accuracy'][-1]:.4f}"
    )


if __name__ == "__main__":
    main()
