"""What `fedlog init` writes: a job and a task that run at once and are meant to be changed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from string import Template

JOB_FILE = "job.yaml"
TASK_FILE = "task.py"


class Library(StrEnum):
    """What the scaffolded model is made with."""

    KERAS = "keras"
    SKLEARN = "sklearn"


_JOB = Template("""\
# Check what you change with `fedlog validate $job`; `fedlog schema` is for your editor.
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata:
  name: $name
spec:
  task:
    entrypoint: $task:task # the file beside this one, and the name in it
    parameters:
      hidden: 32 # handed to the functions in $task
  rounds: 10
  # Five clients share one data set here, unevenly. Where each site has its own data, remove
  # `partitioning` and give every group its `data.path`.
  partitioning:
    name: Dirichlet
    parameters: {alpha: "0.5"}
  clients:
    - name: site-a
      replicas: 3
    - name: site-b
      replicas: 2
  training:
    localEpochs: 5
    batchSize: 10
    learningRate: "0.1" # decimals are in quotes
  evaluation:
    heldOut: {} # one more client measures every round on examples that none trains on
""")

_TASK = Template('''\
"""Handwritten digits, 8 x 8 pixels. Put your own model and your own data here.

Each client runs this module in its own process. `model` makes the model whose weights travel;
`data` reads the examples of one client, which never leave it.
"""

import numpy as np
from sklearn.datasets import load_digits

from fedlog.tasks.$library import $adapter

HELD_OUT = 360  # the last fifth of the images


$model


def examples():
    digits = load_digits()
    return (digits.data / 16).astype("float32"), digits.target


def data(partition, parameters):
    """One client's own (x, y) for training and (x, y) for testing.

    With data of its own a site would read what is at `partition.path` instead.
    """
    x, y = (array[:-HELD_OUT] for array in examples())
    mine = partition.indices(y)
    mine = np.random.default_rng([partition.seed, partition.index]).permutation(mine)
    test, train = np.split(mine, [len(mine) // 5])
    return (x[train], y[train]), (x[test], y[test])


def held_out(partition, parameters):
    """The evaluator's (x, y)."""
    x, y = (array[-HELD_OUT:] for array in examples())
    return x, y


$make
''')

_PARTS = {
    Library.KERAS: {
        "adapter": "KerasTask",
        "model": '''\
def model(parameters):
    """A Keras model; compile it to choose loss, metrics and optimizer yourself."""
    import keras  # here, because it takes seconds and only training needs it

    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(parameters["hidden"], activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )''',
        "make": "task = KerasTask(model, data, held_out)",
    },
    Library.SKLEARN: {
        "adapter": "SklearnTask",
        "model": '''\
def model(parameters):
    """Any estimator with `partial_fit`: SGDClassifier, MLPClassifier, SGDRegressor, ..."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier([parameters["hidden"]], solver="sgd", momentum=0)''',
        "make": "# The model is made before any data is read, so its sizes are said here.\n"
        "task = SklearnTask(model, data, features=64, classes=10, held_out=held_out)",
    },
}


def files(library: Library, name: str) -> dict[str, str]:
    """File name -> text of a job called `name` and its task."""
    return {
        JOB_FILE: _JOB.substitute(name=name, job=JOB_FILE, task=TASK_FILE),
        TASK_FILE: _TASK.substitute(_PARTS[library], library=library.value),
    }


def write(folder: Path, texts: dict[str, str]) -> None:
    """Make the folder and write the files, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
