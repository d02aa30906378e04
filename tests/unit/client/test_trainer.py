from __future__ import annotations

import math

import numpy as np
import pytest

from fedlog.client.trainer import finite, subtract_in_place, training_seed
from fedlog.learning.errors import ShapeMismatchError


def test_the_delta_is_trained_minus_received_in_the_arrays_of_the_trained_model() -> None:
    trained = {"w": np.array([[1.5, -2.0]], np.float32), "b": np.array([4.0], np.float64)}
    received = {"w": np.array([[1.0, 1.0]], np.float32), "b": np.array([-1.0], np.float64)}
    delta = subtract_in_place(trained, received)
    assert delta["w"] is trained["w"]
    np.testing.assert_array_equal(delta["w"], np.array([[0.5, -3.0]], np.float32))
    np.testing.assert_array_equal(delta["b"], np.array([5.0]))
    assert (delta["w"].dtype, delta["b"].dtype) == (np.float32, np.float64)


def test_integers_and_booleans_do_not_change() -> None:
    trained = {"steps": np.array([7, 9], np.int64), "mask": np.array([True, False])}
    received = {"steps": np.array([1, 2], np.int64), "mask": np.array([False, False])}
    delta = subtract_in_place(trained, received)
    assert delta["steps"].tolist() == [0, 0]
    assert delta["mask"].tolist() == [False, False]


def test_models_of_another_layout_have_no_delta() -> None:
    with pytest.raises(ShapeMismatchError):
        subtract_in_place({"w": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)})


def test_every_training_has_a_seed_of_its_own_that_a_restart_finds_again() -> None:
    seeds = {
        training_seed(job, round_, client)
        for job in (0, 1)
        for round_ in range(20)
        for client in range(20)
    }
    assert len(seeds) == 800
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert training_seed(3, 2, 1) == training_seed(3, 2, 1)


def test_figures_that_are_not_numbers_are_left_out() -> None:
    assert finite({"loss": math.nan, "accuracy": 0.5, "norm": math.inf}) == {"accuracy": 0.5}


def test_a_record_carries_64_figures() -> None:
    assert len(finite({str(n): float(n) for n in range(100)})) == 64
