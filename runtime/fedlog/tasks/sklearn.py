"""scikit-learn models with `partial_fit` as tasks; TensorFlow is never loaded.

`SklearnTask(model=..., data=..., features=..., classes=...)` makes a task of two functions. It
serves linear models trained by gradient steps (SGDClassifier, SGDRegressor, Perceptron) and
multilayer perceptrons (MLPClassifier, MLPRegressor). Weights are float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedlog.learning.weights import Weights, check_same_layout
from fedlog.tasks.base import (
    ClientData,
    Dataset,
    EvaluationResult,
    FitResult,
    Parameters,
    Partition,
    TrainingConfig,
)
from fedlog.tasks.datasets import as_client_data, checked_held_out
from fedlog.tasks.errors import DataError, ModelError

_EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 before their logarithm is taken, as in Keras."""


class SklearnTask:
    """A task of functions.

    model: parameters -> an estimator with `partial_fit`. data: (partition, parameters) ->
    ClientData, or a plain `((x, y), (x_test, y_test))` with x of shape (examples, features).
    features: values per example. classes: every label that there is, also those that a client does
    not have, or their number (0, 1, ...); None for regression. held_out: the evaluator's data;
    optional.

    Features and classes are given because the initial model is made before any data is seen.
    """

    def __init__(
        self,
        model: Callable[[Parameters], Any],
        data: Callable[[Partition, Parameters], Any],
        features: int,
        classes: int | Sequence[Any] | None,
        held_out: Callable[[Partition, Parameters], Any] | None = None,
    ) -> None:
        self._model = model
        self._data = data
        self._features = features
        self._classes = (
            None
            if classes is None
            else np.unique(np.arange(classes) if isinstance(classes, int) else np.asarray(classes))
        )
        if held_out is not None:
            self.held_out = checked_held_out(held_out)

    def model(self, parameters: Parameters, seed: int) -> SklearnLearner:
        return SklearnLearner(self._model(parameters), self._features, self._classes, seed)

    def data(self, partition: Partition, parameters: Parameters) -> ClientData:
        return as_client_data(self._data(partition, parameters))


