from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlog.learning.errors import ShapeMismatchError
from fedlog.tasks.base import ClientData, Dataset, Partition, Task, TrainingConfig
from fedlog.tasks.errors import DataError, ModelError
from fedlog.tasks.keras import KerasLearner, KerasTask, import_keras, named_variables

keras = import_keras()
layers = keras.layers


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(
        **{"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "seed": 5} | changes
    )


def blobs(count: int = 20, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    return Dataset((rng.normal(0, 0.3, (count, 4)) + y[:, None]).astype(np.float32), y)


def network(*inner: Any, compiled: dict[str, Any] | None = None) -> Any:
    model = keras.Sequential(
        [keras.Input((4,)), *inner, layers.Dense(3, activation="softmax")], name="net"
    )
    if compiled is not None:
        model.compile(**compiled)
    return model


def task_of(make: Callable[[], Any]) -> KerasTask:
    return KerasTask(lambda _: make(), lambda *_: (blobs(), None))


def learner_of(make: Callable[[], Any], seed: int = 0) -> KerasLearner:
    return task_of(make).model({}, seed)


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


# ---- weights -------------------------------------------------------------------------------------


def nested() -> Any:
    block = keras.Sequential([layers.Dense(4), layers.Dense(4)])
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="entry")(inputs)
    x = layers.BatchNormalization()(block(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.5)(x)))


NESTED_NAMES = [
    "entry/kernel",
    "entry/bias",
    "sequential/dense/kernel",
    "sequential/dense/bias",
    "sequential/dense_1/kernel",
    "sequential/dense_1/bias",
    "batch_normalization/gamma",
    "batch_normalization/beta",
    "dense/kernel",
    "dense/bias",
    "batch_normalization/moving_mean",
    "batch_normalization/moving_variance",
]


def test_names_do_not_depend_on_what_the_process_made_before() -> None:
    for _ in range(2):
        assert list(learner_of(nested).weights()) == NESTED_NAMES


