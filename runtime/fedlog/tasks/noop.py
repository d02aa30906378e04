"""A task that trains by doing nothing, to measure all that is not training.

parameters.sizeBytes: size of the model, one float32 tensor `w` (default 1024 bytes); or
parameters.shapes: tensors by name, `{w: [100, 10], b: [10]}`. An update adds DELTA everywhere; its
evaluation is the first weight. Every client has one example.
"""

from __future__ import annotations

import numpy as np

from fedlog.learning.weights import Weights, check_same_layout
from fedlog.tasks.base import (
    ClientData,
    Dataset,
    EvaluationResult,
    FitResult,
    Parameters,
    Partition,
    TrainingConfig,
)
from fedlog.tasks.errors import ParameterError
from fedlog.tasks.parameters import check_known

DELTA = np.float32(2**-10)
"""What one fit adds to each weight; a power of two, so that means of it are exact."""
_ITEM_BYTES = 4
_DEFAULT_BYTES = 1024
_ONE_EXAMPLE = Dataset(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))


class NoopLearner:
    """Weights without a model."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights

    def weights(self) -> Weights:
        return {name: array.copy() for name, array in self._weights.items()}

    def set_weights(self, weights: Weights) -> None:
        check_same_layout(self._weights, weights)
        for name, array in self._weights.items():
            array[...] = weights[name]

    def fit(self, data: Dataset, config: TrainingConfig) -> FitResult:
        for array in self._weights.values():
            np.add(array, DELTA, out=array)
        return FitResult(len(data.y), {"loss": 0.0})

    def evaluate(self, data: Dataset) -> EvaluationResult:
        first = next(iter(self._weights.values()))
        return EvaluationResult(len(data.y), {"loss": 0.0, "weight": float(first.flat[0])})


class NoopTask:
    """See the module."""

    def model(self, parameters: Parameters, seed: int) -> NoopLearner:
        return NoopLearner(
            {name: np.zeros(shape, np.float32) for name, shape in _shapes(parameters).items()}
        )

    def data(self, partition: Partition, parameters: Parameters) -> ClientData:
        return ClientData(_ONE_EXAMPLE, _ONE_EXAMPLE)

    def held_out(self, partition: Partition, parameters: Parameters) -> Dataset:
        return _ONE_EXAMPLE


def _shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    check_known(parameters, "sizeBytes", "shapes")
    shapes = parameters.get("shapes")
    if shapes is None:
        size = parameters.get("sizeBytes", _DEFAULT_BYTES)
        if not _is_count(size) or size % _ITEM_BYTES:
            raise ParameterError(
                f"spec.task.parameters.sizeBytes is {size!r}, allowed is a positive multiple of 4"
            )
        return {"w": (size // _ITEM_BYTES,)}
    if not isinstance(shapes, dict) or not shapes:
        raise ParameterError(
            f"spec.task.parameters.shapes is {shapes!r}, allowed is shapes by name: {{w: [2, 3]}}"
        )
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not shape or not all(_is_count(n) for n in shape):
            raise ParameterError(
                f"spec.task.parameters.shapes.{name} is {shape!r}, allowed is a list of whole "
                "numbers of at least 1"
            )
    return {name: tuple(shape) for name, shape in shapes.items()}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


task = NoopTask()
