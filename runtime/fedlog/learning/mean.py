"""The running weighted mean of updates.

The arithmetic is the same on every machine, so that a round that is folded again gives the same
bytes: element-wise numpy in float64, no BLAS (its sums depend on the number of threads and the
kind of core), no fused multiply-add, one rounding per operation. For each element, over the
updates in the order of folding::

    total  = 0.0;  total = total + examples_k * delta_k
    mean   = total / sum(examples_k)
    model' = (total * learning_rate) / sum(examples_k) + model, rounded once to the model's dtype
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlog.learning.errors import EmptyCohortError, LearningError, NonFiniteError
from fedlog.learning.weights import Array, Update, Weights, check_same_layout

Totals = dict[str, npt.NDArray[np.float64]]

# Elements worked on at a time: 64 KiB of float32 and twice 128 KiB of float64 stay in the second
# level cache, where a whole-array expression would go to memory and back for its temporary.
BLOCK = 16_384


def _largest(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).max)


_FLOAT32_MAX = _largest(np.dtype(np.float32))


def is_averaged(array: Array) -> bool:
    """Whether a tensor takes part in means.

    Floats do; integers and booleans (counters, seeds of random layers) keep the model's value.
    """
    return np.issubdtype(array.dtype, np.floating)


class WeightedMean:
    """Running mean of updates, weighted by examples (McMahan et al. 2017, Algorithm 1).

    Holds one float64 accumulator per averaged tensor, and nothing of an update after its fold.

    examples: training examples folded so far. updates: updates folded so far.
    """

    examples: int
    updates: int

    def __init__(self, like: Weights) -> None:
        """An empty mean for a model with the names, shapes and dtypes of `like`."""
        # Stand-ins that have the layout of the model, but neither its memory nor a reference to it.
        self._layout = {
            name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
            for name, array in like.items()
        }
        self._totals: Totals | None = {
            name: np.zeros(array.shape, np.float64)
            for name, array in like.items()
            if is_averaged(array)
        }
        self.examples = 0
        self.updates = 0
        self._scratch = np.empty(BLOCK, np.float64)
        self._flags = np.empty(BLOCK, np.bool_)

    def fold(self, update: Update) -> None:
        """Add one update.

        Raises ShapeMismatchError when a tensor differs in name, shape or dtype, NonFiniteError
        when one holds NaN, infinity, or (in float64) a value beyond the range of float32, and
        LearningError when it stands for no example. Nothing was added then.
        """
        totals = self._open_totals()
        check_same_layout(self._layout, update.delta)
        if update.examples < 1:
            raise LearningError(
                f"an update of {update.client} stands for {update.examples} examples"
            )
        for name in totals:
            if not self._is_finite(update.delta[name]):
                raise NonFiniteError(
                    f"the update of {update.client} holds NaN or infinity in tensor {name!r}: "
                    "lower the learning rate or clip gradients"
                )
        weight = np.float64(update.examples)
        for name, total in totals.items():
            for target, delta in _blocks(total, update.delta[name]):
                weighted = self._scratch[: target.size]
                np.multiply(delta, weight, out=weighted, dtype=np.float64)
                np.add(target, weighted, out=target)
        self.examples += update.examples
        self.updates += 1

    def close(self) -> Totals:
        """The mean in float64, of the averaged tensors only. The object is used up.

        Raises EmptyCohortError when nothing was folded.
        """
        totals = self._open_totals()
        self._check_not_empty()
        self._totals = None
        for total in totals.values():
            np.divide(total, np.float64(self.examples), out=total)
        return totals

    def close_into(self, base: Weights, learning_rate: float = 1.0) -> None:
        """Turn the model `base` into base + learning_rate * mean, in place. The object is used up.

        The arrays of `base` must be writeable and C-contiguous. Raises EmptyCohortError when
        nothing was folded, and NonFiniteError when the new model would not be finite in its dtype;
        `base` is unchanged then.
        """
        totals = self._open_totals()
        self._check_not_empty()
        check_same_layout(self._layout, base)
        for name in totals:
            if not (base[name].flags.c_contiguous and base[name].flags.writeable):
                raise LearningError(f"tensor {name!r} cannot be changed in place: copy it first")
        self._totals = None

        rate, examples = np.float64(learning_rate), np.float64(self.examples)
        for name, total in totals.items():
            largest = _largest(base[name].dtype)
            for target, old in _blocks(total, base[name]):
                np.multiply(target, rate, out=target)
                np.divide(target, examples, out=target)
                np.add(target, old, out=target)
                if not self._is_within(target, largest):
                    raise NonFiniteError(
                        f"tensor {name!r} of the new model exceeds {base[name].dtype}: training "
                        "diverges; lower the learning rate"
                    )
        for name, total in totals.items():
            np.copyto(base[name], total, casting="same_kind")

    def _open_totals(self) -> Totals:
        if self._totals is None:
            raise RuntimeError("this mean was closed: start another one for the next round")
        return self._totals

    def _check_not_empty(self) -> None:
        if self.updates == 0:
            raise EmptyCohortError("no update was folded: there is no mean")

    def _is_finite(self, array: Array) -> bool:
        flat = array.reshape(-1)
        for begin in range(0, flat.size, BLOCK):
            block = flat[begin : begin + BLOCK]
            if block.itemsize > 4:
                # Sums of values that float32 can hold cannot overflow float64.
                if not self._is_within(block, _FLOAT32_MAX):
                    return False
            elif not np.isfinite(block, out=self._flags[: block.size]).all():
                return False
        return True

    def _is_within(self, block: Array, largest: float) -> bool:
        """Whether all magnitudes are at most `largest`; NaN is not."""
        magnitudes = np.abs(block, out=self._scratch[: block.size])
        return bool(np.less_equal(magnitudes, largest, out=self._flags[: block.size]).all())


def _blocks(first: Array, second: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of two arrays of one shape, in C order; of a contiguous array they are views."""
    flat, other = first.reshape(-1), second.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        yield flat[begin : begin + BLOCK], other[begin : begin + BLOCK]
