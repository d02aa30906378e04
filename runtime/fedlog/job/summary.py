"""A job in a few lines: what a person wants to see before a run."""

from __future__ import annotations

from fedlog.job.loading import JobFile
from fedlog.job.model import Mode, Spec, TestSet


def summary(job_file: JobFile) -> list[tuple[str, str]]:
    """Name and value of each thing, in the order to show them."""
    job = job_file.job
    spec = job.spec
    groups = ", ".join(f"{group.name} {group.replicas}" for group in spec.clients)
    return [
        ("job", f"{job.metadata.namespace}/{job.metadata.name}"),
        ("task", _task(job_file)),
        ("rounds", f"{spec.rounds}{_stop(spec)}"),
        ("clients", f"{spec.client_count} ({groups})"),
        ("per round", _cohort(spec)),
        ("quorum", f"{spec.participation.min_clients}, below it: {spec.participation.on_timeout}"),
        ("training", _training(spec)),
        ("strategy", f"{spec.strategy.name}"),
        ("test sets", _test_sets(spec)),
    ]


def _task(job_file: JobFile) -> str:
    source = job_file.job.spec.task.source
    entrypoint = job_file.job.spec.task.entrypoint
    return entrypoint if source is None else f"{entrypoint} from ConfigMap {source.config_map}"


def _stop(spec: Spec) -> str:
    stop = spec.stop_when
    if stop is None:
        return ""
    conditions = []
    if stop.value is not None:
        sign = ">=" if stop.mode is Mode.MAX else "<="
        conditions.append(f"{stop.metric} {sign} {stop.value}")
    if stop.patience is not None:
        conditions.append(f"no better {stop.metric} in {stop.patience} evaluations")
    return f", fewer on {' or '.join(conditions)} ({spec.decisive_test_set})"


def _cohort(spec: Spec) -> str:
    participation = spec.participation
    if participation.clients_per_round is not None:
        return f"{participation.clients_per_round}, {participation.selection}"
    if participation.fraction is not None:
        return f"{participation.fraction} of the clients, {participation.selection}"
    return "every joined client"


def _training(spec: Spec) -> str:
    training = spec.training
    epochs = "1 epoch" if training.local_epochs == 1 else f"{training.local_epochs} epochs"
    schedule = training.schedule.name
    rate = f"learning rate {training.learning_rate}"
    return f"{epochs}, batch {training.batch_size}, {rate}, {schedule}"


def _test_sets(spec: Spec) -> str:
    sets = [TestSet.CLIENTS] if spec.evaluation.held_out is None else list(TestSet)
    every = spec.evaluation.every
    when = "only the last version" if every == 0 else f"every {every} rounds"
    when = "every round" if every == 1 else when
    return f"{', '.join(sets)}, {when}"
