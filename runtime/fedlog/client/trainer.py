"""The learning of one process: one task, its learners, and the data of each client that it hosts.

Clients of one process share a learner, unless their groups have parameters of their own. A learner
whose model is not the global one is adapted to (`fedlog.learning.adaptation`). Nothing here knows
of the log. A Trainer is used by one thread.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fedlog.job.loading import JobFile
from fedlog.job.model import EVALUATOR_GROUP, WeightAdaptation
from fedlog.learning.adaptation import Adaptation, adapt
from fedlog.learning.errors import UnfitModelError
from fedlog.learning.weights import Shape, Weights, check_same_layout, is_averaged, size_bytes
from fedlog.tasks.base import (
    ClientData,
    Dataset,
    EvaluationResult,
    Learner,
    Parameters,
    Partition,
    Task,
    TrainingConfig,
)
from fedlog.tasks.errors import ModelError, TaskError
from fedlog.wire.limits import Limits
from fedlog.wire.records import MAX_METRIC, Training

logger = logging.getLogger(__name__)

MAX_METRICS = 64  # as the records allow
LOCAL_PREFIX = "local_"


@dataclass(frozen=True)
class Trained:
    """What one training gave; `delta` is trained minus received weights, in the model's dtypes.

    Names are the global model's. delta and views: see `fedlog.learning.weights.Update`.
    """

    delta: Weights
    examples: int
    metrics: Mapping[str, float]
    seconds: float
    views: Mapping[str, Shape] = field(default_factory=dict)


@dataclass
class _Model:
    """A learner and what it holds.

    adaptation: to the global model, known with its first version. initial: where the client has
    tensors of its own, their first values. loaded: identity of the version that the learner holds
    unchanged, and the client whose own tensors it holds, if any.
    """

    parameters: Parameters
    learner: Learner
    adaptation: Adaptation | None = None
    initial: Weights = field(default_factory=dict)
    loaded: tuple[str, str] = ("", "")


class Trainer:
    """Evaluates and trains for the clients of one process, one at a time."""

    def __init__(
        self, job_file: JobFile, data_paths: Mapping[str, str], clients: Sequence[str] = ()
    ) -> None:
        """Load the task and make the learners.

        data_paths: group -> path, instead of the job's. clients: those of this process; default:
        all of the job. Raises TaskError.
        """
        from fedlog.tasks.loading import load_task
        from fedlog.tasks.partitioners import make_partitioner

        spec = job_file.job.spec
        self._spec = spec
        self._base = job_file.base
        self._paths: dict[str, str | None] = {g.name: g.data.path for g in spec.clients}
        if spec.evaluation.held_out is not None:
            self._paths[EVALUATOR_GROUP] = spec.evaluation.held_out.data.path
        self._paths |= data_paths
        self._numbers = {client: n for n, client in enumerate(spec.client_ids())}
        self._task: Task = load_task(
            spec.task, base=job_file.base, config_maps=job_file.config_maps
        )
        groups = {client.partition("/")[0] for client in clients or self._numbers}
        self._models: dict[str, _Model] = {}  # by parameters
        for group in sorted(groups):
            self._model(group)
        largest = max(size_bytes(model.learner.weights()) for model in self._models.values())
        self.limits = Limits.for_model(_largest_global(largest, spec.weight_adaptation))
        """What a version of the global model may be at most."""
        self._partitioner = make_partitioner(spec.partitioning)
        self._data: dict[str, ClientData] = {}
        self._held_out: Dataset | None = None
        self._own: dict[str, Weights] = {}  # by client: tensors that are not exchanged

    def check(self, client: str, weights: Weights) -> None:
        """Raise ModelError where the client's model cannot take part in learning this one.

        What is done to a model that can is logged, once.
        """
        model = self._model(client.partition("/")[0])
        if model.adaptation is not None:
            return
        own = model.learner.weights()
        try:
            found = adapt(weights, own, self._spec.weight_adaptation)
        except UnfitModelError as error:
            _log_table(logging.ERROR, f"{client}: its model does not fit", error.table)
            raise ModelError(f"{client}: {error}") from error
        model.adaptation = found
        model.initial = {name: own[name] for name in found.own_only}
        if not found.same:
            _log_table(
                logging.INFO,
                f"{client}: its model is not the global one: {found.policy.value}",
                found.table(),
            )

    def evaluate(
        self, client: str, test_set: Literal["HeldOut", "Clients"], base: str, weights: Weights
    ) -> EvaluationResult | None:
        """Figures of a version of the model; None where the client has no test data.

        base: identity of the version. Raises TaskError, ShapeMismatchError, and whatever the
        user's code raises.
        """
        data = self._held_out_data() if test_set == "HeldOut" else self._client_data(client).test
        if data is None or len(data.y) == 0:
            return None
        model, _ = self._load(client, base, weights)
        result = model.learner.evaluate(data)
        return EvaluationResult(result.examples, finite(result.metrics))

    def train(
        self,
        client: str,
        round_: int,
        work: Training,
        base: str,
        weights: Weights,
        *,
        evaluate: bool,
        should_stop: Callable[[], bool],
    ) -> Trained | None:
        """Train one round from a version of the model; None once `should_stop` says so.

        evaluate: measure the trained model on the client's own test data, too. Raises as
        `evaluate`, and TaskError where the client has nothing to train on.
        """
        data = self._client_data(client)
        if len(data.train.y) == 0:
            raise TaskError(f"{client} has no training examples: give it data, or leave it out")
        if should_stop():
            return None
        model, received = self._load(client, base, weights)
        model.loaded = ("", "")
        begin = time.monotonic()
        fitted = model.learner.fit(
            data.train,
            TrainingConfig(
                epochs=work.local_epochs,
                batch_size=work.batch_size,
                learning_rate=work.learning_rate,
                seed=training_seed(self._spec.seed, round_, self._numbers[client]),
                should_stop=should_stop,
            ),
        )
        seconds = time.monotonic() - begin
        if should_stop():
            return None
        metrics = dict(fitted.metrics)
        if evaluate and data.test is not None and len(data.test.y) > 0:
            local = model.learner.evaluate(data.test)
            metrics |= {f"{LOCAL_PREFIX}{name}": value for name, value in local.metrics.items()}
        trained = model.learner.weights()
        views: Mapping[str, Shape] = {}
        adaptation = model.adaptation
        if adaptation is None or adaptation.same:
            delta = subtract_in_place(trained, received)
        else:
            self._own[client] = {name: trained[name] for name in adaptation.own_only}
            shared = {pair.own: trained[pair.own] for pair in adaptation.pairs}
            delta, views = adaptation.to_global(
                subtract_in_place(shared, {name: received[name] for name in shared})
            )
        return Trained(delta, fitted.examples, finite(metrics), seconds, views)

    def number(self, client: str) -> int:
        """The client's number in the job."""
        return self._numbers[client]

    def _model(self, group: str) -> _Model:
        parameters = self._spec.parameters_of(group)
        key = json.dumps(parameters, sort_keys=True, default=str)
        if key not in self._models:
            learner = self._task.model(parameters, self._spec.seed)
            self._models[key] = _Model(parameters, learner)
        return self._models[key]

    def _load(self, client: str, base: str, weights: Weights) -> tuple[_Model, Weights]:
        """The client's learner with this version, and the weights that it got."""
        self.check(client, weights)
        model = self._model(client.partition("/")[0])
        adaptation = model.adaptation
        if adaptation is None or adaptation.same:
            received, loaded = weights, (base, "")
        else:
            own = self._own.get(client, model.initial)
            received = adaptation.to_client(weights, own)
            loaded = (base, client if own else "")
        if model.loaded != loaded:
            model.loaded = ("", "")
            model.learner.set_weights(received)
            model.loaded = loaded
        return model, received

    def _client_data(self, client: str) -> ClientData:
        if client not in self._data:
            group = client.partition("/")[0]
            partition = self._partition(self._numbers[client], group)
            self._data[client] = self._task.data(partition, self._model(group).parameters)
        return self._data[client]

    def _held_out_data(self) -> Dataset:
        if self._held_out is None:
            held_out = getattr(self._task, "held_out", None)
            if held_out is None:
                raise TaskError(
                    "evaluation.heldOut is given, but the task has no held_out(partition, "
                    "parameters): add it to the task, or remove evaluation.heldOut"
                )
            partition = self._partition(0, EVALUATOR_GROUP)
            data: Dataset = held_out(partition, self._spec.task.parameters)
            self._held_out = data
        return self._held_out

    def _partition(self, index: int, group: str) -> Partition:
        path = self._paths.get(group)
        return Partition(
            index=index,
            count=self._spec.client_count,
            group=group,
            path=None if path is None else str((Path(self._base) / path).absolute()),
            partitioner=self._partitioner,
            seed=self._spec.seed,
        )


