"""What a strategy is: how the updates of a round become a new model.

A strategy is two things, like an algorithm of fedjax: a state that goes from round to round, and
what a round does with it. Written for updates that stream in one by one::

    state = strategy.init(weights)
    for each round:
        aggregation = strategy.begin(weights, state)
        for each accepted update, in the journal's order:
            aggregation.fold(update)
        state = aggregation.close_into(weights)

A strategy is a frozen value: its parameters and nothing else. What it needs to know of earlier
rounds is in the state, named arrays like a model's, so that it travels and is stored like one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fedlog.learning.weights import Update, Weights

State = Weights
"""What a strategy remembers between rounds (momentum, second moments …); empty for FedAvg."""


class Aggregation(Protocol):
    """One round's updates on their way into the model."""

    @property
    def examples(self) -> int:
        """Training examples of the updates folded so far."""

    @property
    def updates(self) -> int:
        """Updates folded so far."""

    @property
    def adapted(self) -> Mapping[str, int]:
        """How many of them cover the model only in part, by kind: Cut or Partial."""

    def fold(self, update: Update) -> None:
        """Take in one update; its arrays may be overwritten afterwards.

        Raises LearningError (ShapeMismatchError, NonFiniteError) when the update cannot be used;
        it has not changed anything then.
        """

    def close_into(self, weights: Weights) -> State:
        """Turn the model into the next version, in place, and return the next state.

        The arrays must be writeable and C-contiguous. The aggregation is used up. Raises
        EmptyCohortError when nothing was folded, NonFiniteError when the new model would not be
        finite; the weights are unchanged then.
        """


class Strategy(Protocol):
    """How updates become a new model."""

    def init(self, weights: Weights) -> State:
        """The state before the first round."""

    def begin(self, weights: Weights, state: State) -> Aggregation:
        """Start a round that departs from these weights; neither argument is changed."""
