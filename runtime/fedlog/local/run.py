"""`run`: one job, one machine, one call. What `fedlog run` does reads top to bottom here."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from fedlog import exit_codes
from fedlog.errors import FedlogError
from fedlog.job.errors import JobError, Problem
from fedlog.job.loading import JobFile, dump, load, loads
from fedlog.job.model import FederatedJob
from fedlog.local.broker import broker_for, check_answers
from fedlog.local.errors import NotResumableError, TaskProcessError
from fedlog.local.federation import Federation, all_clients, cores
from fedlog.local.memory import check_fits
from fedlog.local.placement import Worker, place
from fedlog.local.run_record import RunRecord, alone_in
from fedlog.local.substitution import substitutions, with_data, without_authentication
from fedlog.telemetry.progress import Progress
from fedlog.telemetry.report import write_report
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, find_run, read_metrics
from fedlog.telemetry.status import Status
from fedlog.transport.topics import run_id, topic_names

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
        record = RunRecord(
            run=secrets.token_hex(4),
            base=job_file.base.absolute(),
            broker=broker,
            workers={worker.name: worker.clients for worker in placed},
        )
        record.write(folder)
        stack.enter_context(alone_in(folder))
        display = stack.enter_context(Progress(quiet=quiet))
        display.say(f"run folder: {_as_seen_from_here(folder.path)}")
        for line in substitutions(asked.job, given, embedded_broker=broker is None):
            display.say(line)
        return _go_to_the_end(
            job_file,
            folder,
            record,
            display,
            keep_broker=keep_broker,
            log_level=log_level,
            on_status=on_status,
        )


def resume(
    folder: str | Path,
    *,
    broker: str | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    log_level: str = "info",
    on_status: Callable[[Status], None] | None = None,
) -> Result:
    """Go on with a run whose processes all ended before its verdict, and return what it came to.

    folder: the run's folder, or runs/latest. The job, the clients' places and the broker are those
    that the run began with; everything that was committed on the log counts. broker: where that
    broker is now, if elsewhere. overrides: of spec.kafka.authentication. A run that is over stays
    as it is: its result is returned.

    Raises NotResumableError where the log is gone, as that of the embedded broker is, or where the
    run is still going on; otherwise see `run`.
    """
    found = find_run(Path(folder))
    record = RunRecord.read(found)
    read = load(found.job, overrides=overrides)
    job_file = replace(read, path=record.base / read.path.name)
    with ExitStack() as stack:
        stack.enter_context(_sigterm_unwinds())
        stack.enter_context(alone_in(found))
        record = RunRecord.read(found)  # whoever held the lock may have written it
        display = stack.enter_context(Progress(quiet=quiet))
        if found.result.exists() and not record.broken_off:
            if found.report.exists():
                result = Result.load(found.path)
                display.say(f"this run is over: {result.outcome}, {result.reason}")
                return result
            return _finish(job_file, found, record, display, log_level=log_level)
        address = _lasting_broker(found, record, broker)
        check_answers(address, job_file)
        _check_log_is_there(address, job_file, found, record)
        display.say(f"going on with {_as_seen_from_here(found.path)}")
        found.result.unlink(missing_ok=True)  # first: it would pass for the server's afterwards
        record = record.model_copy(update={"broker": address, "broken_off": False})
        record.write(found)
        return _go_to_the_end(
            job_file, found, record, display, log_level=log_level, on_status=on_status
        )


def _go_to_the_end(
    job_file: JobFile,
    folder: RunFolder,
    record: RunRecord,
    display: Progress,
    *,
    keep_broker: bool = False,
    log_level: str,
    on_status: Callable[[Status], None] | None,
) -> Result:
    """Run broker, server and workers until there is a verdict, then write what is left behind."""
    federation = Federation(job_file, folder, _placed(record), run=record.run, log_level=log_level)

    def tell(status: Status) -> None:
        display.update(status)
        if on_status is not None:
            on_status(status)

    def say(text: str) -> None:
        for line in text.splitlines():
            display.say(line)

    with _verdict_on_failure(job_file.job, folder), _way_to_go_on(folder, display):
        initial = federation.make_initial_weights()
        if record.broker is None:
            check_fits(job_file.job.spec, initial.stat().st_size, psutil.virtual_memory().available)
        log = folder.logs / "broker.log"
        with broker_for(record.broker, keep=keep_broker, log=log) as running:
            if running.kept is not None:
                record = record.model_copy(update={"broker": running.address})
                record.write(folder)
            try:
                federation.run(running, initial, on_status=tell, say=say)
            finally:
                federation.end()
                if running.note:
                    display.say(running.note)
    return _finish(job_file, folder, record, display, log_level=log_level)


def _finish(
    job_file: JobFile, folder: RunFolder, record: RunRecord, display: Progress, *, log_level: str
) -> Result:
    """Everything that a run leaves behind besides what its server writes."""
    (folder.path / "initial.safetensors").unlink(missing_ok=True)
    federation = Federation(job_file, folder, [], run=record.run, log_level=log_level)
    try:
        federation.save_model()
    except TaskProcessError as error:
        for line in f"model.safetensors is there, model.keras is not: {error}".splitlines():
            display.say(line)
    finally:
        federation.end()
    result = Result.load(folder.path)
    write_report(folder.path)
    _copy_output(job_file, folder)
    display.finish(result)
    display.say(f"report: {_as_seen_from_here(folder.report)}")
    return result


def _placed(record: RunRecord) -> list[Worker]:
    return [Worker(name, clients) for name, clients in record.workers.items()]


def _lasting_broker(folder: RunFolder, record: RunRecord, given: str | None) -> str:
    """Where the run's log is. Raises NotResumableError where it was in memory."""
    if record.broker is None:
        raise NotResumableError(
            f"{folder.path} cannot go on: its log was in the embedded broker, in memory, and ended "
            "with it. Run the job again; a run that is to outlive a crash of everything needs a "
            "broker that keeps its log on disk: --broker HOST:PORT of a Kafka"
        )
    return given or record.broker


def _check_log_is_there(
    address: str, job_file: JobFile, folder: RunFolder, record: RunRecord
) -> None:
    """Refuse to begin a run again that had finished rounds, on a broker that does not know it."""
    from fedlog.transport.kafka import KafkaTransport

    name = run_id(job_file.job, record.run)
    rounds = max((report.round for report in read_metrics(folder.metrics)), default=0)
    transport = KafkaTransport.of(job_file, address)
    try:
        there = transport.partitions(topic_names(job_file.job, name).journal) is not None
    finally:
        transport.close()
    if rounds and not there:
        raise NotResumableError(
            f"{folder.path} cannot go on: the broker at {address} has no topics of this run "
            f"({name}), which had finished {rounds} rounds. Give the run's own broker with --broker"
        )


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
def _way_to_go_on(folder: RunFolder, display: Progress) -> Iterator[None]:
    """Whoever breaks a run off is told how it goes on, where it can."""
    try:
        yield
    except BaseException:
        if RunRecord.read(folder).broker is not None and not folder.result.exists():
            display.say(f"to go on: fedlog run --resume {_as_seen_from_here(folder.path)}")
        raise


@contextmanager
def _verdict_on_failure(job: FederatedJob, folder: RunFolder) -> Iterator[None]:
    """A run that could not go on has a result and a report, too, unless the server wrote one."""
    try:
        yield
    except FedlogError as error:
        if not folder.result.exists():
            record = RunRecord.read(folder).model_copy(update={"broken_off": True})
            record.write(folder)
            folder.write_result(
                Result(
                    run=run_id(job, record.run),
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
