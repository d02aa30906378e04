"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning
of Deep Networks from Decentralized Data. AISTATS 2017. arXiv:1602.05629, Algorithm 1.

The server's learning rate is that of S. Reddi et al.: Adaptive Federated Optimization. ICLR 2021.
arXiv:2003.00295, Algorithm 1 with SGD on the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlog.learning.mean import WeightedMean
from fedlog.learning.strategies.base import State
from fedlog.learning.weights import Update, Weights


@dataclass(frozen=True)
class FedAvg:
    """model' = model + server_learning_rate * mean of the updates, weighted by examples.

    server_learning_rate: > 0; at 1 the new model is the weighted mean of the clients' models, as
    in McMahan et al.; below 1 it moves only a part of the way. partial: whether an update may
    cover a part of the model (`fedlog.learning.coverage`); each coordinate then moves by the mean
    over the updates that cover it.
    """

    server_learning_rate: float = 1.0
    partial: bool = False

    def init(self, weights: Weights) -> State:
        """FedAvg remembers nothing."""
        del weights
        return {}

    def begin(self, weights: Weights, state: State) -> FedAvgRound:
        del state
        return FedAvgRound(WeightedMean(weights, partial=self.partial), self.server_learning_rate)


class FedAvgRound:
    """One round of FedAvg; see `Aggregation`."""

    def __init__(self, mean: WeightedMean, server_learning_rate: float) -> None:
        self._mean = mean
        self._server_learning_rate = server_learning_rate

    @property
    def examples(self) -> int:
        return self._mean.examples

    @property
    def updates(self) -> int:
        return self._mean.updates

    @property
    def adapted(self) -> Mapping[str, int]:
        return self._mean.adapted

    def fold(self, update: Update) -> None:
        self._mean.fold(update)

    def close_into(self, weights: Weights) -> State:
        self._mean.close_into(weights, self._server_learning_rate)
        return {}
