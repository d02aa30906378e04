"""Datasets: checked where they come from the user, and divided into training and test parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlog.tasks.base import ClientData, Dataset, Parameters, Partition
from fedlog.tasks.errors import DataError

Indices = npt.NDArray[np.int64]


def as_dataset(value: Any, what: str) -> Dataset:
    """`(x, y)` as a Dataset of two arrays. Raises DataError, which names `what`.

    At least one example, as many labels as examples; TensorFlow tensors and lists become arrays.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{what} is {type(value).__name__}, expected a pair (x, y) of arrays")
    dataset = Dataset(np.asarray(value[0]), np.asarray(value[1]))
    for name, array in zip(Dataset._fields, dataset, strict=True):
        if array.ndim == 0 or array.dtype == object:
            raise DataError(
                f"{what}: {name} is no array of numbers with examples on its first axis"
            )
    if len(dataset.x) != len(dataset.y):
        raise DataError(f"{what}: {len(dataset.x)} examples in x, {len(dataset.y)} in y")
    if len(dataset.x) == 0:
        raise DataError(f"{what} is empty")
    return dataset


def as_client_data(value: Any) -> ClientData:
    """What a task's data function returned: `(train, test)`, test possibly None."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(
            f"the task's data function returned {type(value).__name__}, expected "
            "ClientData(train, test), each a pair (x, y); test may be None"
        )
    train, test = value
    return ClientData(
        as_dataset(train, "training data"),
        None if test is None else as_dataset(test, "test data"),
    )


def checked_held_out(
    held_out: Callable[[Partition, Parameters], Any],
) -> Callable[[Partition, Parameters], Dataset]:
    """The user's held-out function, with what it returns checked."""

    def checked(partition: Partition, parameters: Parameters) -> Dataset:
        return as_dataset(held_out(partition, parameters), "held-out data")

    return checked


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[Indices, Indices]:
    """Two ascending index arrays, the second with `share` (0..1) of every class, rounded.

    A function of its arguments. Together they hold every example exactly once.
    """
    rng = np.random.default_rng(seed)
    second = [
        rng.permutation(members)[: round(share * len(members))]
        for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    chosen = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def client_data(
    pool: Dataset, partition: Partition, *, test_share: float, limit: int | None = None
) -> ClientData:
    """The partition's part of a shared `pool`, with `test_share` of it kept for testing.

    The test part is random, a function of the job's seed and the partition's index; it has at
    least one example where the part has two. limit: at most so many training examples.
    """
    mine = pool.take(partition.indices(pool.y))
    if len(mine.y) == 0:
        raise DataError(f"client {partition.index} of {partition.count} has no examples")
    rng = np.random.default_rng([partition.seed, partition.index])
    order = rng.permutation(len(mine.y))
    kept = min(max(1, round(test_share * len(order))), len(order) - 1)
    train = mine.take(np.sort(order[kept:][:limit]))
    return ClientData(train, mine.take(np.sort(order[:kept])) if kept else None)