def _largest_global(own_bytes: int, policy: WeightAdaptation) -> int:
    """How many bytes of a global model a client with so large a model of its own takes.

    The bound keeps what is announced from filling the memory; it is wide enough for a model that
    does not fit to be told from the client's, tensor by tensor.
    """
    if policy is WeightAdaptation.STRICT:
        return 4 * own_bytes + 16 * 2**20
    return 64 * own_bytes + 256 * 2**20


def _log_table(level: int, title: str, table: str) -> None:
    for line in (title, *table.splitlines()):
        logger.log(level, "%s", line)


def training_seed(job_seed: int, round_: int, number: int) -> int:
    """The seed of one client's training in one round, below 2**31: a restarted client trains the
    same.
    """
    words = np.random.SeedSequence([job_seed, round_, number]).generate_state(1)
    return int(words[0]) % 2**31


def subtract_in_place(trained: Weights, received: Weights) -> Weights:
    """Trained - received, written into the arrays of `trained`, so that no third model is held.

    A tensor of integers or booleans does not take part in a mean: its delta is zero.
    """
    check_same_layout(received, trained)
    for name, array in trained.items():
        if is_averaged(array):
            np.subtract(array, received[name], out=array)
        else:
            array.fill(0)
    return trained


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a record can carry: finite ones up to MAX_METRIC, the first 64."""
    values = {name: float(value) for name, value in metrics.items()}
    return dict(
        [(name, value) for name, value in values.items() if abs(value) <= MAX_METRIC][:MAX_METRICS]
    )