class SklearnLearner:
    """Trains and measures one estimator; see `fedlog.tasks.base.Learner`.

    The learning rate of the round is used as a constant rate (`eta0`, `learning_rate_init`); the
    batch size by multilayer perceptrons only, since linear models step after every example.
    Initial weights: zero for linear models, Glorot-uniform from the seed for perceptrons.
    """

    def __init__(
        self, estimator: Any, features: int, classes: np.ndarray | None, seed: int
    ) -> None:
        name = type(estimator).__name__
        if not hasattr(estimator, "partial_fit"):
            raise ModelError(
                f"{name} has no partial_fit, which training in rounds needs: use SGDClassifier, "
                "SGDRegressor, Perceptron, MLPClassifier or MLPRegressor"
            )
        if getattr(estimator, "average", False):
            raise ModelError(f"{name}: average keeps state between rounds, set average=False")
        self.estimator = estimator
        self._features = features
        self._classes = classes
        self._names: list[tuple[str, int | None]]
        # One pass over zeros makes the estimator lay out its weights; their values are set below.
        labels = np.zeros(1) if classes is None else classes
        self._partial_fit(np.zeros((len(labels), features), np.float32), labels)
        if hasattr(estimator, "coefs_"):
            self._names = [
                (kind, i)
                for i in range(len(estimator.coefs_))
                for kind in ("coefs_", "intercepts_")
            ]
        elif hasattr(estimator, "coef_") and hasattr(estimator, "intercept_"):
            self._names = [("coef_", None), ("intercept_", None)]
        else:
            raise ModelError(f"{name} has neither coef_ and intercept_ nor coefs_ and intercepts_")
        self.set_weights(self._initial(seed))

    def weights(self) -> Weights:
        return {
            _name(kind, i): np.array(self._array(kind, i), np.float32) for kind, i in self._names
        }

    def set_weights(self, weights: Weights) -> None:
        check_same_layout(self.weights(), weights)
        for kind, i in self._names:
            self._array(kind, i)[...] = weights[_name(kind, i)]

    def fit(self, data: Dataset, config: TrainingConfig) -> FitResult:
        """`loss` and `accuracy` are those of the trained model on the training data."""
        x = self._inputs(data)
        rng = np.random.default_rng(config.seed)
        self._start_afresh(config, len(x))
        for _ in range(config.epochs):
            if config.should_stop():
                break
            self.estimator.set_params(random_state=int(rng.integers(2**31)))
            self._partial_fit(x, data.y)
        return FitResult(len(x), self.evaluate(data).metrics)

    def evaluate(self, data: Dataset) -> EvaluationResult:
        """loss: cross-entropy where the model gives probabilities, else hinge; regression: mean
        squared error.
        """
        x = self._inputs(data)
        if self._classes is None:
            error = self.estimator.predict(x) - data.y
            return EvaluationResult(len(x), {"loss": float(np.mean(error**2))})
        codes = np.searchsorted(self._classes, data.y)
        known = codes < len(self._classes)
        if not known.all() or (self._classes[codes] != data.y).any():
            raise DataError(f"the data has labels besides the task's {len(self._classes)} classes")
        if hasattr(self.estimator, "predict_proba"):
            scores = self.estimator.predict_proba(x)
            true = scores[np.arange(len(x)), codes]
            loss = -np.log(np.clip(true, _EPSILON, 1 - _EPSILON)).mean()
        else:
            scores = self.estimator.decision_function(x)
            if scores.ndim == 1:
                scores = np.stack([-scores, scores], axis=1) / 2
            true = scores[np.arange(len(x)), codes]
            others = scores.copy()
            others[np.arange(len(x)), codes] = -np.inf
            loss = np.maximum(0, 1 - true + others.max(axis=1)).mean()
        accuracy = np.mean(scores.argmax(axis=1) == codes)
        return EvaluationResult(len(x), {"loss": float(loss), "accuracy": float(accuracy)})

    def _array(self, kind: str, index: int | None) -> Any:
        found = getattr(self.estimator, kind)
        return found if index is None else found[index]

    def _initial(self, seed: int) -> Weights:
        initial = {name: np.zeros_like(array) for name, array in self.weights().items()}
        if hasattr(self.estimator, "coefs_"):
            rng = np.random.default_rng(seed)
            for i, coefs in enumerate(self.estimator.coefs_):
                bound = np.sqrt(6 / sum(coefs.shape))
                array = initial[_name("coefs_", i)]
                array[...] = rng.uniform(-bound, bound, coefs.shape)
        return initial

    def _start_afresh(self, config: TrainingConfig, examples: int) -> None:
        """Forget momentum, step counts and curves of an earlier fit, perhaps of another client."""
        known = self.estimator.get_params()
        wanted: dict[str, Any] = {}
        if "learning_rate_init" in known:
            wanted["learning_rate_init"] = config.learning_rate
            wanted["batch_size"] = min(config.batch_size, examples)
        elif "eta0" in known:
            wanted["eta0"] = config.learning_rate
        if "learning_rate" in known:
            wanted["learning_rate"] = "constant"
        self.estimator.set_params(**wanted)
        if hasattr(self.estimator, "coefs_"):
            # partial_fit goes on with the optimizer that it finds; without one it makes its own.
            vars(self.estimator).pop("_optimizer", None)
            self.estimator.loss_curve_ = []
            self.estimator.t_ = 0
        else:
            self.estimator.t_ = 1.0

    def _partial_fit(self, x: np.ndarray, y: np.ndarray) -> None:
        with warnings.catch_warnings():
            # One epoch at a time never converges, which is no news here.
            warnings.simplefilter("ignore")
            if self._classes is None:
                self.estimator.partial_fit(x, y)
            else:
                self.estimator.partial_fit(x, y, classes=self._classes)

    def _inputs(self, data: Dataset) -> np.ndarray:
        x = np.ascontiguousarray(data.x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self._features:
            raise DataError(
                f"the data has shape {list(x.shape)}, the task says (examples, {self._features})"
            )
        return x


def _name(kind: str, index: int | None) -> str:
    return kind if index is None else f"{kind}.{index}"
