"""The processes of one run: the first model, the server, the workers, the last model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedlog import exit_codes
from fedlog.job.environment import AUTHENTICATION_VARIABLES
from fedlog.job.loading import JobFile
from fedlog.job.model import EVALUATOR_GROUP
from fedlog.local.broker import RunningBroker
from fedlog.local.children import Child, end_all, wait_all
from fedlog.local.errors import TaskProcessError
from fedlog.local.placement import Worker, thread_environment
from fedlog.local.supervisor import Supervisor
from fedlog.telemetry.run_folder import RunFolder
from fedlog.telemetry.status import Status
from fedlog.transport.topics import run_id

_TASK_S = 900.0
"""Longest time for making the first model or saving the last: a task may load much for it."""


_HEARD_ALREADY = AUTHENTICATION_VARIABLES | frozenset(
    (
        "BOOTSTRAP_SERVERS",
        "CLIENT_ID",
        "FEDLOG_RUN",
        "MODEL_TOPIC",
        "REDUCED_DATA_SIZE",
        "UPDATE_TOPIC",
        "USE_LIGHTWEIGHT_MODEL",
    )
)
"""Variables that the job as resolved holds already, or that a flag has beaten: children that heard
them again would change it."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def all_clients(job_file: JobFile) -> list[str]:
    """Every client of the job, the evaluator (where there is one) last."""
    spec = job_file.job.spec
    held_out = spec.evaluation.held_out is not None
    return [*spec.client_ids(), *([f"{EVALUATOR_GROUP}/0"] if held_out else [])]


class Federation:
    """Starts the processes of a run, each with its log in the run folder; `end` ends them all.

    run: tells runs of one job on one broker apart.
    """

    def __init__(
        self,
        job_file: JobFile,
        folder: RunFolder,
        workers: Sequence[Worker],
        *,
        run: str,
        log_level: str,
    ) -> None:
        self._job_file = job_file
        self._folder = folder
        self._workers = workers
        self._log_level = log_level
        self._run = run
        self._children: list[Child] = []

    @property
    def run_id(self) -> str:
        """The run's name in records and topics."""
        return run_id(self._job_file.job, self._run)

    def make_initial_weights(self) -> Path:
        """The first model as a safetensors file; one that is there already stays.

        Raises TaskProcessError: the task, its data or the warm start cannot be used.
        """
        path = self._folder.path / "initial.safetensors"
        if not path.exists():
            self._run_task("initial", "fedlog.tasks.initial", "--output", str(path))
        return path

    def save_model(self) -> None:
        """Write the last model in its library's own format, where the task can.

        Raises TaskProcessError.
        """
        if self._folder.model.exists():
            model, output = str(self._folder.model), str(self._folder.keras_model)
            self._run_task("save", "fedlog.local.saving", "--model", model, "--output", output)

    def run(
        self,
        broker: RunningBroker,
        initial: Path,
        *,
        on_status: Callable[[Status], None],
        say: Callable[[str], None],
    ) -> None:
        """Start server and workers, again where they die, and return when there is a verdict.

        Raises ProcessDiedError, BrokerUnavailableError: see `Supervisor.follow`.
        """
        status_file = self._folder.path / ".status-address"
        common = ["--run", self._run, "--broker", broker.address, *self._job_arguments()]
        start_server = partial(
            self._start,
            "server",
            "fedlog",
            "server",
            *common,
            "--output",
            str(self._folder.path),
            "--initial",
            str(initial),
            "--status-file",
            str(status_file),
        )
        environment = thread_environment(cores(), len(self._workers))
        start_workers = {
            worker: partial(
                self._start,
                worker.name,
                "fedlog",
                "client",
                *common,
                "--clients",
                ",".join(worker.clients),
                environment=environment,
            )
            for worker in self._workers
        }
        Supervisor(
            self._job_file.job.spec,
            start_server,
            start_workers,
            broker,
            status_file,
            self._folder.result,
            on_status=on_status,
            say=say,
        ).follow()
        status_file.unlink(missing_ok=True)

    def end(self) -> None:
        """End whatever still runs."""
        end_all(self._children)

    def _job_arguments(self) -> list[str]:
        return [str(self._folder.job), "--base", str(self._job_file.base.absolute())]

    def _start(
        self, name: str, module: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> Child:
        child = Child(
            name,
            module,
            arguments,
            log=self._folder.logs / f"{name}.log",
            environment={
                "TF_CPP_MIN_LOG_LEVEL": "2",
                **{k: v for k, v in os.environ.items() if k not in _HEARD_ALREADY},
                "FEDLOG_LOG_LEVEL": self._log_level,
                **(environment or {}),
            },
        )
        self._children = [each for each in self._children if each.exit_code is None]
        self._children.append(child)
        return child

    def _run_task(self, name: str, module: str, *arguments: str) -> None:
        """A short-lived process that loads the task, so that no other process of ours must."""
        child = self._start(
            name,
            module,
            *self._job_arguments(),
            *arguments,
            environment=thread_environment(cores(), 1),
        )
        try:
            ended = wait_all([child], _TASK_S)
            if not ended:
                raise TaskProcessError(
                    f"{name} was not done after {_TASK_S:g} s; its last lines ({child.log}):\n"
                    f"{child.tail()}"
                )
        finally:
            end_all([child])
            self._children.remove(child)
        if child.exit_code == exit_codes.TASK:
            # It said what is wrong in words of its own.
            raise TaskProcessError(child.tail().removeprefix("error: "))
        if child.exit_code != exit_codes.OK:
            raise TaskProcessError(child.obituary())
