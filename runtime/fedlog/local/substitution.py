"""What stands for what when a job of a cluster runs on one machine; each is told to the person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fedlog.job.errors import JobError, Problem
from fedlog.job.loading import JobFile
from fedlog.job.model import EVALUATOR_GROUP, Authentication, ClientData, FederatedJob


def with_data(job_file: JobFile, data: Mapping[str, str | Path]) -> JobFile:
    """The job with these folders or files as its groups' data, whatever the file says.

    data: group -> path, relative to the current folder; `evaluator` is the held-out data. Raises
    JobError for a group that the job does not have and for a path that does not exist.
    """
    spec = job_file.job.spec
    groups = [group.name for group in spec.clients]
    held_out = spec.evaluation.held_out
    known = groups if held_out is None else [*groups, EVALUATOR_GROUP]
    problems = []
    places: dict[str, ClientData] = {}
    for group, path in data.items():
        source = f"--data {group}={path}"
        if group not in known:
            problems.append(Problem("", f"group {group!r}", ", ".join(known), "", source))
        elif not Path(path).exists():
            problems.append(
                Problem("", f"{path}, which does not exist", "a file or a folder", "", source)
            )
        else:
            places[group] = ClientData(path=str(Path(path).absolute()))
    if problems:
        raise JobError(problems)
    clients = [
        group.model_copy(update={"data": places.get(group.name, group.data)})
        for group in spec.clients
    ]
    changes: dict[str, object] = {"clients": clients}
    if held_out is not None and EVALUATOR_GROUP in places:
        held_out = held_out.model_copy(update={"data": places[EVALUATOR_GROUP]})
        changes["evaluation"] = spec.evaluation.model_copy(update={"held_out": held_out})
    job = job_file.job.model_copy(update={"spec": spec.model_copy(update=changes)})
    return replace(job_file, job=job)


def without_authentication(job_file: JobFile) -> JobFile:
    """The job for the embedded broker, which asks nobody who they are."""
    spec = job_file.job.spec
    kafka = spec.kafka.model_copy(update={"authentication": Authentication()})
    job = job_file.job.model_copy(update={"spec": spec.model_copy(update={"kafka": kafka})})
    return replace(job_file, job=job)


def substitutions(
    job: FederatedJob, data: Mapping[str, str | Path], *, embedded_broker: bool
) -> Iterator[str]:
    """One line per thing that differs from what the file says."""
    spec = job.spec
    if spec.task.source is not None:
        name = spec.task.source.config_map
        yield f"ConfigMap {name}: its files are written to a folder for the task to be read from"
    for group, path in data.items():
        yield f"data of {group}: {Path(path).absolute()}"
    if embedded_broker:
        instead = spec.kafka.bootstrap_servers
        kafka = "Kafka" if instead is None else f"Kafka at {instead}"
        yield f"{kafka}: an embedded broker, in memory, for this run alone (--broker uses another)"
        if spec.kafka.authentication != Authentication():
            yield "authentication: the embedded broker on 127.0.0.1 needs none"
