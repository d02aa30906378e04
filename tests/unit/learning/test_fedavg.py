from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from fedlog.job.model import StrategyParameters, StrategySpec
from fedlog.learning.errors import EmptyCohortError
from fedlog.learning.strategies import FedAvg, make_strategy
from fedlog.learning.weights import Update


def test_at_rate_one_the_new_model_is_the_weighted_mean_of_the_clients_models():
    received = np.array([2.0, -1.0], np.float32)
    trained = {"a/0": ([4.0, -5.0], 1), "a/1": ([-4.0, 3.0], 3)}
    weights = {"w": received.copy()}
    strategy = FedAvg()
    round_ = strategy.begin(weights, strategy.init(weights))
    for client, (values, examples) in trained.items():
        delta = np.array(values, np.float32) - received
        round_.fold(Update(client, {"w": delta}, examples))
    assert (round_.examples, round_.updates) == (4, 2)
    state = round_.close_into(weights)
    # (1*4 + 3*-4)/4 = -2;  (1*-5 + 3*3)/4 = 1
    np.testing.assert_array_equal(weights["w"], np.array([-2, 1], np.float32))
    assert state == {}


def test_the_job_sets_the_servers_learning_rate():
    spec = StrategySpec(parameters=StrategyParameters(server_learning_rate=Decimal("0.25")))
    assert make_strategy(StrategySpec()) == FedAvg(server_learning_rate=1.0)
    strategy = make_strategy(spec)
    assert strategy == FedAvg(server_learning_rate=0.25)
    weights = {"w": np.array([1.0], np.float32)}
    round_ = strategy.begin(weights, strategy.init(weights))
    round_.fold(Update("a/0", {"w": np.array([-8.0], np.float32)}, 5))
    round_.close_into(weights)
    assert weights["w"].tolist() == [-1.0]  # 1 + 0.25 * -8


def test_a_round_without_updates_is_an_error():
    weights = {"w": np.array([1.0], np.float32)}
    with pytest.raises(EmptyCohortError):
        FedAvg().begin(weights, {}).close_into(weights)
    assert weights["w"].tolist() == [1.0]


def test_rounds_start_from_nothing():
    weights = {"w": np.zeros(1, np.float32)}
    strategy = FedAvg()
    state = strategy.init(weights)
    for _ in range(3):
        round_ = strategy.begin(weights, state)
        round_.fold(Update("a/0", {"w": np.array([1.5], np.float32)}, 2))
        state = round_.close_into(weights)
    assert weights["w"].tolist() == [4.5]