def test_names_are_the_same_in_another_process() -> None:
    code = (
        f"import runpy, json; m = runpy.run_path({__file__!r}); "
        "print(json.dumps(list(m['learner_of'](m['nested']).weights())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(NESTED_NAMES).replace("'", '"')


def test_names_that_the_user_gave_stay_and_doubles_are_told_apart() -> None:
    class Twin(keras.Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__(name="twin")
            self.one = layers.Dense(2, name="head_7")
            self.two = layers.Dense(2, name="head_7")

        def call(self, x: Any) -> Any:
            return self.one(x) + self.two(x)

    model = Twin()
    model(np.zeros((1, 4), np.float32))
    assert list(named_variables(model)) == [
        "head_7/kernel",
        "head_7/bias",
        "head_7/kernel.2",
        "head_7/bias.2",
    ]


def test_frozen_layers_come_last() -> None:
    model = network(layers.Dense(4, name="frozen", trainable=False))
    assert list(named_variables(model)) == [
        "dense/kernel",
        "dense/bias",
        "frozen/kernel",
        "frozen/bias",
    ]


def test_initial_weights_follow_from_the_seed() -> None:
    assert same(learner_of(nested, 3).weights(), learner_of(nested, 3).weights())
    assert not same(learner_of(nested, 3).weights(), learner_of(nested, 4).weights())


def test_weights_are_a_copy() -> None:
    learner = learner_of(network)
    before = learner.weights()
    before["dense/bias"][:] = 7
    assert learner.weights()["dense/bias"].tolist() == [0, 0, 0]


def test_weights_of_another_layout_are_refused() -> None:
    learner = learner_of(network)
    weights = dict(learner.weights())
    with pytest.raises(ShapeMismatchError, match="dense/bias"):
        learner.set_weights({**weights, "dense/bias": np.zeros(4, np.float32)})
    with pytest.raises(ShapeMismatchError, match="float64"):
        learner.set_weights({**weights, "dense/bias": np.zeros(3)})


def test_moving_averages_travel() -> None:
    learner = learner_of(nested)
    start = learner.weights()
    learner.fit(blobs(), config())
    trained = learner.weights()
    name = "batch_normalization/moving_mean"
    assert not np.array_equal(start[name], trained[name])
    figures = learner.evaluate(blobs()).metrics
    other = learner_of(nested, seed=9)
    other.set_weights(trained)
    assert same(other.weights(), trained)
    assert other.evaluate(blobs()).metrics == pytest.approx(figures)


def test_mixed_dtypes_travel() -> None:
    def mixed() -> Any:
        half = layers.Dense(4, dtype=keras.DTypePolicy("float16"), name="half")
        count = layers.Normalization(name="scale")
        return network(half, count)

    learner = learner_of(mixed)
    weights = learner.weights()
    assert weights["half/kernel"].dtype == np.float16
    assert weights["dense/kernel"].dtype == np.float32
    learner.set_weights(weights)
    learner.fit(blobs(), config())
    assert [a.dtype for a in learner.weights().values()] == [a.dtype for a in weights.values()]


# ---- training ------------------------------------------------------------------------------------


def test_one_step_is_gradient_descent_by_hand() -> None:
    # One example, one linear unit, squared error: w - lr * 2 (w x + b - y) x, b - lr * 2 (...).
    def line() -> Any:
        model = keras.Sequential([keras.Input((1,)), layers.Dense(1, name="unit")], name="line")
        model.compile(keras.optimizers.SGD(0.5), loss="mse")
        return model

    learner = learner_of(line)
    learner.set_weights(
        {
            "unit/kernel": np.array([[2.0]], np.float32),
            "unit/bias": np.array([-1.0], np.float32),
        }
    )
    data = Dataset(np.array([[3.0]], np.float32), np.array([[1.0]], np.float32))
    result = learner.fit(data, config(learning_rate=0.01))
    # Error 2 * 3 - 1 - 1 = 4: kernel 2 - 0.01 * 2 * 4 * 3 = 1.76, bias -1 - 0.01 * 2 * 4 = -1.08.
    weights = learner.weights()
    assert weights["unit/kernel"][0, 0] == pytest.approx(1.76, abs=1e-6)
    assert weights["unit/bias"][0] == pytest.approx(-1.08, abs=1e-6)
    assert result.examples == 1
    assert result.metrics == {"loss": pytest.approx(16.0)}


def test_a_fit_depends_on_weights_data_and_config_alone() -> None:
    def dropping() -> Any:
        return network(
            layers.Dense(8),
            layers.Dropout(0.5),
            compiled={
                "optimizer": keras.optimizers.Adam(0.01),
                "loss": "sparse_categorical_crossentropy",
            },
        )

    learner = learner_of(dropping)
    start = learner.weights()

    def trained(**changes: Any) -> Any:
        learner.set_weights(start)
        learner.fit(blobs(), config(**changes))
        return learner.weights()

    first = trained()
    learner.fit(blobs(30, seed=8), config(seed=77, learning_rate=0.5))  # another client's round
    assert same(first, trained()), "optimizer slots, steps and dropout start afresh"
    assert not same(first, trained(seed=6)), "shuffling and dropout follow the seed"
    assert not same(first, trained(learning_rate=0.2))


def test_training_learns_and_reports_the_last_epoch() -> None:
    learner = learner_of(network)
    first = learner.fit(blobs(60), config(learning_rate=0.5)).metrics
    later = learner.fit(blobs(60), config(epochs=30, learning_rate=0.5)).metrics
    assert set(later) == {"loss", "accuracy"}
    assert later["loss"] < first["loss"]
    assert later["accuracy"] > 0.9


def test_a_graph_is_traced_once_whatever_the_round_and_the_size_of_the_data() -> None:
    traces = []

    class Counted(layers.Layer):  # type: ignore[misc]  # keras has no types
        def call(self, x: Any) -> Any:
            traces.append(1)  # Python runs while a graph is traced, not when it is used
            return x

    learner = learner_of(lambda: network(Counted()))
    for _ in range(2):
        learner.fit(blobs(8), config())
        learner.evaluate(blobs(8))
    before = len(traces)
    for size in (4, 5, 7, 50, 301):
        learner.fit(blobs(size), config(epochs=2, batch_size=3, learning_rate=1 / size))
        learner.evaluate(blobs(size))
    assert len(traces) == before


def test_training_stops_between_batches() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    learner = learner_of(network)
    learner.fit(blobs(100), config(epochs=50, should_stop=stop))
    assert len(asked) == 4


def test_no_retraining_state_is_left_by_a_stopped_fit() -> None:
    learner = learner_of(network)
    start = learner.weights()
    learner.fit(blobs(), config())
    wanted = learner.weights()
    stops = iter([False, False, True])
    learner.fit(blobs(), config(should_stop=lambda: next(stops)))
    learner.set_weights(start)
    learner.fit(blobs(), config())
    assert same(learner.weights(), wanted)


@pytest.mark.parametrize(
    ("loss", "metric", "one_hot"),
    [
        ("sparse_categorical_crossentropy", "accuracy", False),
        ("sparse_categorical_crossentropy", "sparse_categorical_accuracy", False),
        ("categorical_crossentropy", "categorical_accuracy", True),
        ("categorical_crossentropy", "acc", True),
    ],
)
def test_accuracy_is_called_so(loss: str, metric: str, one_hot: bool) -> None:
    learner = learner_of(
        lambda: network(compiled={"optimizer": "sgd", "loss": loss, "metrics": [metric]})
    )
    x, y = blobs(30)
    data = Dataset(x, np.eye(3, dtype=np.float32)[y] if one_hot else y)
    predicted = learner.model.predict(x, verbose=0).argmax(axis=1)
    result = learner.evaluate(data)
    assert result.examples == 30
    assert set(result.metrics) == {"loss", "accuracy"}
    assert result.metrics["accuracy"] == pytest.approx(float(np.mean(predicted == y)))


def test_an_evaluation_is_the_mean_over_all_examples() -> None:
    learner = learner_of(network)
    data = blobs(600)  # more than one step, the last one shorter
    x, y = data
    true = learner.model.predict(x, verbose=0)[np.arange(600), y]
    assert learner.evaluate(data).metrics["loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)


def test_the_users_train_step_is_used() -> None:
    class Clipped(keras.Sequential):  # type: ignore[misc]  # keras has no types
        def train_step(self, data: Any) -> Any:
            result = super().train_step(data)
            self.layers[-1].bias.assign(np.full(3, 0.25, np.float32))
            return result

    learner = learner_of(
        lambda: Clipped([keras.Input((4,)), layers.Dense(3, activation="softmax")], name="own")
    )
    learner.fit(blobs(), config())
    assert learner.weights()["dense/bias"].tolist() == [0.25, 0.25, 0.25]


# ---- what cannot be used -------------------------------------------------------------------------


def scheduled() -> Any:
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    return network(compiled={"optimizer": keras.optimizers.SGD(rate), "loss": "mse"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "model", "returned str, expected a keras.Model"),
        (lambda: keras.Sequential([layers.Dense(1)]), "begin it with keras.Input"),
        (
            lambda: keras.Sequential([keras.Input((4,)), layers.Dense(1)]),
            "does not say which loss fits: call model.compile",
        ),
        (scheduled, "spec.training.schedule"),
    ],
    ids=["no model", "not built", "not compiled", "own schedule"],
)
def test_a_model_that_cannot_be_used(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        learner_of(make)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (blobs(), "training data is ndarray, expected a pair"),
        (None, "returned NoneType, expected ClientData"),
        (((np.zeros((2, 4)), np.zeros(3)), None), "2 examples in x, 3 in y"),
        (((np.zeros((0, 4)), np.zeros(0)), None), "training data is empty"),
        ((blobs(), (np.zeros((2, 4)),)), "test data is tuple"),
    ],
    ids=["not a pair of sets", "nothing", "lengths", "empty", "test"],
)
def test_data_that_cannot_be_used(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        KerasTask(lambda _: network(), lambda *_: returned).data(Partition(0, 1, "g"), {})


def test_plain_tuples_are_client_data_and_held_out_is_optional() -> None:
    plain = KerasTask(lambda _: network(), lambda *_: (tuple(blobs()), tuple(blobs(5))))
    assert isinstance(plain, Task)
    data = plain.data(Partition(0, 1, "g"), {})
    assert isinstance(data, ClientData)
    assert (len(data.train.y), len(data.test.y if data.test else [])) == (20, 5)
    assert getattr(plain, "held_out", None) is None
    with_held_out = KerasTask(lambda _: network(), lambda *_: None, lambda *_: tuple(blobs(7)))
    assert len(with_held_out.held_out(Partition(0, 1, "evaluator"), {}).y) == 7


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    task = task_of(nested)
    learner = task.model({}, 3)
    learner.fit(blobs(), config())
    path = tmp_path / "model.keras"
    task.save(learner.weights(), {}, path)
    x, _ = blobs()
    loaded = keras.models.load_model(path)
    assert np.allclose(loaded.predict(x, verbose=0), learner.model.predict(x, verbose=0))
