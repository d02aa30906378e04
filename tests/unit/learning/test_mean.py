from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedlog.learning.errors import (
    EmptyCohortError,
    LearningError,
    NonFiniteError,
    ShapeMismatchError,
)
from fedlog.learning.mean import BLOCK, WeightedMean
from fedlog.learning.weights import Update, Weights

GOLDEN = Path(__file__).parent / "golden"


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def update(delta: Weights, examples: int = 1, client: str = "site/0") -> Update:
    return Update(client=client, delta=delta, examples=examples)


def seeded_updates(count: int, size: int = 3 * BLOCK + 5) -> list[Update]:
    generator = np.random.default_rng(1)
    return [
        update(
            {
                "kernel": generator.standard_normal((size,), dtype=np.float32),
                "bias": generator.standard_normal((2, 3), dtype=np.float32),
            },
            examples=int(generator.integers(1, 1000)),
            client=f"site/{i}",
        )
        for i in range(count)
    ]


def test_mean_is_weighted_by_examples():
    mean = WeightedMean({"w": f32(0, 0, 0)})
    mean.fold(update({"w": f32(4, -2, 1)}, examples=1))
    mean.fold(update({"w": f32(-4, 6, 0.5)}, examples=3))
    assert (mean.examples, mean.updates) == (4, 2)
    # (1*4 + 3*-4)/4 = -2;  (1*-2 + 3*6)/4 = 4;  (1*1 + 3*0.5)/4 = 0.625
    result = mean.close()["w"]
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, [-2, 4, 0.625])


def test_close_into_moves_the_model_in_place_by_the_rate_times_the_mean():
    base = {"w": f32(10, -1, 0)}
    array = base["w"]
    mean = WeightedMean(base)
    mean.fold(update({"w": f32(4, -2, 1)}, examples=1))
    mean.fold(update({"w": f32(-4, 6, 0.5)}, examples=3))
    mean.close_into(base, learning_rate=0.5)
    # 10 + 0.5*-2 = 9;  -1 + 0.5*4 = 1;  0 + 0.5*0.625 = 0.3125
    assert base["w"] is array
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, f32(9, 1, 0.3125))


def test_a_small_update_is_not_lost_behind_a_large_one():
    # In float32, 2**24 + 1 is 2**24: an accumulator of float32 would end at 0.
    mean = WeightedMean({"w": f32(0)})
    for value in (2.0**24, 1.0, -(2.0**24)):
        mean.fold(update({"w": f32(value)}))
    np.testing.assert_array_equal(mean.close()["w"], [1 / 3])


def test_integers_and_booleans_keep_the_value_of_the_model():
    base = {"w": f32(1), "steps": np.array([7, -7]), "mask": np.array([True, False])}
    mean = WeightedMean(base)
    mean.fold(update({"w": f32(2), "steps": np.array([100, 100]), "mask": np.array([False, True])}))
    mean.close_into(base)
    np.testing.assert_array_equal(base["w"], f32(3))
    np.testing.assert_array_equal(base["steps"], [7, -7])
    np.testing.assert_array_equal(base["mask"], [True, False])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scalars_empty_arrays_and_every_float_are_averaged(dtype: str):
    base = {"scalar": np.array(1, dtype), "empty": np.zeros((0, 3), dtype)}
    mean = WeightedMean(base)
    mean.fold(update({"scalar": np.array(-3, dtype), "empty": np.zeros((0, 3), dtype)}, 2))
    mean.fold(update({"scalar": np.array(3, dtype), "empty": np.zeros((0, 3), dtype)}, 1))
    mean.close_into(base)
    assert base["scalar"] == 0  # 1 + (2*-3 + 1*3)/3
    assert base["scalar"].dtype == dtype


def test_arrays_that_are_not_contiguous_count_the_same():
    delta = np.arange(12, dtype=np.float32).reshape(3, 4) - 6
    mean = WeightedMean({"w": delta})
    mean.fold(update({"w": np.asfortranarray(delta)}))
    np.testing.assert_array_equal(mean.close()["w"], delta)


def test_streamed_mean_is_the_batch_mean():
    updates = seeded_updates(5)
    mean = WeightedMean(updates[0].delta)
    for each in updates:
        mean.fold(each)
    streamed = mean.close()
    weights = [each.examples for each in updates]
    for name, array in streamed.items():
        batch = np.average(
            [each.delta[name].astype(np.float64) for each in updates], axis=0, weights=weights
        )
        np.testing.assert_allclose(array, batch, rtol=1e-13, atol=1e-13)


def test_order_changes_no_more_than_rounding():
    updates = seeded_updates(6)
    means = []
    for order in (updates, updates[::-1]):
        mean = WeightedMean(updates[0].delta)
        for each in order:
            mean.fold(each)
        means.append(mean.close())
    for name in means[0]:
        np.testing.assert_allclose(means[0][name], means[1][name], rtol=0, atol=1e-14)


def test_the_same_order_gives_the_same_bytes_and_those_of_the_plain_formula():
    updates = seeded_updates(4)
    base = {name: array * np.float32(3) for name, array in updates[0].delta.items()}
    mean = WeightedMean(base)
    expected = {}
    for name, old in base.items():
        total = np.zeros(old.shape)
        for each in updates:
            total = total + np.float64(each.examples) * each.delta[name].astype(np.float64)
        examples = np.float64(sum(each.examples for each in updates))
        expected[name] = (total * np.float64(0.1) / examples + old).astype(np.float32)
    for each in updates:
        mean.fold(each)
    mean.close_into(base, learning_rate=0.1)
    for name, array in base.items():
        assert array.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("place", [0, BLOCK, 2 * BLOCK + 1])
