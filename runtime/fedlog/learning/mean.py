"""The running weighted mean of updates.

The arithmetic is the same on every machine, so that a round that is folded again gives the same
bytes: element-wise numpy in float64, no BLAS (its sums depend on the number of threads and the
kind of core), no fused multiply-add, one rounding per operation. For each element, over the
updates in the order of folding::

    total  = 0.0;  total = total + examples_k * delta_k
    mean   = total / sum(examples_k)
    model' = (total * learning_rate) / sum(examples_k) + model, rounded once to the model's dtype

Where updates cover parts of the model (`fedlog.learning.coverage`), both sums run for each
coordinate over the updates that cover it, as in E. Diao, J. Ding, V. Tarokh: HeteroFL. ICLR 2021.
arXiv:2010.01264, Algorithm 1; a coordinate that no update covers keeps the model's value, bit for
bit. With updates that all cover the whole model the result is the same as without, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlog.learning.coverage import Part, Parts, check_parts, coverage
from fedlog.learning.errors import (
    EmptyCohortError,
    LearningError,
    NonFiniteError,
    ShapeMismatchError,
)
from fedlog.learning.weights import (
    Array,
    Shape,
    Update,
    Weights,
    check_same_layout,
    is_averaged,
    layout_of,
)

Totals = dict[str, npt.NDArray[np.float64]]

# Elements worked on at a time: 64 KiB of float32 and twice 128 KiB of float64 stay in the second
# level cache, where a whole-array expression would go to memory and back for its temporary.
BLOCK = 16_384

MAX_DISTINCT_PARTS = 64
"""Different parts of one tensor that are remembered as such. Beyond, the examples are counted per
coordinate at once, so that memory stays bounded whatever clients send."""


def _largest(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).max)


_FLOAT32_MAX = _largest(np.dtype(np.float32))


class WeightedMean:
    """Running mean of updates, weighted by examples (McMahan et al. 2017, Algorithm 1).

    Holds one float64 accumulator per averaged tensor, and nothing of an update after its fold. With
    partial updates `close` takes a float64 count per coordinate besides, of one tensor at a time.

    examples: training examples folded so far. updates: updates folded so far. adapted: how many of
    them cover the model only in part, by kind (Cut, Partial: see `fedlog.learning.coverage`).
    """

    examples: int
    updates: int
    adapted: Counter[str]

    def __init__(self, like: Weights, *, partial: bool = False) -> None:
        """An empty mean for a model with the names, shapes and dtypes of `like`.

        partial: whether an update may cover a part of the model.
        """
        self._layout = layout_of(like)
        self._totals: Totals | None = {
            name: np.zeros(array.shape, np.float64)
            for name, array in like.items()
            if is_averaged(array)
        }
        self.examples = 0
        self.updates = 0
        self.adapted = Counter()
        self._partial = partial
        self._counts = {name: _Counts(self._layout[name].shape) for name in self._totals}
        self._scratch = np.empty(BLOCK, np.float64)
        self._flags = np.empty(BLOCK, np.bool_)

    def fold(self, update: Update) -> None:
        """Add one update.

        Raises ShapeMismatchError when a tensor differs in name, shape or dtype (with `partial`: as
        `check_parts`), NonFiniteError when one holds NaN, infinity, or (in float64) a value beyond
        the range of float32, and LearningError when it stands for no example. Nothing was added
        then.
        """
        totals = self._open_totals()
        parts = self._check_layout(update)
        if update.examples < 1:
            raise LearningError(
                f"an update of {update.client} stands for {update.examples} examples"
            )
        for name in totals:
            if name in update.delta and not self._is_finite(update.delta[name]):
                raise NonFiniteError(
                    f"the update of {update.client} holds NaN or infinity in tensor {name!r}: "
                    "lower the learning rate or clip gradients"
                )
        weight = np.float64(update.examples)
        for name, total in totals.items():
            if name not in parts:
                blocks = _blocks(total, update.delta[name])
            else:
                part = parts[name]
                self._counts[name].covered_in_part(part, update.examples)
                if part is None:
                    continue
                blocks = _box_blocks(part.of(total), update.delta[name])
            for target, delta in blocks:
                weighted = self._scratch[: target.size].reshape(target.shape)
                np.multiply(delta, weight, out=weighted, dtype=np.float64)
                np.add(target, weighted, out=target)
        self.examples += update.examples
        self.updates += 1
        if parts:
            self.adapted[coverage(parts)] += 1

    def close(self) -> Totals:
        """The mean in float64, of the averaged tensors only; 0 where no update covers a coordinate.
        The object is used up.

        Raises EmptyCohortError when nothing was folded.
        """
        totals = self._open_totals()
        self._check_not_empty()
        self._totals = None
        for name, total in totals.items():
            counts = self._counts[name].per_coordinate(self.examples)
            examples = np.float64(self.examples) if counts is None else np.maximum(counts, 1)
            np.divide(total, examples, out=total)
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

        rate = np.float64(learning_rate)
        for name, total in totals.items():
            largest = _largest(base[name].dtype)
            counts = self._counts[name].per_coordinate(self.examples)
            divisors = _divisors(counts, self.examples)
            for (target, old), (examples, uncovered) in zip(
                _blocks(total, base[name]), divisors, strict=False
            ):
                np.multiply(target, rate, out=target)
                np.divide(target, examples, out=target)
                np.add(target, old, out=target)
                if uncovered is not None:
                    np.copyto(target, old, where=uncovered)  # -0.0 + 0.0 would be 0.0
                if not self._is_within(target, largest):
                    raise NonFiniteError(
                        f"tensor {name!r} of the new model exceeds {base[name].dtype}: training "
                        "diverges; lower the learning rate"
                    )
        for name, total in totals.items():
            np.copyto(base[name], total, casting="same_kind")

    def _check_layout(self, update: Update) -> Parts:
        """What is covered of the tensors that are not covered as a whole."""
        if self._partial:
            return check_parts(self._layout, update)
        if update.views:
            raise ShapeMismatchError("the update sees the model's tensors in other shapes")
        check_same_layout(self._layout, update.delta)
        return {}

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


def _box_blocks(target: Array, delta: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of at most BLOCK elements of two arrays of one shape, in C order; always views."""
    if target.size <= BLOCK:
        yield target, delta
        return
    inner = target.size // len(target)
    if inner > BLOCK:
        for row, other in zip(target, delta, strict=True):
            yield from _box_blocks(row, other)
        return
    rows = BLOCK // inner
    for begin in range(0, len(target), rows):
        yield target[begin : begin + rows], delta[begin : begin + rows]


