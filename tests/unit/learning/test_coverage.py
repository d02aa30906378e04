"""Means over updates that cover parts of the model."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlog.learning.errors import NonFiniteError, ShapeMismatchError
from fedlog.learning.mean import BLOCK, MAX_DISTINCT_PARTS, WeightedMean
from fedlog.learning.weights import Shape, Update, Weights

MODEL: dict[str, Shape] = {"kernel": (12, 3), "bias": (3,), "filters": (3, 3, 1, 2)}
VIEW = (2, 3, 2, 3)  # of the kernel: two rows, three columns, two channels; three units


def model(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    weights = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in MODEL.items()
    }
    weights["bias"][0] = -0.0  # a value that 0.0 + -0.0 would change
    return weights


@st.composite
def updates(draw: st.DrawFn) -> list[Update]:
    """Up to six updates: whole, cut, with tensors left out, and in a view."""
    found = []
    for client in range(draw(st.integers(1, 6))):
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        delta: dict[str, np.ndarray] = {}
        views: dict[str, Shape] = {}
        for name, shape in MODEL.items():
            kind = draw(st.sampled_from(["whole", "cut", "view", "missing"]))
            if kind == "missing":
                continue
            seen = VIEW if (kind, name) == ("view", "kernel") else shape
            if seen is VIEW:
                views[name] = VIEW
            box = seen if kind == "whole" else tuple(draw(st.integers(1, side)) for side in seen)
            delta[name] = generator.standard_normal(box).astype(np.float32)
        if not delta:
            delta["bias"] = np.ones(1, np.float32)
        found.append(Update(f"site/{client}", delta, draw(st.integers(1, 1000)), views))
    return found


def closed(updates: list[Update], rate: float = 1.0, *, partial: bool = True) -> Weights:
    weights = model()
    mean = WeightedMean(weights, partial=partial)
    for update in updates:
        mean.fold(update)
    mean.close_into(weights, rate)
    return weights


def batch(updates: list[Update], rate: float) -> Weights:
    """The same rule, coordinate by coordinate, over all updates at once."""
    weights = model()
    for name, array in weights.items():
        for at in np.ndindex(array.shape):
            flat = int(np.ravel_multi_index(at, array.shape))
            total, examples = np.float64(0), 0
            for update in updates:
                delta = update.delta.get(name)
                seen = np.unravel_index(flat, update.views.get(name, array.shape))
                if delta is not None and (np.array(seen) < delta.shape).all():
                    total += np.float64(update.examples) * np.float64(delta[seen])
                    examples += update.examples
            if examples:
                array[at] = np.float32(total * np.float64(rate) / examples + np.float64(array[at]))
    return weights


def assert_same_bytes(found: Weights, expected: Weights) -> None:
    assert {n: a.tobytes() for n, a in found.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }


@given(updates(), st.sampled_from([1.0, 0.3]))
def test_a_coordinate_is_the_mean_over_the_updates_that_cover_it(
    found: list[Update], rate: float
) -> None:
    assert_same_bytes(closed(found, rate), batch(found, rate))


@given(updates())
def test_the_order_of_updates_matters_within_rounding_only(found: list[Update]) -> None:
    forward, backward = closed(found), closed(found[::-1])
    for name, array in forward.items():
        np.testing.assert_allclose(array, backward[name], rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.booleans())
def test_updates_that_cover_everything_give_the_bytes_of_the_plain_mean(
    examples: list[int], in_view: bool
) -> None:
    views = {"kernel": VIEW} if in_view else {}
    whole = [Update(f"site/{i}", model(i + 1), n) for i, n in enumerate(examples)]
    seen = [
        Update(
            u.client, {n: a.reshape(views.get(n, a.shape)) for n, a in u.delta.items()}, u.examples,
            views,
        )
        for u in whole
    ]  # fmt: skip
    assert_same_bytes(closed(seen), closed(whole, partial=False))


def test_covered_in_parts_that_make_up_the_whole_gives_the_bytes_of_the_plain_mean() -> None:
    # One update in two halves, as two clients of the same examples: every coordinate is covered
    # once by 7 examples.
    delta = model(3)
    halves = [
        Update("site/0", {"kernel": delta["kernel"], "bias": delta["bias"]}, 7),
        Update("site/1", {"filters": delta["filters"]}, 7),
    ]
    assert_same_bytes(closed(halves), closed([Update("site/0", delta, 7)], partial=False))


def test_what_nothing_covers_keeps_its_bits() -> None:
    before, after = model(), closed([Update("site/0", {"bias": np.ones(1, np.float32)}, 5)])
    assert after["kernel"].tobytes() == before["kernel"].tobytes()
    assert after["bias"][1:].tobytes() == before["bias"][1:].tobytes()
    assert after["bias"][0] == 1


@given(updates())
def test_a_smaller_update_never_pulls_what_it_lacks_towards_zero(found: list[Update]) -> None:
    """Another update that covers one value leaves every other one at its mean."""
    one = Update("small/0", {"bias": np.full(1, 0.5, np.float32)}, 10**6)
    before, after = closed(found), closed([*found, one])
    before["bias"][0] = after["bias"][0]
    assert_same_bytes(after, before)


def test_integers_keep_their_value_and_may_be_left_out() -> None:
    weights = {"w": np.zeros(2, np.float32), "steps": np.array([3, 4])}
    mean = WeightedMean(weights, partial=True)
    mean.fold(Update("site/0", {"w": np.ones(2, np.float32)}, 1))
    mean.fold(Update("site/1", {"w": np.ones(1, np.float32), "steps": np.array([9])}, 1))
    mean.close_into(weights)
    assert weights["steps"].tolist() == [3, 4]
    assert weights["w"].tolist() == [1, 1]
    assert dict(mean.adapted) == {"Partial": 1, "Cut": 1}


@pytest.mark.parametrize(
    ("delta", "views", "says"),
    [
        ({"kernel": (13, 3)}, {}, "at most [12, 3]"),
        ({"kernel": (12,)}, {}, "at most [12, 3]"),
        ({"kernel": (2, 3, 2, 3)}, {}, "at most [12, 3]"),
        ({"kernel": (2, 3, 2, 4)}, {"kernel": VIEW}, "at most [2, 3, 2, 3]"),
        ({"kernel": (2, 3, 2, 3)}, {"kernel": (2, 3, 2, 4)}, "cannot be seen as"),
        ({"kernel": (1,) * 17}, {"kernel": (36, *(1,) * 16)}, "cannot be seen as"),
        ({"kernel": (12, 3)}, {"bias": (3,)}, "views of tensors that the update does not have"),
        ({"kernel": (12, 3), "other": (1,)}, {}, "does not have: ['other']"),
        ({"kernel": (12, 3)}, {"other": (1,)}, "does not have: ['other']"),
        ({}, {}, "covers nothing"),
        ({"kernel": (0, 3)}, {}, "covers nothing"),
    ],
    ids=str,
)
def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(
    delta: dict[str, Shape], views: dict[str, Shape], says: str
) -> None:
    weights = model()
    mean = WeightedMean(weights, partial=True)
    with pytest.raises(ShapeMismatchError) as raised:
        mean.fold(Update("x/0", {n: np.ones(s, np.float32) for n, s in delta.items()}, 9, views))
    assert says in str(raised.value)
    good = Update("site/0", model(1), 3)
    mean.fold(good)
    mean.close_into(weights)
    assert_same_bytes(weights, closed([good], partial=False))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="float64"):
        WeightedMean(model(), partial=True).fold(Update("x/0", {"bias": np.ones(1)}, 1))


def test_a_part_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    weights = model()
    mean = WeightedMean(weights, partial=True)
    bad = {"bias": np.ones(2, np.float32), "kernel": np.array([[1, np.nan]], np.float32)}
    with pytest.raises(NonFiniteError, match="kernel"):
        mean.fold(Update("x/0", bad, 1))
    assert (mean.updates, dict(mean.adapted)) == (0, {})


def test_a_strict_mean_takes_neither_parts_nor_views() -> None:
    for update in (
        Update("x/0", {"bias": np.ones(1, np.float32)}, 1),
        Update("x/0", model(), 1, {"kernel": VIEW}),
    ):
        with pytest.raises(ShapeMismatchError):
            WeightedMean(model()).fold(update)


@pytest.mark.parametrize("shape", [(5, BLOCK + 1), (3 * BLOCK, 2), (2, 3, 50, BLOCK // 8)], ids=str)
def test_large_boxes_are_folded_as_small_ones(shape: Shape) -> None:
    generator = np.random.default_rng(5)
    base = generator.standard_normal(shape).astype(np.float32)
    box = tuple(side - 1 for side in shape)
    inner = tuple(map(slice, box))
    delta = generator.standard_normal(box).astype(np.float32)
    weights = {"w": base.copy()}
    mean = WeightedMean(weights, partial=True)
    mean.fold(Update("site/0", {"w": delta}, 11))
    mean.close_into(weights)
    expected = base.copy()
    expected[inner] = (delta.astype(np.float64) * 11 / 11 + base[inner]).astype(np.float32)
    assert weights["w"].tobytes() == expected.tobytes()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_many_different_parts_count_as_few_do(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (20, 20)
    found = [
        Update(f"site/{i}", {"w": generator.standard_normal(box).astype(np.float32)}, i + 1)
        for i, box in enumerate(generator.integers(1, 21, (2 * MAX_DISTINCT_PARTS + 9, 2)))
    ]
    weights = {"w": np.ones(shape, np.float32)}
    mean = WeightedMean(weights, partial=True)
    total, counts = np.zeros(shape), np.zeros(shape)
    for update in found:
        mean.fold(update)
        box = tuple(map(slice, update.delta["w"].shape))
        total[box] += np.float64(update.examples) * update.delta["w"].astype(np.float64)
        counts[box] += update.examples
    mean.close_into(weights)
    expected = np.where(counts > 0, total / np.maximum(counts, 1) + 1, 1).astype(np.float32)
    assert weights["w"].tobytes() == expected.tobytes()


def test_memory_of_partial_updates_is_bounded_by_the_model() -> None:
    """One update after the other of another shape: nothing of them stays."""
    side = 256
    weights = {"w": np.zeros((side, side), np.float32)}
    mean = WeightedMean(weights, partial=True)
    delta = np.ones((side, side), np.float32)
    tracemalloc.start()
    try:
        for i in range(3000):
            mean.fold(Update("x/0", {"w": delta[: 1 + i % side, : 1 + i // side]}, 1))
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 8 * side * side + 200_000  # the counts of one tensor, in float64
    assert peak < 8 * side * side + 400_000
