"""The learning of one process: one task, one learner, and the data of each client that it hosts.

Nothing here knows of the log. A Trainer is used by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedlog.job.loading import JobFile
from fedlog.job.model import EVALUATOR_GROUP
from fedlog.learning.weights import Weights, check_same_layout, size_bytes
from fedlog.tasks.base import (
    ClientData,
    Dataset,
    EvaluationResult,
    Learner,
    Partition,
    Task,
    TrainingConfig,
)
from fedlog.tasks.errors import TaskError
from fedlog.wire.limits import Limits
from fedlog.wire.records import MAX_METRIC, Training

MAX_METRICS = 64  # as the records allow
LOCAL_PREFIX = "local_"


@dataclass(frozen=True)
class Trained:
    """What one training gave; `delta` is trained minus received weights, in the model's dtypes."""

    delta: Weights
    examples: int
    metrics: Mapping[str, float]
    seconds: float


class Trainer:
    """Evaluates and trains for the clients of one process, one at a time."""

    def __init__(self, job_file: JobFile, data_paths: Mapping[str, str]) -> None:
        """Load the task and make its learner.

        data_paths: group -> path, instead of the job's. Raises TaskError.
        """
        from fedlog.tasks.loading import load_task
        from fedlog.tasks.partitioners import make_partitioner

        spec = job_file.job.spec
        self._spec = spec
        self._base = job_file.base
        self._paths: dict[str, str | None] = {g.name: g.data.path for g in spec.clients}
        if spec.evaluation.held_out is not None:
            self._paths[EVALUATOR_GROUP] = spec.evaluation.held_out.data.path
        self._paths |= data_paths
        self._numbers = {client: n for n, client in enumerate(spec.client_ids())}
        self._task: Task = load_task(
            spec.task, base=job_file.base, config_maps=job_file.config_maps
        )
        self._learner: Learner = self._task.model(spec.task.parameters, spec.seed)
        self.limits = Limits.for_model(size_bytes(self._learner.weights()))
        self._partitioner = make_partitioner(spec.partitioning)
        self._data: dict[str, ClientData] = {}
        self._held_out: Dataset | None = None
        self._loaded = ""  # identity of the version that the learner holds unchanged

    def evaluate(
        self, client: str, test_set: Literal["HeldOut", "Clients"], base: str, weights: Weights
    ) -> EvaluationResult | None:
        """Figures of a version of the model; None where the client has no test data.

        base: identity of the version. Raises TaskError, ShapeMismatchError, and whatever the
        user's code raises.
        """
        data = self._held_out_data() if test_set == "HeldOut" else self._client_data(client).test
        if data is None or len(data.y) == 0:
            return None
        self._load(base, weights)
        result = self._learner.evaluate(data)
        return EvaluationResult(result.examples, finite(result.metrics))

    def train(
        self,
        client: str,
        round_: int,
        work: Training,
        base: str,
        weights: Weights,
        *,
        evaluate: bool,
        should_stop: Callable[[], bool],
    ) -> Trained | None:
        """Train one round from a version of the model; None once `should_stop` says so.

        evaluate: measure the trained model on the client's own test data, too. Raises as
        `evaluate`, and TaskError where the client has nothing to train on.
        """
        data = self._client_data(client)
        if len(data.train.y) == 0:
            raise TaskError(f"{client} has no training examples: give it data, or leave it out")
        if should_stop():
            return None
        self._load(base, weights)
        self._loaded = ""
        begin = time.monotonic()
        fitted = self._learner.fit(
            data.train,
            TrainingConfig(
                epochs=work.local_epochs,
                batch_size=work.batch_size,
                learning_rate=work.learning_rate,
                seed=training_seed(self._spec.seed, round_, self._numbers[client]),
                should_stop=should_stop,
            ),
        )
        seconds = time.monotonic() - begin
        if should_stop():
            return None
        metrics = dict(fitted.metrics)
        if evaluate and data.test is not None and len(data.test.y) > 0:
            local = self._learner.evaluate(data.test)
            metrics |= {f"{LOCAL_PREFIX}{name}": value for name, value in local.metrics.items()}
        delta = subtract_in_place(self._learner.weights(), weights)
        return Trained(delta, fitted.examples, finite(metrics), seconds)

    def number(self, client: str) -> int:
        """The client's number in the job."""
        return self._numbers[client]

    def _load(self, base: str, weights: Weights) -> None:
        if self._loaded != base:
            self._loaded = ""
            self._learner.set_weights(weights)
            self._loaded = base

    def _client_data(self, client: str) -> ClientData:
        if client not in self._data:
            group = client.partition("/")[0]
            partition = self._partition(self._numbers[client], group)
            self._data[client] = self._task.data(partition, self._spec.task.parameters)
        return self._data[client]

    def _held_out_data(self) -> Dataset:
        if self._held_out is None:
            held_out = getattr(self._task, "held_out", None)
            if held_out is None:
                raise TaskError(
                    "evaluation.heldOut is given, but the task has no held_out(partition, "
                    "parameters): add it to the task, or remove evaluation.heldOut"
                )
            partition = self._partition(0, EVALUATOR_GROUP)
            data: Dataset = held_out(partition, self._spec.task.parameters)
            self._held_out = data
        return self._held_out

    def _partition(self, index: int, group: str) -> Partition:
        path = self._paths.get(group)
        return Partition(
            index=index,
            count=self._spec.client_count,
            group=group,
            path=None if path is None else str((Path(self._base) / path).absolute()),
            partitioner=self._partitioner,
            seed=self._spec.seed,
        )


def training_seed(job_seed: int, round_: int, number: int) -> int:
    """The seed of one client's training in one round, below 2**31: a restarted client trains the
    same.
    """
    words = np.random.SeedSequence([job_seed, round_, number]).generate_state(1)
    return int(words[0]) % 2**31


def subtract_in_place(trained: Weights, received: Weights) -> Weights:
    """Trained - received, written into the arrays of `trained`, so that no third model is held.

    A tensor of integers or booleans does not take part in a mean: its delta is zero.
    """
    check_same_layout(received, trained)
    for name, array in trained.items():
        if np.issubdtype(array.dtype, np.floating):
            np.subtract(array, received[name], out=array)
        else:
            array.fill(0)
    return trained


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a record can carry: finite ones up to MAX_METRIC, the first 64."""
    values = {name: float(value) for name, value in metrics.items()}
    return dict(
        [(name, value) for name, value in values.items() if abs(value) <= MAX_METRIC][:MAX_METRICS]
    )