class _Counts:
    """Training examples behind each coordinate of one tensor."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._in_part = 0  # examples of the updates that do not cover the tensor as a whole
        self._by_part: dict[Part, int] = {}
        self._counted: npt.NDArray[np.float64] | None = None

    def covered_in_part(self, part: Part | None, examples: int) -> None:
        """An update of so many examples covers no more than this part; None: nothing."""
        self._in_part += examples
        if part is None:
            return
        self._by_part[part] = self._by_part.get(part, 0) + examples
        if len(self._by_part) > MAX_DISTINCT_PARTS:
            if self._counted is None:
                self._counted = np.zeros(self._shape, np.float64)
            self._add_to(self._counted)
            self._by_part.clear()

    def per_coordinate(self, examples: int) -> npt.NDArray[np.float64] | None:
        """The counts, of so many examples in all; None where all stand behind all coordinates."""
        if self._in_part == 0:
            return None
        counts = self._counted
        if counts is None:
            counts = np.zeros(self._shape, np.float64)
        self._counted = None
        self._add_to(counts)
        np.add(counts, np.float64(examples - self._in_part), out=counts)
        return counts

    def _add_to(self, counts: npt.NDArray[np.float64]) -> None:
        for part, examples in self._by_part.items():
            covered = part.of(counts)
            np.add(covered, np.float64(examples), out=covered)


def _divisors(
    counts: npt.NDArray[np.float64] | None, examples: int
) -> Iterator[tuple[npt.NDArray[np.float64] | np.float64, npt.NDArray[np.bool_] | None]]:
    """Block by block: what the totals are divided by, and which coordinates nothing covers."""
    if counts is None:
        yield from repeat((np.float64(examples), None))
        return
    flat = counts.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        block = flat[begin : begin + BLOCK]
        uncovered = block == 0
        yield np.maximum(block, 1, out=block), uncovered
