"""Handwritten digits, 8 x 8 pixels: 1,797 images that come with scikit-learn (UCI, Alpaydin 1998).

parameters.model: `mlp` (default), the Keras model 64-32-10, or `sklearn`, the same network as an
MLPClassifier, which starts without TensorFlow. A fifth, stratified and seeded, is held out; the
rest is divided among the clients, each of which keeps 20 % of its part for testing.
"""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import numpy as np

from fedlog.tasks.base import ClientData, Dataset, Learner, Parameters, Partition
from fedlog.tasks.datasets import client_data, stratified_split
from fedlog.tasks.environment import reduced_data_size
from fedlog.tasks.keras import KerasTask
from fedlog.tasks.package_data import package_file
from fedlog.tasks.parameters import REDUCED_DATA_SIZE, check_known, choice
from fedlog.tasks.sklearn import SklearnTask

PIXELS = 64
CLASSES = 10
HELD_OUT_SHARE = 0.2
TEST_SHARE = 0.2


@cache
def images() -> Dataset:
    """All images: x float32 of shape (1797, 64) in -1..1, y int64 in 0..9."""
    path = package_file("sklearn", "datasets/data/digits.csv.gz", "pip install scikit-learn")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Dataset(table[:, :PIXELS] / 8 - 1, table[:, PIXELS].astype(np.int64))


def data(partition: Partition, parameters: Parameters) -> ClientData:
    everything = images()
    pool, _ = stratified_split(everything.y, HELD_OUT_SHARE, partition.seed)
    return client_data(
        everything.take(pool),
        partition,
        test_share=TEST_SHARE,
        limit=reduced_data_size(parameters),
    )


def held_out(partition: Partition, parameters: Parameters) -> Dataset:
    everything = images()
    _, kept = stratified_split(everything.y, HELD_OUT_SHARE, partition.seed)
    return everything.take(kept)


def mlp(parameters: Parameters) -> Any:
    import keras

    model = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ],
        name="digits",
    )
    model.compile(
        keras.optimizers.SGD(), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def perceptron(parameters: Parameters) -> Any:
    from sklearn.neural_network import MLPClassifier

    # alpha and momentum are 0, so that it trains as the Keras model does.
    return MLPClassifier((32,), solver="sgd", alpha=0, momentum=0, nesterovs_momentum=False)


class DigitsTask:
    """Chooses the library by parameters.model; the data is the same."""

    def __init__(self) -> None:
        self._by_model: dict[str, KerasTask | SklearnTask] = {
            "mlp": KerasTask(mlp, data, held_out),
            "sklearn": SklearnTask(perceptron, data, PIXELS, CLASSES, held_out),
        }

    def _chosen(self, parameters: Parameters) -> KerasTask | SklearnTask:
        check_known(parameters, "model", REDUCED_DATA_SIZE)
        return self._by_model[choice(parameters, "model", tuple(self._by_model))]

    def model(self, parameters: Parameters, seed: int) -> Learner:
        return self._chosen(parameters).model(parameters, seed)

    def data(self, partition: Partition, parameters: Parameters) -> ClientData:
        return self._chosen(parameters).data(partition, parameters)

    def held_out(self, partition: Partition, parameters: Parameters) -> Dataset:
        return self._chosen(parameters).held_out(partition, parameters)

    def save(self, weights: Any, parameters: Parameters, path: str) -> None:
        chosen = self._chosen(parameters)
        if isinstance(chosen, KerasTask):
            chosen.save(weights, parameters, path)


task = DigitsTask()
