from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from fedlog.learning.errors import ShapeMismatchError
from fedlog.tasks.base import Dataset, Partition, Task, TrainingConfig
from fedlog.tasks.errors import DataError, ModelError
from fedlog.tasks.sklearn import SklearnLearner, SklearnTask

ESTIMATORS = {
    "log": lambda: SGDClassifier(loss="log_loss"),
    "hinge": SGDClassifier,
    "perceptron": Perceptron,
    "mlp": lambda: MLPClassifier((5,), solver="sgd"),
    "adam": lambda: MLPClassifier((5,)),
}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(
        **{"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "seed": 5} | changes
    )


def blobs(count: int = 60, classes: int = 3, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    centres = 2 * np.eye(4)[:classes]
    return Dataset((rng.normal(0, 0.3, (count, 4)) + centres[y]).astype(np.float32), y)


def learner_of(name: str, classes: int = 3, seed: int = 0) -> SklearnLearner:
    task = SklearnTask(lambda _: ESTIMATORS[name](), lambda *_: (blobs(), None), 4, classes)
    return task.model({}, seed)


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_kind_of_model_learns(name: str, classes: int) -> None:
    learner = learner_of(name, classes)
    data = blobs(classes=classes)
    layout = {key: (a.shape, a.dtype) for key, a in learner.weights().items()}
    before = learner.evaluate(data).metrics
    result = learner.fit(data, config(epochs=100, learning_rate=0.05))
    assert result.examples == 60
    assert set(result.metrics) == {"loss", "accuracy"}
    assert result.metrics["loss"] < before["loss"]
    assert result.metrics["accuracy"] > 0.9
    assert layout == {key: (a.shape, a.dtype) for key, a in learner.weights().items()}
    assert {dtype for _, dtype in layout.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fit_depends_on_weights_data_and_config_alone(name: str) -> None:
    learner = learner_of(name)
    start = learner.weights()

    def trained(**changes: Any) -> Any:
        learner.set_weights(start)
        learner.fit(blobs(), config(epochs=2, **changes))
        return learner.weights()

    first = trained()
    learner.fit(blobs(30, seed=8), config(seed=77, learning_rate=0.5))  # another client's round
    assert same(first, trained())
    assert not same(first, trained(seed=6))
    if name != "perceptron":  # from zero weights a perceptron's rate only scales them
        assert not same(first, trained(learning_rate=0.2))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_weights_make_the_model(name: str) -> None:
    one, other = learner_of(name), learner_of(name, seed=3)
    one.fit(blobs(), config(epochs=5))
    other.set_weights(one.weights())
    assert same(one.weights(), other.weights())
    assert one.evaluate(blobs()) == other.evaluate(blobs())
    with pytest.raises(ShapeMismatchError):
        other.set_weights({key: a[:-1] for key, a in one.weights().items()})


def test_names_and_initial_weights() -> None:
    assert list(learner_of("log").weights()) == ["coef_", "intercept_"]
    assert all(not a.any() for a in learner_of("log").weights().values())
    names = ["coefs_.0", "intercepts_.0", "coefs_.1", "intercepts_.1"]
    assert list(learner_of("mlp").weights()) == names
    assert same(learner_of("mlp", seed=1).weights(), learner_of("mlp", seed=1).weights())
    assert not same(learner_of("mlp", seed=1).weights(), learner_of("mlp", seed=2).weights())


def test_a_client_may_lack_a_class() -> None:
    learner = learner_of("mlp")
    data = blobs()
    some = data.take(np.flatnonzero(data.y != 1))
    assert learner.fit(some, config()).examples == len(some.y)
    assert learner.evaluate(data).examples == 60


def test_losses_by_hand() -> None:
    # Zero weights: three equal probabilities, loss ln 3; hinge 1 - 0 + 0 = 1.
    assert learner_of("log").evaluate(blobs()).metrics["loss"] == pytest.approx(np.log(3))
    assert learner_of("hinge").evaluate(blobs()).metrics["loss"] == 1.0
    # Binary hinge: score s = 2 x0 - 1 for x0 = 2 is 3, for x0 = 0 it is -1; label 0 is s < 0.
    learner = learner_of("hinge", classes=2)
    learner.set_weights(
        {
            "coef_": np.array([[2, 0, 0, 0]], np.float32),
            "intercept_": np.array([-1], np.float32),
        }
    )
    x = np.array([[2, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    # max(0, 1 - 3) = 0 and max(0, 1 + 3) = 4 for the first, 0 and 2 for the second example.
    assert learner.evaluate(Dataset(x, np.array([1, 0]))).metrics == {"loss": 0.0, "accuracy": 1.0}
    assert learner.evaluate(Dataset(x, np.array([0, 1]))).metrics == {"loss": 3.0, "accuracy": 0.0}


def test_regression_reports_squared_error() -> None:
    task = SklearnTask(lambda _: SGDRegressor(), lambda *_: (blobs(), None), 4, None)
    learner = task.model({}, 0)
    x = np.eye(4, dtype=np.float32)
    data = Dataset(x, np.array([1.0, 2.0, 3.0, 4.0]))
    assert learner.evaluate(data).metrics == {"loss": 7.5}  # (1 + 4 + 9 + 16) / 4
    assert learner.fit(data, config(epochs=50)).metrics["loss"] < 1


def test_training_stops_between_epochs() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    learner_of("mlp").fit(blobs(), config(epochs=50, should_stop=stop))
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (KNeighborsClassifier(), "no partial_fit"),
        (GaussianNB(), "neither coef_"),
        (SGDClassifier(average=True), "average=False"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_cannot_be_used(estimator: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SklearnLearner(estimator, 4, np.arange(3), 0)


def test_data_that_cannot_be_used() -> None:
    learner = learner_of("log")
    with pytest.raises(DataError, match=r"shape \[60, 3\], the task says \(examples, 4\)"):
        learner.fit(Dataset(blobs().x[:, :3], blobs().y), config())
    with pytest.raises(DataError, match="labels besides the task's 3 classes"):
        learner.evaluate(Dataset(blobs().x, blobs().y + 1))


def test_the_task_has_what_a_task_has() -> None:
    task = SklearnTask(
        lambda _: ESTIMATORS["log"](), lambda *_: (blobs(), None), 4, 3, lambda *_: blobs(9)
    )
    assert isinstance(task, Task)
    assert len(task.held_out(Partition(0, 1, "evaluator"), {}).y) == 9
    assert task.data(Partition(0, 1, "g"), {}).test is None


def test_tensorflow_is_not_loaded() -> None:
    code = (
        "import sys; from fedlog.tasks.digits import task; from fedlog.tasks.base import Partition;"
        "p = {'model': 'sklearn'}; l = task.model(p, 0); d = task.data(Partition(0, 1, 'g'), p);"
        "l.evaluate(d.train); print({'tensorflow', 'keras'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
