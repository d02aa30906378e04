"""The Task interface: what to learn and from which data.

A task is any object with the two methods below; `fedlog.tasks.keras.KerasTask` and
`fedlog.tasks.sklearn.SklearnTask` make one from two functions. A learner adapts one library's
model. Importing this module loads numpy and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fedlog.learning.weights import Weights
from fedlog.tasks.partitioners import NO_COLUMNS, Columns, Partitioner

Parameters = Mapping[str, Any]
"""`spec.task.parameters`, as they stand in the job."""


class Dataset(NamedTuple):
    """Examples along the first axis of both arrays, and as many in one as in the other."""

    x: np.ndarray
    y: np.ndarray

    def take(self, indices: np.ndarray) -> Dataset:
        return Dataset(self.x[indices], self.y[indices])


class ClientData(NamedTuple):
    """A client's own data; `test` is never trained on. None where it has no test data."""

    train: Dataset
    test: Dataset | None


@dataclass(frozen=True)
class Partition:
    """Which part of the data a client holds.

    index, count: the client's number among all clients of the job, and how many there are; both
    fixed when the job is created. group: name of its group. path: the group's `data.path`,
    absolute, or None. partitioner: from `spec.partitioning`, seeded; None where the site's own
    data is all there is. seed: the job's seed.
    """

    index: int
    count: int
    group: str
    path: str | None = None
    partitioner: Partitioner | None = None
    seed: int = 0

    def indices(self, labels: np.ndarray, columns: Columns = NO_COLUMNS) -> np.ndarray:
        """The examples of this client among those with these labels, ascending.

        columns: further values per example by name, for NaturalId. Without a partitioner: all
        examples. Raises PartitionError.
        """
        if self.partitioner is None:
            return np.arange(len(labels))
        return self.partitioner.split(labels, self.count, self.seed, columns)[self.index]


@dataclass(frozen=True)
class TrainingConfig:
    """One round's work. seed: a function of job seed, round and client, so that a restarted
    client trains the same. should_stop is asked between batches or epochs; True ends early and
    the result is thrown away.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    should_stop: Callable[[], bool] = field(default=lambda: False)


class FitResult(NamedTuple):
    """examples: distinct training examples, the weight of the update. metrics: `loss` and others,
    of the last epoch, on the training data.
    """

    examples: int
    metrics: dict[str, float]


class EvaluationResult(NamedTuple):
    """Means over `examples` examples; `loss` and the model's own metrics, such as `accuracy`."""

    examples: int
    metrics: dict[str, float]


class Learner(Protocol):
    """One model in memory. Used by one thread at a time; several clients of one process share it,
    so nothing of a client stays in it from one `fit` to the next: the optimizer starts afresh.
    """

    def weights(self) -> Weights:
        """A copy of all weights by name, trainable ones first, in the model's order."""

    def set_weights(self, weights: Weights) -> None:
        """Raises ShapeMismatchError when names, shapes or dtypes differ."""

    def fit(self, data: Dataset, config: TrainingConfig) -> FitResult: ...

    def evaluate(self, data: Dataset) -> EvaluationResult: ...


@runtime_checkable
class Task(Protocol):
    """What is learned. Instances are made once per process, from the entrypoint.

    Optional besides: `held_out(partition, parameters) -> Dataset`, the evaluator's data;
    `save(weights, parameters, path)`, the final model in the library's own format.
    """

    def model(self, parameters: Parameters, seed: int) -> Learner:
        """A fresh model; its initial weights are a function of the parameters and the seed."""

    def data(self, partition: Partition, parameters: Parameters) -> ClientData: ...
