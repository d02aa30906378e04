"""Keras models (Keras 3 on TensorFlow) as tasks.

`KerasTask(model=..., data=...)` makes a task of two functions. TensorFlow is imported when the
first model is made, not before. One learner serves all clients of a process: its graphs are traced
once, whatever the round and whatever the number of examples, and nothing of a client stays in it
but what the next `fit` overwrites.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
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
from fedlog.tasks.environment import prepare_tensorflow
from fedlog.tasks.errors import ModelError, TaskError

EVALUATION_BATCH = 256
"""Examples per step of an evaluation; the result does not depend on it."""

_ACCURACY = {"acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"}


class KerasTask:
    """A task of functions.

    model: parameters -> a built `keras.Model`, compiled or not. Initial weights follow from the
    job's seed, which is set before the call. A compiled model keeps its loss, metrics and
    optimizer, whose learning rate is set in every round; one that ends in softmax or in one sigmoid
    unit is compiled with SGD and the matching cross-entropy.
    data: (partition, parameters) -> ClientData, or a plain `((x, y), (x_test, y_test))`.
    held_out: the same for the evaluator's `(x, y)`; optional.
    """

    def __init__(
        self,
        model: Callable[[Parameters], Any],
        data: Callable[[Partition, Parameters], Any],
        held_out: Callable[[Partition, Parameters], Any] | None = None,
    ) -> None:
        self._model = model
        self._data = data
        if held_out is not None:
            self.held_out = checked_held_out(held_out)

    def model(self, parameters: Parameters, seed: int) -> KerasLearner:
        keras = import_keras()
        keras.utils.set_random_seed(seed)
        return KerasLearner(self._model(parameters))

    def data(self, partition: Partition, parameters: Parameters) -> ClientData:
        return as_client_data(self._data(partition, parameters))

    def save(self, weights: Weights, parameters: Parameters, path: str | Path) -> None:
        """Write a `.keras` file that `keras.models.load_model` reads."""
        learner = self.model(parameters, seed=0)
        learner.set_weights(weights)
        learner.model.save(path)


class KerasLearner:
    """Trains and measures one `keras.Model`; see `fedlog.tasks.base.Learner`."""

    def __init__(self, model: Any) -> None:
        keras = import_keras()
        if not isinstance(model, keras.Model):
            raise ModelError(
                f"the task's model function returned {type(model).__name__}, expected a keras.Model"
            )
        if not model.built or not model.weights:
            raise ModelError(
                f"model {model.name!r} has no weights yet: begin it with keras.Input(shape), or "
                "call it once on an example inside the model function"
            )
        if not model.compiled:
            _compile(model)
        if model.optimizer is None or not isinstance(model.optimizer.variables, list):
            raise ModelError(f"model {model.name!r} is compiled without an optimizer")
        self.model = model
        self._variables = named_variables(model)
        # Shapes and dtypes only: a broadcast zero takes no memory.
        self._layout = {
            name: np.broadcast_to(np.zeros((), np.dtype(v.dtype)), tuple(v.shape))
            for name, v in self._variables.items()
        }
        model.optimizer.build(model.trainable_variables)
        self._fresh_optimizer = [(v, _compact(v.numpy())) for v in model.optimizer.variables]
        self._seeds = _seed_variables(model)
        self._steps: dict[tuple[Any, ...], Callable[[Any, Any], None]] = {}
        self._set_learning_rate(float(model.optimizer.learning_rate))

    def weights(self) -> Weights:
        return {name: np.array(v.numpy()) for name, v in self._variables.items()}

    def set_weights(self, weights: Weights) -> None:
        check_same_layout(self._layout, weights)
        for name, variable in self._variables.items():
            variable.assign(weights[name])

    def fit(self, data: Dataset, config: TrainingConfig) -> FitResult:
        """Shuffling and dropout follow from config.seed, the optimizer starts afresh."""
        for variable, value in self._fresh_optimizer:
            variable.assign(np.broadcast_to(value, tuple(variable.shape)))
        self._set_learning_rate(config.learning_rate)
        for position, variable in enumerate(self._seeds):
            variable.assign(np.array([config.seed % 2**32, position], variable.dtype))
        step = self._step(data, training=True)
        rng = np.random.default_rng(config.seed)
        for _ in range(config.epochs):
            self.model.reset_metrics()
            order = rng.permutation(len(data.y))
            for start in range(0, len(order), config.batch_size):
                if config.should_stop():
                    return FitResult(len(order), self._metrics())
                batch = order[start : start + config.batch_size]
                step(data.x[batch], data.y[batch])
        # Replaces the weights by their moving average where the optimizer was made with use_ema.
        self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        return FitResult(len(data.y), self._metrics())

    def evaluate(self, data: Dataset) -> EvaluationResult:
        step = self._step(data, training=False)
        self.model.reset_metrics()
        for start in range(0, len(data.y), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            step(data.x[part], data.y[part])
        return EvaluationResult(len(data.y), self._metrics())

    def _step(self, data: Dataset, *, training: bool) -> Callable[[Any, Any], None]:
        """One batch of training or of evaluation as a graph.

        Keras' own `train_step` and `test_step` do the work, so losses, metrics and overridden
        steps are the user's. `Model.fit` around them would build a pipeline per call and takes
        twice as long on small models. The batch axis is left open: a graph serves every size.
        """
        key = (training, *((array.shape[1:], array.dtype.str) for array in data))
        if key in self._steps:
            return self._steps[key]
        import tensorflow as tf

        one_step = self.model.train_step if training else self.model.test_step

        def step(x: Any, y: Any) -> None:
            one_step((x, y))

        if not self.model.run_eagerly:
            step = tf.function(
                step,
                input_signature=[tf.TensorSpec([None, *a.shape[1:]], a.dtype) for a in data],
                jit_compile=bool(self.model.jit_compile),
            )
        self._steps[key] = step
        return step

    def _metrics(self) -> dict[str, float]:
        found = {name: float(v) for name, v in self.model.get_metrics_result().items()}
        for name in _ACCURACY & found.keys():
            # One word for one thing, whatever loss decided which accuracy Keras took.
            found.setdefault("accuracy", found.pop(name))
        return found

    def _set_learning_rate(self, rate: float) -> None:
        try:
            self.model.optimizer.learning_rate = rate
        except TypeError as error:
            raise ModelError(
                f"model {self.model.name!r} has a learning-rate schedule, and the job sets the "
                "rate of every round: give its optimizer a number, and the job "
                "spec.training.schedule"
            ) from error


def import_keras() -> Any:
    """The keras module, on TensorFlow. Raises TaskError where it cannot be had."""
    prepare_tensorflow()
    try:
        import keras
        import tensorflow  # noqa: F401  (named, so that its absence gets the message below)
    except ImportError as error:
        raise TaskError(
            f"a Keras task needs TensorFlow, which cannot be imported ({error}): "
            "pip install 'fedlog[tensorflow]'"
        ) from error
    if keras.backend.backend() != "tensorflow":
        raise TaskError(
            f"Keras runs on {keras.backend.backend()}, a Keras task needs TensorFlow: "
            "set KERAS_BACKEND=tensorflow before keras is imported"
        )
    return keras


def named_variables(model: Any) -> dict[str, Any]:
    """The model's variables by name, trainable ones first: without metrics and random state.

    Names are the same for every model that one function makes, in any process. A variable's path
    holds automatic layer names such as `dense_3`, which count all layers that the process ever
    made; here they count within their parent, from the first, as in a new process. Names that the
    user gave stay; the model's own name is left out, as Keras itself does for some models.
    """
    automatic = {
        layer.name: base
        for layer in model._flatten_layers()
        for base in [_snake_case(type(layer).__name__)]
        if re.fullmatch(rf"{re.escape(base)}(_\d+)?", layer.name)
    }
    labels: dict[tuple[str, str], dict[str, str]] = {}
    named: dict[str, Any] = {}
    for variable in model.weights:
        name = ""
        for part in variable.path.removeprefix(f"{model.name}/").split("/"):
            base = automatic.get(part)
            if base is None:
                label = part
            else:
                siblings = labels.setdefault((name, base), {})
                count = len(siblings)
                label = siblings.setdefault(part, f"{base}_{count}" if count else base)
            name = f"{name}/{label}" if name else label
        unique, number = name, 1
        while unique in named:
            number += 1
            unique = f"{name}.{number}"
        named[unique] = variable
    trainable = {id(variable) for variable in model.trainable_weights}
    # sorted() is stable: the model's order stays within each of the two kinds.
    return dict(sorted(named.items(), key=lambda item: id(item[1]) not in trainable))


def _snake_case(name: str) -> str:
    """As Keras makes an automatic layer name of a class's name."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _compile(model: Any) -> None:
    """Compile a model whose last activation says what it predicts."""
    keras = import_keras()
    activation = getattr(model.layers[-1], "activation", None)
    name = getattr(activation, "__name__", "")
    shape = model.output_shape if isinstance(model.output_shape, tuple) else ()
    units = shape[-1] if shape and isinstance(shape[-1], int) else 0
    if name == "softmax" and units > 1:
        loss = "sparse_categorical_crossentropy"
    elif name == "sigmoid" and units == 1:
        loss = "binary_crossentropy"
    else:
        raise ModelError(
            f"model {model.name!r} is not compiled, and its last activation ({name or 'none'}) "
            "does not say which loss fits: call model.compile(optimizer, loss, metrics)"
        )
    model.compile(keras.optimizers.SGD(), loss=loss, metrics=["accuracy"])


def _seed_variables(model: Any) -> list[Any]:
    """The state of the model's SeedGenerators (dropout and the like)."""
    known = {id(v) for v in [*model.weights, *model.metrics_variables]}
    return [v for v in model.variables if id(v) not in known and tuple(v.shape) == (2,)]


def _compact(value: Any) -> np.ndarray:
    """An equal array that broadcasts to `value`: slots of an optimizer begin as one number, and a
    copy of Adam's would be twice the model.
    """
    array = np.array(value)
    if array.size and (array == array.flat[0]).all():
        return np.array(array.flat[0])
    return array
