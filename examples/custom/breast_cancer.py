"""Benign or malignant? A task of one's own, beside its job file."""

import numpy as np

from fedlog.tasks.sklearn import SklearnTask

FEATURES = 30
HELD_OUT = 114  # a fifth of the 569 patients


def model(parameters):
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", alpha=float(parameters.get("alpha", "0.001")))


def patients():
    """Standardised figures and 0 (malignant) or 1 (benign), in a fixed random order."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return ((x - x.mean(axis=0)) / x.std(axis=0))[order], y[order]


def data(partition, parameters):
    """One hospital's patients: four fifths to train on, a fifth to test on."""
    x, y = (array[HELD_OUT:] for array in patients())
    mine = partition.indices(y)
    test, train = mine[::5], np.delete(mine, np.s_[::5])
    return (x[train], y[train]), (x[test], y[test])


def held_out(partition, parameters):
    """The evaluator's patients, whom no hospital holds."""
    x, y = patients()
    return x[:HELD_OUT], y[:HELD_OUT]


task = SklearnTask(model, data, features=FEATURES, classes=2, held_out=held_out)