def test_an_update_that_is_not_finite_is_refused_and_adds_nothing(
    value: float, dtype: str, place: int
):
    good = {"first": np.ones(2, dtype), "last": np.ones(2 * BLOCK + 2, dtype)}
    bad = {name: array * np.array(5, dtype) for name, array in good.items()}
    bad["last"][place] = value
    mean = WeightedMean(good)
    mean.fold(update(good))
    with pytest.raises(NonFiniteError, match="'last'"):
        mean.fold(update(bad))
    assert (mean.examples, mean.updates) == (1, 1)
    result = mean.close()
    assert all((array == 1).all() for array in result.values())


def test_finite_values_whose_sum_overflows_float32_are_finite():
    largest = np.finfo(np.float32).max
    mean = WeightedMean({"w": f32(0, 0)})
    mean.fold(update({"w": f32(largest, largest)}, examples=2**53))
    np.testing.assert_array_equal(mean.close()["w"], [largest, largest])


def test_float64_beyond_float32_is_refused_since_sums_could_overflow():
    mean = WeightedMean({"w": np.zeros(1)})
    with pytest.raises(NonFiniteError):
        mean.fold(update({"w": np.array([1e300])}, examples=10**9))
    mean.fold(update({"w": np.array([1e38])}))
    assert mean.close()["w"][0] == 1e38


@pytest.mark.parametrize(
    "delta",
    [
        pytest.param({"first": f32(9)}, id="missing"),
        pytest.param({"first": f32(9), "w": f32(9, 9), "more": f32(9)}, id="unexpected"),
        pytest.param({"first": f32(9), "w": f32(9)}, id="shape"),
        pytest.param({"first": f32(9), "w": np.ones(2)}, id="dtype"),
    ],
)
def test_another_layout_is_refused_and_adds_nothing(delta: Weights):
    mean = WeightedMean({"first": f32(0), "w": f32(0, 0)})
    mean.fold(update({"first": f32(1), "w": f32(1, 1)}))
    with pytest.raises(ShapeMismatchError):
        mean.fold(update(delta))
    result = mean.close()
    assert result["first"].tolist() == [1]
    assert result["w"].tolist() == [1, 1]


@pytest.mark.parametrize("examples", [0, -3])
def test_an_update_of_no_example_is_refused(examples: int):
    with pytest.raises(LearningError):
        WeightedMean({"w": f32(0)}).fold(update({"w": f32(1)}, examples=examples))


def test_an_empty_mean_is_an_error_and_leaves_the_model():
    base = {"w": f32(1)}
    with pytest.raises(EmptyCohortError):
        WeightedMean(base).close_into(base)
    with pytest.raises(EmptyCohortError):
        WeightedMean(base).close()
    assert base["w"].tolist() == [1]


def test_a_model_that_would_overflow_is_left_unchanged():
    largest = np.finfo(np.float32).max
    base = {"first": f32(1), "w": f32(largest)}
    mean = WeightedMean(base)
    mean.fold(update({"first": f32(1), "w": f32(largest)}))
    with pytest.raises(NonFiniteError, match="'w'"):
        mean.close_into(base)
    assert base["first"].tolist() == [1]
    assert base["w"].tolist() == [largest]


def test_a_model_that_cannot_be_written_is_refused_before_anything_is_lost():
    frozen = f32(1)
    frozen.flags.writeable = False
    mean = WeightedMean({"w": frozen})
    mean.fold(update({"w": f32(2)}))
    with pytest.raises(LearningError, match="in place"):
        mean.close_into({"w": frozen})
    assert mean.close()["w"].tolist() == [2]


def test_a_closed_mean_cannot_be_used_again():
    mean = WeightedMean({"w": f32(0)})
    mean.fold(update({"w": f32(2)}))
    mean.close()
    with pytest.raises(RuntimeError, match="closed"):
        mean.fold(update({"w": f32(2)}))


def test_equals_flowers_fedavg_on_the_same_updates():
    # Made by golden/flower_fedavg.py with Flower itself.
    golden = json.loads((GOLDEN / "flower_fedavg.json").read_text())
    layout = {name: np.zeros(shape, dtype) for name, (shape, dtype) in golden["layout"].items()}
    mean = WeightedMean(layout)
    for each in golden["updates"]:
        delta = {n: np.array(each["delta"][n], array.dtype) for n, array in layout.items()}
        mean.fold(update(delta, each["examples"], each["client"]))
    for name, ours in mean.close().items():
        theirs = np.array(golden["mean"][name])
        # Flower adds in the tensors' own dtype. Where float32 terms cancel, its rounding is
        # relative to the terms and not to what is left of them: so to the tensor's largest value.
        cancelled = np.abs(theirs).max() if layout[name].dtype == np.float32 else 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * cancelled)


def test_nothing_of_the_size_of_a_model_is_allocated_beside_the_accumulators():
    base = {"w": np.ones((1000, 1000), np.float32), "v": np.ones(1_000_000, np.float32)}
    delta = {name: array * np.float32(0.5) for name, array in base.items()}
    tracemalloc.start()
    try:
        mean = WeightedMean(base)
        accumulators, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3):
            mean.fold(update(delta))
        mean.close_into(base)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Float64 accumulators take 16 MB, one block 128 KiB; a temporary of one tensor would be 4 MB.
    assert 16_000_000 <= accumulators < 16_500_000
    assert peak < accumulators + 500_000
    assert (base["w"] == 1.5).all()
