"""How updates become a new model; one strategy per file, named for its algorithm.

Strategies know arrays: never Kafka, Kubernetes or a training library.
"""

from __future__ import annotations

from typing import assert_never

from fedlog.job.model import StrategyName, StrategySpec, WeightAdaptation
from fedlog.learning.strategies.base import Aggregation, State, Strategy
from fedlog.learning.strategies.fedavg import FedAvg

__all__ = ["Aggregation", "FedAvg", "State", "Strategy", "make_strategy"]


def make_strategy(
    spec: StrategySpec, adaptation: WeightAdaptation = WeightAdaptation.STRICT
) -> Strategy:
    """The strategy that a job asks for. adaptation: its weightAdaptation; unless that is Strict, an
    update may cover a part of the model.
    """
    match spec.name:
        case StrategyName.FED_AVG:
            return FedAvg(
                server_learning_rate=float(spec.parameters.server_learning_rate),
                partial=adaptation is not WeightAdaptation.STRICT,
            )
        case _:
            assert_never(spec.name)
