"""Fashion-MNIST: 60,000 images of clothes, 28 x 28 pixels, and 10,000 held out (Xiao et al. 2017).

Read from the group's data.path (IDX files, gzip or not), from the Debian package
dataset-fashion-mnist, from Keras' cache, or by a download of Keras'. Model and the clients' test
share are those of mnist.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fedlog.tasks.base import Parameters, Partition
from fedlog.tasks.images import (
    IDX_FILES,
    Collection,
    idx_collection,
    image_task,
    keras_cache,
    missing,
    small_cnn,
)
from fedlog.tasks.keras import import_keras
from fedlog.tasks.parameters import REDUCED_DATA_SIZE, check_known

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load(partition: Partition, parameters: Parameters) -> Collection:
    check_known(parameters, REDUCED_DATA_SIZE)
    return _load(partition.path)


@cache
def _load(path: str | None) -> Collection:
    cached = keras_cache() / "fashion-mnist"
    looked = []
    for folder in [*([] if path is None else [Path(path)]), DEBIAN_FOLDER, cached]:
        found = idx_collection(folder)
        if found is not None:
            return found
        looked.append(f"{folder}: {', '.join(IDX_FILES)} (.gz or not)")
    try:
        import_keras().datasets.fashion_mnist.load_data()  # writes the four files to its cache
        found = idx_collection(cached)
    except Exception as error:  # noqa: BLE001  (a missing network has many faces)
        looked.append(f"a download by keras.datasets.fashion_mnist ({type(error).__name__})")
        found = None
    if found is None:
        raise missing(
            "Fashion-MNIST",
            looked,
            "On Debian: apt-get install dataset-fashion-mnist. Elsewhere mount a folder with the "
            "four files as the group's data.path.",
        )
    return found


task = image_task(small_cnn, load)
