"""CIFAR-10: 50,000 colour images of things, 32 x 32 pixels, and 10,000 held out (Krizhevsky 2009).

parameters.model: `cnn` (default), the classic network, or `lightweight`. The images are read from
the group's data.path (a folder with CIFAR's binary files), from Keras' cache, or downloaded into
that cache in the binary form. A client keeps 10 % of its part for testing.

CIFAR's binary form: files data_batch_1.bin to data_batch_5.bin for training and test_batch.bin,
each a sequence of records of 3,073 bytes: one label 0..9, then 1,024 red, green and blue pixels,
row by row. Fewer training files and shorter ones are fine.
"""

from __future__ import annotations

import pickletools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedlog.tasks.base import Dataset, Parameters, Partition
from fedlog.tasks.environment import lightweight
from fedlog.tasks.errors import DataError
from fedlog.tasks.images import CLASSES, Collection, as_images, image_task, keras_cache, missing
from fedlog.tasks.keras import import_keras
from fedlog.tasks.parameters import REDUCED_DATA_SIZE, check_known, choice

SIDE = 32
CHANNELS = 3
PIXELS = CHANNELS * SIDE * SIDE
RECORD_BYTES = 1 + PIXELS

ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
BINARY_FOLDER = "cifar-10-batches-bin"
KERAS_FOLDER = "cifar-10-batches-py"


def load(partition: Partition, parameters: Parameters) -> Collection:
    check_known(parameters, "model", REDUCED_DATA_SIZE)
    return _load(partition.path)


@cache
def _load(path: str | None) -> Collection:
    looked = []
    if path is not None:
        for folder in (Path(path), Path(path) / BINARY_FOLDER):
            found = read_binary_folder(folder)
            if found is not None:
                return found
        looked.append(f"{path}: data_batch_*.bin and test_batch.bin")
    for folder in sorted(keras_cache().glob(f"**/{BINARY_FOLDER}")):
        found = read_binary_folder(folder)
        if found is not None:
            return found
    for folder in sorted(keras_cache().glob(f"**/{KERAS_FOLDER}")):
        found = read_keras_folder(folder)
        if found is not None:
            return found
    looked.append(f"{keras_cache()}: {BINARY_FOLDER}, or {KERAS_FOLDER} as Keras stores it")
    try:
        archive = import_keras().utils.get_file(
            origin=ARCHIVE, file_hash=ARCHIVE_SHA256, hash_algorithm="sha256", extract=True
        )
    except Exception as error:  # noqa: BLE001  (a missing network has many faces)
        looked.append(f"a download of cifar-10-binary.tar.gz ({type(error).__name__})")
    else:
        for folder in Path(archive).glob(f"**/{BINARY_FOLDER}"):
            found = read_binary_folder(folder)
            if found is not None:
                return found
    raise missing(
        "CIFAR-10",
        looked,
        "Unpack cifar-10-binary.tar.gz (from the data set's own page, or from a colleague) and "
        "give its folder as the group's data.path, on Kubernetes as a mounted volume; or start "
        "once where there is a network. To try Fedlog without it, use fedlog.tasks.mnist:task.",
    )


def read_binary_folder(folder: Path) -> Collection | None:
    """A folder in CIFAR's binary form; None where there are no such files. Raises DataError."""
    train = sorted(folder.glob("data_batch_*.bin"))
    test = folder / "test_batch.bin"
    if not train and not test.is_file():
        return None
    if not train or not test.is_file():
        lacking = "test_batch.bin" if train else "data_batch_1.bin"
        raise DataError(f"{folder} has no {lacking}: copy the whole folder")
    return Collection(_joined([_read_records(path) for path in train]), _read_records(test))


def _read_records(path: Path) -> Dataset:
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % RECORD_BYTES:
        raise DataError(
            f"{path} has {len(content)} bytes, allowed is a positive multiple of {RECORD_BYTES}: "
            "it is cut off or not CIFAR-10 in binary form, copy it again"
        )
    records = content.reshape(-1, RECORD_BYTES)
    return as_images(_channels_last(records[:, 1:]), records[:, 0], path)


def read_keras_folder(folder: Path) -> Collection | None:
    """The folder that `keras.datasets.cifar10` leaves; None where a file is missing."""
    train = sorted(folder.glob("data_batch_*"))
    test = folder / "test_batch"
    if not train or not test.is_file():
        return None
    return Collection(_joined([_read_pickled(path) for path in train]), _read_pickled(test))


def _read_pickled(path: Path) -> Dataset:
    """One of the pickled files of CIFAR's Python form, without unpickling it.

    Unpickling runs whatever a file says, so Fedlog never does. A batch is a dictionary whose
    `data` is one string of all pixels and whose `labels` are small integers: `pickletools` lists a
    file's instructions without following any, and those two are picked out.
    """
    pixels, labels, key = b"", list[int](), ""
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if isinstance(argument, int) and opcode.name == "BININT1" and key == "labels":
                labels.append(argument)
            elif isinstance(argument, str | bytes) and opcode.name.endswith(("STRING", "BYTES")):
                text = argument.encode("latin-1") if isinstance(argument, str) else argument
                if len(text) >= PIXELS:
                    pixels = text
                key = text.decode("latin-1") if len(text) < 32 else ""
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): remove it, so that it is fetched") from error
    if not labels or len(pixels) != len(labels) * PIXELS:
        raise DataError(
            f"{path} is not a batch of CIFAR-10 as Keras stores it ({len(pixels)} bytes of pixels, "
            f"{len(labels)} labels): use CIFAR's binary form as the group's data.path"
        )
    records = np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS)
    return as_images(_channels_last(records), np.array(labels), path)


def _joined(parts: list[Dataset]) -> Dataset:
    return Dataset(
        np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    )


def _channels_last(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1).copy()


def model(parameters: Parameters) -> Any:
    """`cnn`: the classic; `lightweight`: a thirteenth of its weights, for slow machines."""
    choice(parameters, "model", ("cnn", "lightweight"))
    return _lightweight() if lightweight(parameters) else _classic()


def _classic() -> Any:
    """Three blocks of two 3 x 3 convolutions (32, 64, 128), pool and dropout; dense 128, 10."""
    import keras
    from keras import layers

    blocks = []
    for filters, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
        blocks += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(dropout),
        ]
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, CHANNELS)),
            *blocks,
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="classic_cnn",
    )


def _lightweight() -> Any:
    """Two 3 x 3 convolutions (16, 32), each with a pool; dense 32, 10."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, CHANNELS)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="lightweight_cnn",
    )


task = image_task(model, load)
