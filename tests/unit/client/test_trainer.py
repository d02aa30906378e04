from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedlog.client.trainer import Trained, Trainer, finite, subtract_in_place, training_seed
from fedlog.job.loading import loads
from fedlog.learning.errors import ShapeMismatchError
from fedlog.wire.records import Training


def test_the_delta_is_trained_minus_received_in_the_arrays_of_the_trained_model() -> None:
    trained = {"w": np.array([[1.5, -2.0]], np.float32), "b": np.array([4.0], np.float64)}
    received = {"w": np.array([[1.0, 1.0]], np.float32), "b": np.array([-1.0], np.float64)}
    delta = subtract_in_place(trained, received)
    assert delta["w"] is trained["w"]
    np.testing.assert_array_equal(delta["w"], np.array([[0.5, -3.0]], np.float32))
    np.testing.assert_array_equal(delta["b"], np.array([5.0]))
    assert (delta["w"].dtype, delta["b"].dtype) == (np.float32, np.float64)


def test_integers_and_booleans_do_not_change() -> None:
    trained = {"steps": np.array([7, 9], np.int64), "mask": np.array([True, False])}
    received = {"steps": np.array([1, 2], np.int64), "mask": np.array([False, False])}
    delta = subtract_in_place(trained, received)
    assert delta["steps"].tolist() == [0, 0]
    assert delta["mask"].tolist() == [False, False]


def test_models_of_another_layout_have_no_delta() -> None:
    with pytest.raises(ShapeMismatchError):
        subtract_in_place({"w": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)})


def test_every_training_has_a_seed_of_its_own_that_a_restart_finds_again() -> None:
    seeds = {
        training_seed(job, round_, client)
        for job in (0, 1)
        for round_ in range(20)
        for client in range(20)
    }
    assert len(seeds) == 800
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert training_seed(3, 2, 1) == training_seed(3, 2, 1)


def test_figures_that_are_not_numbers_are_left_out() -> None:
    assert finite({"loss": math.nan, "accuracy": 0.5, "norm": math.inf}) == {"accuracy": 0.5}


def test_a_record_carries_64_figures() -> None:
    assert len(finite({str(n): float(n) for n in range(100)})) == 64


ADAPTED = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: adapted}
spec:
  task: {entrypoint: "perceptrons.py:task"}
  rounds: 1
  partitioning: {name: Iid}
  weightAdaptation: Partial
  clients:
  - {name: wide, replicas: 1}
  - {name: narrow, replicas: 2, parameters: {hidden: [24]}}
"""


def test_what_is_not_exchanged_is_kept_for_each_client() -> None:
    """Clients of one learner: only the last bias fits, and each goes on from its own rest."""
    tasks = Path(__file__).parents[2] / "integration" / "adaptation"
    trainer = Trainer(loads(ADAPTED, path=tasks / "job.yaml"), {}, ["wide/0", "narrow/0"])
    generator = np.random.default_rng(0)
    shapes = {"coefs_.0": (64, 32), "intercepts_.0": (32,), "coefs_.1": (32, 10)}
    weights = {
        name: generator.standard_normal(shape).astype(np.float32) / 10
        for name, shape in (shapes | {"intercepts_.1": (10,)}).items()
    }
    work = Training(local_epochs=1, batch_size=16, learning_rate=0.1)

    def train(client: str, base: str) -> Trained:
        trained = trainer.train(
            client, 1, work, base, weights, evaluate=False, should_stop=lambda: False
        )
        assert trained is not None
        return trained

    assert train("wide/0", "v0").delta.keys() == weights.keys()
    first = train("narrow/1", "v0").delta["intercepts_.1"]
    other = train("narrow/0", "v0")
    assert list(other.delta) == ["intercepts_.1"]
    # The same work from the same version, but from layers that have learned once already.
    assert not np.array_equal(train("narrow/1", "v0").delta["intercepts_.1"], first)

    once = trainer.evaluate("narrow/1", "Clients", "v0", weights)
    trainer.evaluate("narrow/0", "Clients", "v0", weights)
    again = trainer.evaluate("narrow/1", "Clients", "v0", weights)
    assert once is not None
    assert once == again


def test_a_process_loads_one_learner_for_each_set_of_parameters_that_it_hosts() -> None:
    tasks = Path(__file__).parents[2] / "integration" / "adaptation"
    job = loads(ADAPTED, path=tasks / "job.yaml")
    assert len(Trainer(job, {}, ["narrow/0", "narrow/1"])._models) == 1
    assert len(Trainer(job, {}, ["narrow/0", "wide/0", "evaluator/0"])._models) == 2
