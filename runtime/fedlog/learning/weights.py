"""Named weights and the sign, dtype and units of an update, written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedlog.learning.errors import ShapeMismatchError

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]
Weights = Mapping[str, Array]
"""Named arrays in the model's own order (a dict keeps it). Global weights, a client's trained
weights and an update's delta all have this shape."""


def is_averaged(array: Array) -> bool:
    """Whether a tensor takes part in means.

    Floats do; integers and booleans (counters, seeds of random layers) keep the model's value.
    """
    return np.issubdtype(array.dtype, np.floating)


@dataclass(frozen=True)
class Update:
    """What one client contributes to one round.

    client: identity, ``group/index``.
    delta: trained minus received weights, the model's dtypes (float32 in practice) and shapes.
    Where the job allows it, tensors may be missing or smaller: see `fedlog.learning.coverage`.
    examples: training examples that the delta stands for, > 0; the weight in the mean.
    views: tensor -> the shape in which the model's tensor is seen, where that is not its own.
    """

    client: str
    delta: Weights
    examples: int
    views: Mapping[str, Shape] = field(default_factory=dict)


def layout_of(weights: Weights) -> Weights:
    """Stand-ins with names, shapes and dtypes: neither the memory nor a reference to it."""
    return {
        name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
        for name, array in weights.items()
    }


def check_same_layout(expected: Weights, found: Weights) -> None:
    """Raise ShapeMismatchError unless names, shapes and dtypes are equal; order is free."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        raise ShapeMismatchError(
            f"tensors differ: missing {missing[:5] or 'none'}, unexpected {extra[:5] or 'none'}"
        )
    for name, array in expected.items():
        other = found[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            raise ShapeMismatchError(
                f"tensor {name!r} is {other.dtype}{list(other.shape)}, "
                f"expected {array.dtype}{list(array.shape)}"
            )


def size_bytes(weights: Weights) -> int:
    return sum(array.nbytes for array in weights.values())
