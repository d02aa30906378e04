"""The server of a job: reads events, asks the engine, does what it says."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedlog import exit_codes
from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS, apply_environment
from fedlog.job.loading import JobFile, dump
from fedlog.server.control import ControlLog
from fedlog.server.errors import InitialModelError, RunStartedError, TerminatedError
from fedlog.server.global_model import GlobalModel
from fedlog.server.reporting import Reporter
from fedlog.server.session import ServerSession
from fedlog.server.sizes import check_fits_message
from fedlog.telemetry.http import StatusServer
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, write_atomically
from fedlog.transport.base import Record, Transport
from fedlog.transport.topics import run_id, topic_names, topic_specs
from fedlog.wire import records

log = logging.getLogger(__name__)

_JOURNAL_POLL_S = 0.25
_JOURNAL_TIMEOUT_S = 5.0
_INITIAL_TIMEOUT_S = 900.0
_CHILD_POLL_S = 0.1
_CHILD_END_S = 3.0


class FederatedServer:
    """Runs one job to its end.

    job_file: the job; relative paths start at its folder. run: tells runs of one job apart (see
    `fedlog.transport.topics.run_id`). bootstrap_servers: where Kafka is, unless a transport is
    given; without it the environment (`fedlog.job.environment`) beats the job. output: folder for
    models, metrics and the result, which replace those of a former run; default:
    `spec.output.path`, else a new folder in runs/. status_port: 0 takes a free one. initial: the
    first model as safetensors; default: made by the task in a short-lived process.
    """

    def __init__(
        self,
        job_file: JobFile,
        *,
        run: str | None = None,
        bootstrap_servers: str | None = None,
        output: Path | None = None,
        status_port: int = 0,
        status_host: str = "127.0.0.1",
        status_file: Path | None = None,
        initial: Path | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._job_file = job_file
        self._job = job_file.job
        if bootstrap_servers is None:
            self._job = apply_environment(self._job)
        self._run = run_id(self._job, run)
        self._names = topic_names(self._job, self._run)
        self._servers = bootstrap_servers
        self._given_transport = transport
        self._output = output
        self._status_port, self._status_host = status_port, status_host
        self._status_file = status_file
        self._initial = initial
        self._asked_to_end: int | None = None
        self.address: str | None = None
        """Where /status is served, once `run` has started serving."""

    def stop(self) -> None:
        """End `run` within seconds, without a verdict (TerminatedError); from any thread."""
        self._asked_to_end = self._asked_to_end or exit_codes.TERMINATED

    def run(self) -> Result:
        """Run the job and return what it came to, Complete or Failed.

        Raises FencedError when another server of this run took over, TerminatedError after SIGTERM
        or SIGINT, RunStartedError when the run was started before, JobError when a round's records
        would not fit into a message, and TransportError when the broker stays away.
        """
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            transport = self._given_transport
            if transport is None:
                transport = self._connect()
                stack.callback(transport.close)
            # A server that is started by mistake must not fence the one that is at work.
            if transport.partitions(self._names.journal) is not None:
                self._refuse_second_start(transport)
            # What can be wrong with the job leaves no topic behind.
            model = self._first_model()
            check_fits_message(self._job, model.size_bytes)
            self._check_asked_to_end()
            control = ControlLog(transport, self._names, self._run)
            stack.callback(control.close)
            created = set(transport.create_topics(topic_specs(self._job, self._names)))
            if self._names.journal not in created:
                # Now that a predecessor is fenced, nothing comes after what is read here.
                self._refuse_second_start(transport)
            folder = self._folder()
            reporter = Reporter(self._job, self._run, folder)
            stack.callback(reporter.close)
            session = ServerSession(
                self._job, self._run, transport, control, created, folder, model, reporter
            )
            stack.callback(session.close)
            status = stack.enter_context(
                StatusServer(
                    self._status_port,
                    host=self._status_host,
                    status=lambda: reporter.status,
                    metrics=reporter.metrics,
                )
            )
            self.address = status.address
            if self._status_file is not None:
                write_atomically(self._status_file, status.address.encode())
            log.info("status at %s/status", status.address)

            def turn() -> None:
                status.beat()
                self._check_asked_to_end()

            return session.federate(turn)

    def _connect(self) -> Transport:
        from fedlog.transport.kafka import KafkaTransport

        given = self._servers or self._job.spec.kafka.bootstrap_servers
        servers = given or DEFAULT_BOOTSTRAP_SERVERS
        return KafkaTransport(
            servers,
            max_message_bytes=self._job.spec.communication.max_message_bytes,
            replicas=self._job.spec.kafka.topics.replicas,
        )

    def _refuse_second_start(self, transport: Transport) -> None:
        for record in self._read_journal(transport):
            found, _ = records.decode(record.value)
            if isinstance(found, records.Head) and found.run == self._run:
                raise RunStartedError(
                    f"the run {self._run} was started before (its journal names version "
                    f"{found.version}): start a new one with --run NAME, for the server and "
                    "the clients alike"
                )

    def _read_journal(self, transport: Transport) -> Iterator[Record]:
        """What is committed on the journal, to its end."""
        reader = transport.reader(self._names.journal, start=0, committed=True)
        try:
            end = reader.end_offset()
            yield from reader.poll(_JOURNAL_POLL_S)
            # The end of a transaction takes an offset that no reader gets to see: time ends this.
            deadline = time.monotonic() + _JOURNAL_TIMEOUT_S
            while reader.position < end and time.monotonic() < deadline:
                yield from reader.poll(_JOURNAL_POLL_S)
        finally:
            reader.close()

    def _folder(self) -> RunFolder:
        output = self._output
        if output is None and self._job.spec.output.path is not None:
            output = self._job_file.base / self._job.spec.output.path
        if output is None:
            folder = RunFolder.create(Path("runs").absolute(), self._job.metadata.name)
        else:
            folder = RunFolder(output)
            folder.clear()
        if folder.job.resolve() != self._job_file.path.resolve():
            folder.write_job(dump(self._job_file))
        log.info("run folder: %s", folder.path)
        return folder

    def _first_model(self) -> GlobalModel:
        if self._initial is not None:
            return GlobalModel.load(self._initial)
        with tempfile.TemporaryDirectory(prefix="fedlog-") as name:
            job, output = Path(name, "job.yaml"), Path(name, "initial.safetensors")
            job.write_text(dump(self._job_file), encoding="utf-8")
            command = [sys.executable, "-m", "fedlog.tasks.initial", str(job)]
            command += ["--base", str(self._job_file.base.absolute()), "--output", str(output)]
            log.info("making the first model")
            self._run_child(command)
            return GlobalModel.load(output)

    def _run_child(self, command: list[str]) -> None:
        """Run the process that makes the first model; it ends with this one's being asked to."""
        child = subprocess.Popen(  # noqa: S603 - our own module
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + _INITIAL_TIMEOUT_S
        try:
            while True:
                try:
                    _, errors = child.communicate(timeout=_CHILD_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    self._check_asked_to_end()
                    if time.monotonic() > deadline:
                        raise InitialModelError(
                            f"the task did not make the first model within {_INITIAL_TIMEOUT_S:g} s"
                        ) from None
        finally:
            _end_child(child)
        self._check_asked_to_end()  # Ctrl-C reaches the child, too: its end is no error then
        if child.returncode != 0:
            raise InitialModelError(
                errors.strip() or f"the first model: exit code {child.returncode}"
            )

    def _check_asked_to_end(self) -> None:
        if self._asked_to_end is not None:
            raise TerminatedError(
                "asked to end: the run has no verdict", exit_code=self._asked_to_end
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run between two steps; only a main thread may listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _frame: object) -> None:
            code = exit_codes.INTERRUPTED if number == signal.SIGINT else exit_codes.TERMINATED
            self._asked_to_end = code

        before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_child(child: subprocess.Popen[str]) -> None:
    """Whatever happened: no process is left, and its pipes are closed."""
    if child.poll() is None:
        child.terminate()
        try:
            child.communicate(timeout=_CHILD_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
