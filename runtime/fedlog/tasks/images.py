"""Built-in tasks on image collections: the same division, scaling and checks for each.

A collection is loaded once per process, as bytes; a client's own images become float32 in -1..1:
with zero in the middle small networks learn faster, and more alike from seed to seed, than from
0..1.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedlog.tasks.base import ClientData, Dataset, Parameters, Partition
from fedlog.tasks.datasets import client_data
from fedlog.tasks.environment import reduced_data_size
from fedlog.tasks.errors import DataError
from fedlog.tasks.keras import KerasTask

CLASSES = 10
TEST_SHARE = 0.1
"""Share of its images that a client keeps for testing."""


class Collection(NamedTuple):
    """Images uint8 of shape (n, height, width, channels), labels int64; no image is in both."""

    train: Dataset
    held_out: Dataset


def image_task(
    model: Callable[[Parameters], Any],
    load: Callable[[Partition, Parameters], Collection],
) -> KerasTask:
    """A classification task on a collection that every client can read.

    load may depend on the partition's path and seed only.
    """

    def data(partition: Partition, parameters: Parameters) -> ClientData:
        train, test = client_data(
            load(partition, parameters).train,
            partition,
            test_share=TEST_SHARE,
            limit=reduced_data_size(parameters),
        )
        return ClientData(_scaled(train), None if test is None else _scaled(test))

    def held_out(partition: Partition, parameters: Parameters) -> Dataset:
        return _scaled(load(partition, parameters).held_out)

    return KerasTask(model, data, held_out)


def small_cnn(parameters: Parameters) -> Any:
    """28 x 28 x 1: conv 16, pool, conv 32, pool, dense 64, dense 10 (3 x 3 kernels, ReLU)."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="small_cnn",
    )


def keras_cache() -> Path:
    """Where Keras keeps the data sets that it downloaded."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST, gzip or not. Raises DataError."""
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is no complete gzip file: {error}") from error
    # Two zero bytes, 8 for "unsigned byte", the rank, then one big-endian length per axis.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no IDX file of bytes: it starts with {content[:4]!r}")
    rank = content[3]
    start = 4 + 4 * rank
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    if len(shape) != rank or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} says shape {list(shape)}, but holds {len(content) - start} bytes: it is cut "
            "off or damaged, copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_collection(folder: Path) -> Collection | None:
    """The four IDX files of an MNIST-like collection, gzip or not; None where one is missing."""
    found = [
        next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        for name in IDX_FILES
    ]
    paths = [path for path in found if path is not None]
    if len(paths) < len(IDX_FILES):
        return None
    train_x, train_y, test_x, test_y = (read_idx(path) for path in paths)
    return Collection(as_images(train_x, train_y, folder), as_images(test_x, test_y, folder))


def as_images(x: np.ndarray, y: np.ndarray, where: Path) -> Dataset:
    """Bytes (n, height, width[, channels]) and n labels as a Dataset. Raises DataError."""
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if x.ndim != 4 or x.dtype != np.uint8 or len(x) == 0 or y.reshape(-1).shape != (len(x),):
        raise DataError(f"{where}: {x.dtype}{list(x.shape)} images with {list(y.shape)} labels")
    labels = y.reshape(-1).astype(np.int64)
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{where}: labels from {labels.min()} to {labels.max()}, allowed 0 to 9")
    return Dataset(x, labels)


def missing(what: str, looked: list[str], cure: str) -> DataError:
    """The error of a loader that found nothing: what was looked for, where, and the cure."""
    places = "".join(f"\n  - {place}" for place in looked)
    return DataError(f"{what} not found. Looked for:{places}\n{cure}")


def _scaled(data: Dataset) -> Dataset:
    return Dataset(data.x.astype(np.float32) / np.float32(127.5) - 1, data.y)
