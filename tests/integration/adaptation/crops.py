"""Digits for a small CNN whose pictures, and so its flattened map, are `pixels` wide and high."""

from __future__ import annotations

from typing import Any

from fedlog.tasks import digits
from fedlog.tasks.base import ClientData, Dataset, Parameters, Partition
from fedlog.tasks.keras import KerasTask


def cropped(data: Dataset, parameters: Parameters) -> Dataset:
    side = parameters.get("pixels", 8)
    return Dataset(data.x.reshape(-1, 8, 8, 1)[:, :side, :side], data.y)


def data(partition: Partition, parameters: Parameters) -> ClientData:
    train, test = digits.data(partition, {})
    assert test is not None
    return ClientData(cropped(train, parameters), cropped(test, parameters))


def held_out(partition: Partition, parameters: Parameters) -> Dataset:
    return cropped(digits.held_out(partition, {}), parameters)


def model(parameters: Parameters) -> Any:
    import keras

    side = parameters.get("pixels", 8)
    return keras.Sequential(
        [
            keras.Input((side, side, 1)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ]
    )


task = KerasTask(model, data, held_out)
