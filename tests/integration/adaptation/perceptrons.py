"""Digits for perceptrons whose hidden layers have the sizes in `hidden`: starts at once."""

from __future__ import annotations

from typing import Any

from fedlog.tasks import digits
from fedlog.tasks.base import Parameters
from fedlog.tasks.sklearn import SklearnTask


def model(parameters: Parameters) -> Any:
    from sklearn.neural_network import MLPClassifier

    hidden = tuple(parameters.get("hidden", [32]))
    return MLPClassifier(hidden, solver="sgd", alpha=0, momentum=0, nesterovs_momentum=False)


task = SklearnTask(
    model,
    lambda partition, parameters: digits.data(partition, {}),
    digits.PIXELS,
    digits.CLASSES,
    lambda partition, parameters: digits.held_out(partition, {}),
)
