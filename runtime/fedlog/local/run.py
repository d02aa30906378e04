"""`run`: one job, one machine, one call. What `fedlog run` does reads top to bottom here."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil

from fedlog import exit_codes
from fedlog.errors import FedlogError
from fedlog.job.errors import JobError, Problem
from fedlog.job.loading import JobFile, dump, load, loads
from fedlog.job.model import FederatedJob
from fedlog.local.broker import broker_for, check_answers
from fedlog.local.errors import TaskProcessError
from fedlog.local.federation import Federation, all_clients, cores
from fedlog.local.memory import check_fits
from fedlog.local.placement import place
from fedlog.local.substitution import substitutions, with_data, without_authentication
from fedlog.telemetry.progress import Progress
from fedlog.telemetry.report import write_report
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.telemetry.status import Status

JobLike = FederatedJob | JobFile | Mapping[str, Any] | str | Path


def run(
    job: JobLike,
    *,
    broker: str | None = None,
    workers: int | None = None,
    isolate: bool = False,
    data: Mapping[str, str | Path] | None = None,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    keep_broker: bool = False,
    quiet: bool = False,
    log_level: str = "info",
    on_status: Callable[[Status], None] | None = None,
) -> Result:
    """Run a whole federation here and return what it came to.

    job: a job, its document, or the path of a job file. Relative paths in it start from the
    file's folder, else from the current one. The task is named by its entrypoint: the processes
    import it themselves, so a task object cannot be given.
    broker: `host:port` of a Kafka; None starts the embedded broker for this run. (BOOTSTRAP_SERVERS
    is heard by the command, not by this function.)
    workers: processes that the clients share; None means one per core, at most 8. isolate: one
    process per client instead.
    data: group -> folder or file with its data. overrides: `path=value`, as of `--set`.
    runs: where the run folder is made. keep_broker: leave the embedded broker running.
    on_status: called from this thread with the server's status about twice a second.

    A job that ends as Failed is a Result, too (`succeeded` is False). Raises FedlogError when the
    run itself could not start or go on; nothing that was started is left behind in any case.
    """
    given = dict(data or {})
    asked = with_data(_read(job, overrides), given)
    job_file = asked if broker is not None else without_authentication(asked)
    if broker is not None:
        check_answers(broker, job_file)
    placed = place(all_clients(job_file), cores=cores(), workers=workers, isolate=isolate)
    with ExitStack() as stack:
        stack.enter_context(_sigterm_unwinds())
        folder = RunFolder.create(Path(runs).absolute(), job_file.job.metadata.name)
        folder.write_job(dump(job_file))
        display = stack.enter_context(Progress(quiet=quiet))
        display.say(f"run folder: {_as_seen_from_here(folder.path)}")
        for line in substitutions(asked.job, given, embedded_broker=broker is None):
            display.say(line)

        federation = Federation(job_file, folder, placed, log_level=log_level)
        stack.enter_context(_verdict_on_failure(federation.run_id, job_file.job, folder))
        initial = federation.make_initial_weights()
        if broker is None:
            check_fits(job_file.job.spec, initial.stat().st_size, psutil.virtual_memory().available)

        def tell(status: Status) -> None:
            display.update(status)
            if on_status is not None:
                on_status(status)

        def say(text: str) -> None:
            for line in text.splitlines():
                display.say(line)

        log = folder.logs / "broker.log"
        with broker_for(broker, keep=keep_broker, log=log) as running:
            try:
                federation.run(running, initial, on_status=tell, say=say)
            finally:
                federation.end()
                if running.note:
                    display.say(running.note)
        initial.unlink()
        try:
            federation.save_model()
        except TaskProcessError as error:
            say(f"model.safetensors is there, model.keras is not: {error}")
        result = Result.load(folder.path)
        write_report(folder.path)
        _copy_output(job_file, folder)
        display.finish(result)
        display.say(f"report: {_as_seen_from_here(folder.report)}")
    return result


def _as_seen_from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _read(job: JobLike, overrides: Sequence[str]) -> JobFile:
    """Whatever was given as a job file; what has no file stands in the current folder."""
    if isinstance(job, str | Path):
        return load(job, overrides=overrides)
    here = Path.cwd() / "federatedjob.yaml"
    if isinstance(job, FederatedJob):
        job = JobFile(job, here, {})
    if isinstance(job, JobFile):
        return loads(dump(job), path=job.path, overrides=overrides) if overrides else job
    return loads(json.dumps(job, default=_refuse_object), path=here, overrides=overrides)


def _refuse_object(value: object) -> NoReturn:
    raise JobError(
        [
            Problem(
                "",
                f"an object of {type(value).__name__} in the job",
                "text, numbers, lists and mappings",
                "name a task by its entrypoint, `package.module:attribute` or `file.py:attribute`: "
                "every process of the run imports it itself",
            )
        ]
    )


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that children are ended; exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever owns it decides
        return

    def unwind(_number: int, _frame: object) -> NoReturn:
        sys.exit(exit_codes.TERMINATED)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _verdict_on_failure(run_id: str, job: FederatedJob, folder: RunFolder) -> Iterator[None]:
    """A run that could not go on has a result and a report, too, unless the server wrote one."""
    try:
        yield
    except FedlogError as error:
        if not folder.result.exists():
            folder.write_result(
                Result(
                    run=run_id,
                    job=job.metadata.name,
                    namespace=job.metadata.namespace,
                    outcome="Failed",
                    reason=str(error),
                    rounds=max(
                        (report.round for report in read_metrics(folder.metrics)), default=0
                    ),
                    rounds_wanted=job.spec.rounds,
                )
            )
            write_report(folder.path)
        raise


def _copy_output(job_file: JobFile, folder: RunFolder) -> None:
    """What `spec.output.path` asks for beside the run folder: everything but the logs."""
    path = job_file.job.spec.output.path
    if path is not None:
        shutil.copytree(
            folder.path,
            job_file.base / path,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("logs"),
        )
