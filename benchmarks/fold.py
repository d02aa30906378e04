"""Throughput of the aggregation kernel beside numpy's whole-array expression.

Both add the same update to float64 accumulators. `fedlog` is WeightedMean.fold as the server runs
it, with its check that every value is finite; `numpy` is ``acc += w * x`` per tensor, unchecked.
The repetitions alternate, since other work on the machine slows down whatever runs at the time.

Run: python benchmarks/fold.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from fedlog.learning.mean import WeightedMean
from fedlog.learning.weights import Update, size_bytes

SHAPES = {"embedding": (3_000, 2_000), "dense": (4_096, 2_048), "head": (1_000, 5_000),
          "flat": (5_611_392,)}  # 25 million float32: 100 MB  # fmt: skip
EXAMPLES = 37


def measure(repetitions: int = 15) -> dict[str, float]:
    """fold_ratio: numpy's median time through fedlog's. fold_gb_per_s: update bytes per second."""
    generator = np.random.default_rng(0)
    delta = {name: generator.standard_normal(s, dtype=np.float32) for name, s in SHAPES.items()}
    update = Update(client="site/0", delta=delta, examples=EXAMPLES)
    mean = WeightedMean(delta)
    totals = {name: np.zeros(array.shape, np.float64) for name, array in delta.items()}
    weight = np.float64(EXAMPLES)

    def numpy_fold() -> None:
        for name in totals:
            totals[name] += weight * delta[name]

    mean.fold(update)  # first touch of the memory, for both
    numpy_fold()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        mean.fold(update)
        middle = time.perf_counter()
        numpy_fold()
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)

    folded = mean.close()
    for name, total in totals.items():
        np.testing.assert_array_equal(folded[name], total / (EXAMPLES * (repetitions + 1)))
    return {
        "fold_ratio": statistics.median(theirs) / statistics.median(ours),
        "fold_gb_per_s": size_bytes(delta) / statistics.median(ours) / 1e9,
    }


if __name__ == "__main__":
    for figure, value in measure().items():
        print(f"{figure}: {value:.2f}")
