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
from dataclasses import replace
from pathlib import Path

from fedlog import exit_codes
from fedlog.job.environment import apply_environment
from fedlog.job.loading import JobFile, dump
from fedlog.server.control import ControlLog
from fedlog.server.errors import InitialModelError, ServerError, TerminatedError
from fedlog.server.global_model import GlobalModel
from fedlog.server.journal import Journal, check_same_job, read_journal
from fedlog.server.reporting import Reporter
from fedlog.server.session import ServerSession, head_every_s
from fedlog.server.sizes import check_fits_message
from fedlog.telemetry.http import StatusServer
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, write_atomically
from fedlog.transport.base import Transport
from fedlog.transport.errors import FencedError, UnknownTopicError
from fedlog.transport.topics import run_id, topic_names, topic_specs

log = logging.getLogger(__name__)

LEASES = 3
"""A fenced server takes over again when so many heads of the other one are due and none came."""
_STAND_BY_POLL_S = 0.25
_MODEL_TIMEOUT_S = 600.0
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
        self._is_named = run is not None or self._job.metadata.uid is not None
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
        """Run the job, or go on with it where another server of the run stopped, and return what
        it came to, Complete or Failed.

        Raises FencedError when another server of this run took over and ended it, TerminatedError
        after SIGTERM or SIGINT, JobError when the run was started with another job or a round's
        records would not fit into a message, and TransportError when the broker stays away.
        """
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            transport = self._given_transport
            if transport is None:
                transport = self._connect()
                stack.callback(transport.close)
            while True:
                try:
                    return self._serve(transport)
                except FencedError as error:
                    log.error("fenced: another server of %s has taken over (%s)", self._run, error)
                self._stand_by(transport)

    def _serve(self, transport: Transport) -> Result:
        """Be the run's server, from the beginning or from where its journal stands."""
        with ExitStack() as stack:
            # A server with another job must not fence the one that is at work.
            journal = self._read_journal(transport)
            # What can be wrong with the job leaves no topic behind.
            model = None
            if journal.head is None:
                if (told := self._told_before()) is not None:
                    log.info(
                        "%s is over already: %s; another run needs another --run NAME",
                        self._run,
                        told.outcome,
                    )
                    return told
                model = self._first_model()
                check_fits_message(self._job, model.size_bytes)
            self._check_asked_to_end()
            control = ControlLog(transport, self._names, self._run)
            stack.callback(control.close)
            size = None if model is None else model.size_bytes
            created = set(transport.create_topics(topic_specs(self._job, self._names, size)))
            if self._names.journal not in created:
                # Now that a predecessor is fenced, nothing comes after what is read here.
                journal = self._read_journal(transport)
                created |= self._created_before(journal)
                if journal.head is None and journal.rounds:
                    raise ServerError(
                        f"the journal of {self._run} has {len(journal.rounds)} rounds and does not "
                        "say where the run stands: somebody else has written to "
                        f"{self._names.journal}. See who may, and start another run: --run NAME"
                    )
            if journal.head is not None:
                model = GlobalModel.read(
                    transport,
                    journal.head.model,
                    journal.payload,
                    version=journal.head.version,
                    chunk_bytes=self._job.spec.communication.max_message_bytes,
                    timeout_s=_MODEL_TIMEOUT_S,
                )
            if model is None:
                raise ServerError(f"the journal of {self._run} has lost its head")
            check_fits_message(self._job, model.size_bytes)
            folder = self._folder(resumed=journal.head is not None)
            reporter = Reporter(self._job, self._run, folder)
            stack.callback(reporter.close)
            session = ServerSession(
                self._job, self._run, transport, control, created, folder, model, reporter, journal
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

    def _stand_by(self, transport: Transport) -> None:
        """Return once the server that took over has been silent for a lease.

        Raises FencedError when the run ends meanwhile: the verdict is the other one's.
        """
        lease_s = LEASES * head_every_s(self._job)
        log.info("standing by; taking over after %g s without a word from it", lease_s)
        with ExitStack() as stack:
            try:
                journal = self._read_journal(transport)
                reader = transport.reader(self._names.journal, start=journal.end, committed=True)
                stack.callback(reader.close)
                deadline = time.monotonic() + lease_s
                while time.monotonic() < deadline:
                    self._check_asked_to_end()
                    if journal.head is not None and journal.head.outcome is not None:
                        raise FencedError(
                            f"another server of {self._run} has ended the run: "
                            f"{journal.head.outcome}, {journal.head.reason}"
                        )
                    for record in reader.poll(_STAND_BY_POLL_S):
                        journal.take(record)
                        deadline = time.monotonic() + lease_s
            except UnknownTopicError as error:  # its topics are deleted
                raise FencedError(f"another server of {self._run} has ended the run") from error

    def _connect(self) -> Transport:
        from fedlog.transport.kafka import KafkaTransport

        return KafkaTransport.of(replace(self._job_file, job=self._job), self._servers)

    def _read_journal(self, transport: Transport) -> Journal:
        """The run's journal. Raises JobError where it is that of another job."""
        journal = read_journal(transport, self._names.journal, self._run)
        if journal.started is not None:
            check_same_job(journal.started, self._job)
        return journal

    def _created_before(self, journal: Journal) -> set[str]:
        """The topics that a predecessor created, as far as is known."""
        if journal.head is not None:
            return set(journal.head.created_topics)
        # It ended before it wrote their names. Those that bear the run's name are nobody else's.
        names = {spec.name for spec in topic_specs(self._job, self._names)}
        return {name for name in names if name.startswith(f"{self._run}.")}

    def _told_before(self) -> Result | None:
        """The verdict in the output folder, where it is this run's: its topics are deleted then,
        and a server that is started again, since it died right after that, must not begin anew.
        """
        output = self._output_given()
        if not self._is_named or output is None or not RunFolder(output).result.exists():
            return None
        result = Result.load(output)
        return result if result.run == self._run else None

    def _output_given(self) -> Path | None:
        if self._output is None and self._job.spec.output.path is not None:
            return self._job_file.base / self._job.spec.output.path
        return self._output

    def _folder(self, *, resumed: bool) -> RunFolder:
        output = self._output_given()
        if output is None:
            folder = RunFolder.create(Path("runs").absolute(), self._job.metadata.name)
        else:
            folder = RunFolder(output)
            folder.resume() if resumed else folder.clear()
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
