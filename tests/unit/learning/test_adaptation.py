from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlog.job.model import WeightAdaptation as Policy
from fedlog.learning.adaptation import adapt, pairs_of
from fedlog.learning.coverage import check_parts
from fedlog.learning.errors import ShapeMismatchError, UnfitModelError
from fedlog.learning.mean import WeightedMean
from fedlog.learning.weights import Shape, Update, Weights


def filled(shapes: dict[str, Shape], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def cnn(side: int, channels: int = 4, units: int = 5, classes: int = 3) -> dict[str, Shape]:
    return {
        "conv/kernel": (3, 3, 1, channels),
        "conv/bias": (channels,),
        "hidden/kernel": (side * side * channels, units),
        "hidden/bias": (units,),
        "classes/kernel": (units, classes),
        "classes/bias": (classes,),
    }


def test_the_same_model_in_another_order_is_left_as_it_is() -> None:
    whole = filled(cnn(8))
    found = adapt(whole, dict(reversed(whole.items())), Policy.STRICT)
    assert found.same


def test_a_smaller_map_is_the_upper_left_corner_of_a_larger_one() -> None:
    whole, own = filled(cnn(8)), filled(cnn(6))
    found = adapt(whole, own, Policy.ADAPT)
    there = whole["hidden/kernel"].reshape(8, 8, 4, 5)
    here = found.to_client(whole, {})["hidden/kernel"].reshape(6, 6, 4, 5)
    np.testing.assert_array_equal(here, there[:6, :6])
    delta, views = found.to_global(own)
    assert views == {"hidden/kernel": (8, 8, 4, 5)}
    assert delta["hidden/kernel"].shape == (6, 6, 4, 5)
    assert list(delta) == list(whole)
    assert delta["conv/kernel"].shape == (3, 3, 1, 4)


def test_a_larger_map_is_padded_with_zeros_and_cut_on_its_way_back() -> None:
    whole, own = filled(cnn(6)), filled(cnn(8))
    found = adapt(whole, own, Policy.ADAPT)
    here = found.to_client(whole, {})["hidden/kernel"].reshape(8, 8, 4, 5)
    np.testing.assert_array_equal(here[:6, :6], whole["hidden/kernel"].reshape(6, 6, 4, 5))
    assert not here[6:].any()
    assert not here[:, 6:].any()
    delta, views = found.to_global(own)
    assert not views
    np.testing.assert_array_equal(
        delta["hidden/kernel"],
        own["hidden/kernel"].reshape(8, 8, 4, 5)[:6, :6].reshape(-1, 5),
    )


def test_fewer_channels_keep_the_positions_apart() -> None:
    """Rows of the flattened kernel alternate between channels: leading rows would be wrong ones."""
    whole, own = filled(cnn(4, channels=6)), filled(cnn(4, channels=2))
    here = adapt(whole, own, Policy.ADAPT).to_client(whole, {})["hidden/kernel"]
    expected = whole["hidden/kernel"].reshape(4, 4, 6, 5)[:, :, :2]
    np.testing.assert_array_equal(here.reshape(4, 4, 2, 5), expected)


def test_positions_that_are_no_square_count_from_the_first_one() -> None:
    shapes = cnn(2) | {"hidden/kernel": (6 * 4, 5)}  # 2 x 3 or 3 x 2 or 1 x 6
    pairs = {pair.own: pair for pair in pairs_of(filled(cnn(4)), filled(shapes))}
    assert pairs["hidden/kernel"].whole_view == (16, 4, 5)
    assert pairs["hidden/kernel"].box == (6, 4, 5)


def test_without_a_convolution_before_them_rows_are_rows() -> None:
    own, whole = filled({"d/kernel": (36, 4)}), filled({"d/kernel": (64, 4)})
    (pair,) = pairs_of(whole, own)
    assert pair.box == (36, 4)
    assert pair.whole_view == (64, 4)


def test_names_come_first_then_position_rank_and_kind() -> None:
    whole = filled({"a/kernel": (4, 3), "a/bias": (3,), "b/kernel": (3, 2), "b/bias": (2,)})
    own = filled({"x/kernel": (4, 3), "x/bias": (3,), "b/kernel": (3, 2), "y/bias": (2,)})
    found = {pair.own: pair.whole for pair in pairs_of(whole, own)}
    assert found == {
        "x/kernel": "a/kernel",
        "x/bias": "a/bias",
        "b/kernel": "b/kernel",
        "y/bias": "b/bias",
    }


def test_another_rank_or_dtype_has_no_counterpart() -> None:
    whole = filled({"a": (4, 3), "b": (2, 1, 1)})
    own = {"a": np.zeros(4, np.float32), "b": np.zeros((2, 1, 1))}
    assert pairs_of(whole, own) == []


def test_partial_exchanges_what_fits_and_leaves_the_rest() -> None:
    whole, own = filled(cnn(8)), filled(cnn(6), seed=1)
    found = adapt(whole, own, Policy.PARTIAL)
    assert found.own_only == found.whole_only == ("hidden/kernel",)
    kept = {"hidden/kernel": own["hidden/kernel"]}
    here = found.to_client(whole, kept)
    assert here["hidden/kernel"] is own["hidden/kernel"]
    np.testing.assert_array_equal(here["conv/kernel"], whole["conv/kernel"])
    assert "hidden/kernel" not in found.to_global(own)[0]


def test_fresh_adapts_and_leaves_what_has_no_counterpart() -> None:
    whole = filled(cnn(8))
    own = filled(cnn(6) | {"extra/kernel": (3, 3), "extra/bias": (3,)})
    with pytest.raises(UnfitModelError, match=r"extra/kernel.*Partial or Fresh"):
        adapt(whole, own, Policy.ADAPT)
    found = adapt(whole, own, Policy.FRESH)
    assert found.own_only == ("extra/kernel", "extra/bias")
    assert len(found.pairs) == 6


def test_a_missing_layer_is_simply_not_covered() -> None:
    whole = filled(cnn(8))
    own = {name: a for name, a in whole.items() if not name.startswith("classes")}
    found = adapt(whole, own, Policy.ADAPT)
    assert found.whole_only == ("classes/kernel", "classes/bias")


def test_strict_names_each_difference_both_shapes_and_the_cure() -> None:
    with pytest.raises(UnfitModelError) as raised:
        adapt(filled(cnn(8)), filled(cnn(6)), Policy.STRICT)
    assert str(raised.value) == (
        "the model is not the global one, and spec.weightAdaptation is Strict: hidden/kernel is "
        "float32[144, 5], there is float32[256, 5]. Cure: give the client and the job the same "
        "model (spec.task.parameters), or set spec.weightAdaptation to Adapt or Partial or Fresh"
    )
    rows = [" ".join(line.split()) for line in raised.value.table.splitlines()]
    assert "conv/bias float32[4] conv/bias float32[4] all" in rows
    assert "hidden/kernel float32[144, 5] hidden/kernel float32[256, 5] 6x6x4x5 of 8x8x4x5" in rows


@pytest.mark.parametrize("policy", list(Policy))
def test_where_nothing_fits_no_policy_goes_on(policy: Policy) -> None:
    whole = filled({"a": (2, 2)})
    with pytest.raises(UnfitModelError) as raised:
        adapt(whole, {"b": np.zeros(3, np.float32), "n": np.zeros((2, 2), np.int64)}, policy)
    assert "set spec.weightAdaptation" not in str(raised.value)


def test_a_version_of_another_layout_is_refused() -> None:
    found = adapt(filled(cnn(8)), filled(cnn(6)), Policy.ADAPT)
    with pytest.raises(ShapeMismatchError):
        found.to_client(filled(cnn(7)), {})


sizes = st.builds(cnn, st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(sizes, sizes, st.sampled_from([Policy.ADAPT, Policy.FRESH]))
def test_whatever_the_sizes_the_way_there_and_back_is_the_same_coordinates(
    whole_shapes: dict[str, Shape], own_shapes: dict[str, Shape], policy: Policy
) -> None:
    """A client that adds 1 to all that it has adds 1 to what it covers of the global model, and
    what it covers is what it got: padding stays zero.
    """
    whole, own = filled(whole_shapes), filled(own_shapes, seed=1)
    found = adapt(whole, own, policy)
    received = found.to_client(whole, {})
    covered, views = found.to_global(received)
    update = Update("site/0", covered, 3, views)
    parts = check_parts(whole, update)  # accepted by the server
    for name, array in covered.items():
        part = parts.get(name)
        there = whole[name].reshape(array.shape) if part is None else part.of(whole[name])
        np.testing.assert_array_equal(array, there)
    assert sum(np.count_nonzero(a) for a in received.values()) == sum(
        np.count_nonzero(a) for a in covered.values()
    )

    after: Weights = {name: array.copy() for name, array in whole.items()}
    ones = {name: np.ones_like(array) for name, array in own.items()}
    delta, views = found.to_global(ones)
    mean = WeightedMean(whole, partial=True)
    mean.fold(Update("site/0", delta, 3, views))
    mean.close_into(after)
    moved = sum(int((after[n] != whole[n]).sum()) for n in whole)
    assert moved == sum(array.size for array in delta.values())
