"""A process that hosts clients: one reader of control, one download of each version, one learner.

Two threads. The main one reads control, keeps time and says what the sessions want said, so that
heartbeats go on while a model trains. The other one learns: it evaluates, trains and uploads, one
piece of work after the other, in the order in which it was asked for; uploads go first, since
others wait for them. Every session is used under one lock.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from fedlog import exit_codes
from fedlog.client.session import (
    AbortTraining,
    Actions,
    ClientSession,
    End,
    Evaluate,
    Forget,
    SeekControl,
    Send,
    Train,
    Upload,
)
from fedlog.client.trainer import Trained, Trainer
from fedlog.errors import FedlogError
from fedlog.job.errors import JobError, Problem
from fedlog.job.loading import JobFile
from fedlog.job.model import EVALUATOR_GROUP, Compression, Spec
from fedlog.learning.weights import Weights, size_bytes
from fedlog.tasks.environment import limit_threads
from fedlog.tasks.errors import TaskError
from fedlog.telemetry.bursts import Bursts
from fedlog.telemetry.logs import log_fields
from fedlog.transport.base import BulkReader, Pending, Reader, Record, Transport, Writer
from fedlog.transport.bulk import download, upload
from fedlog.transport.errors import SecurityError, TransportError
from fedlog.transport.pace import WAIT_S, Pace
from fedlog.transport.patience import PATIENCE_S
from fedlog.transport.topics import run_id, topic_names
from fedlog.wire import records, tensors
from fedlog.wire.errors import WireError
from fedlog.wire.updates import encode_update

logger = logging.getLogger(__name__)

LOOK_BACK_RECORDS = 64
"""So far back on control a client looks for a stop before it joins."""
LEAST_TRANSFER_S = PATIENCE_S
"""A model or an update may take so long even where the round's deadline is shorter."""
GRACE_S = 3.0
"""What a training that is to stop may still take before the process ends without it."""
LONGEST_PAUSE_S = 0.25
"""A signal is noticed within this."""
KEEP_BYTES = 512 * 2**20
"""Encoded updates that a process keeps beside the latest one, in case they are asked for again."""
PAYLOADS_KEPT = 4


@dataclass(frozen=True)
class _Kept:
    """An update until its fate is known."""

    announcement: records.Announced
    trained: Trained


@dataclass(eq=False)
class _Client:
    session: ClientSession
    kept: _Kept | None = None

    @property
    def name(self) -> str:
        return self.session.client

    @property
    def role(self) -> str:
        return "evaluator" if self.session.is_evaluator else "client"


@dataclass(eq=False)
class _Job:
    """A piece of work for the learning thread."""

    client: _Client
    round: int
    base: str
    cancelled: bool = field(default=False, init=False)
    committing: bool = field(default=False, init=False)
    """The manifest is being sent. When that fails, nobody knows whether it is on the log: only a
    new incarnation is told, by its welcome."""


@dataclass(eq=False)
class _Learn(_Job):
    announcement: records.Announced
    test_set: Literal["HeldOut", "Clients"] | None
    trains: bool


@dataclass(eq=False)
class _Publish(_Job):
    """Upload the update that the client keeps."""


class Worker:
    """Hosts the clients of one process from joining to the end; `run` once."""

    def __init__(
        self,
        job_file: JobFile,
        clients: Sequence[str],
        *,
        run: str | None = None,
        bootstrap_servers: str | None = None,
        transport: Transport | None = None,
        threads: int | None = None,
        label: str = "",
        data_paths: Mapping[str, str] | None = None,
        server_timeout_s: float = 600.0,
    ) -> None:
        """Prepare only; nothing is read or sent before `run`.

        clients: `group/index` of each, `evaluator/0` for the evaluator. transport: instead of
        Kafka at `bootstrap_servers`. threads: upper bound for numerical libraries. data_paths:
        group -> path, instead of the job's. server_timeout_s: how long to wait for the server.
        Raises JobError for a client that the job does not have.
        """
        job = job_file.job
        _check_clients(job.spec, clients)
        self._job_file = job_file
        self._spec = job.spec
        self._run = run_id(job, run)
        self._names = topic_names(job, self._run)
        self._bootstrap_servers = bootstrap_servers
        self._given_transport = transport
        self._threads = threads
        self._data_paths = dict(data_paths or {})
        self._server_timeout_s = server_timeout_s
        self._clients = [
            _Client(
                ClientSession(
                    client,
                    secrets.token_hex(8),
                    self._run,
                    heartbeat_s=job.spec.participation.heartbeat_seconds,
                    server_timeout_s=server_timeout_s,
                    label=label,
                )
            )
            for client in clients
        ]
        self._lock = threading.RLock()
        self._queue_changed = threading.Condition(self._lock)
        self._queue: deque[_Job] = deque()
        self._running: _Job | None = None
        self._ready = False  # the task is loaded
        self._stopping = False
        self._pace = Pace(wakes=True)
        self._work_done = threading.Event()
        self._stop_asked: tuple[int, str] | None = None
        self._exit_code = exit_codes.OK
        self._seek: int | None = None
        self._payloads: dict[str, bytes] = {}  # inline models by identity, oldest first
        self._partitions: dict[str, int] = {}
        self._skipped = Bursts(logger, "control records skipped")

    def run(self) -> int:
        """Take part until the end; the exit code. Signals are handled in the main thread only."""
        with self._signals():
            try:
                transport = self._given_transport or self._connect()
                return self._take_part(transport)
            except SecurityError as error:
                logger.error("%s", error)
                return error.exit_code
            except TransportError as error:
                logger.error("%s", error)
                return exit_codes.UNAVAILABLE

    def stop(self, exit_code: int, reason: str) -> None:
        """Make `run` say `left` and return this code within seconds; from any thread or signal."""
        self._stop_asked = self._stop_asked or (exit_code, reason)

    # ---- the main thread -------------------------------------------------------------------------

    def _connect(self) -> Transport:
        from fedlog.transport.kafka import KafkaTransport

        return KafkaTransport.of(self._job_file, self._bootstrap_servers)

    def _take_part(self, transport: Transport) -> int:
        self._transport = transport
        with ExitStack() as opened:
            if self._given_transport is None:
                opened.callback(transport.close)
            learning = threading.Thread(
                target=self._learn_until_stopped, name="learning", daemon=True
            )
            learning.start()  # the task loads while the client waits for the server
            opened.callback(self._stop_learning, learning)
            if self._wait_for_topics():
                self._writer: Writer = transport.writer()
                # The learning thread is stopped first: it writes, too.
                opened.callback(self._writer.close)
                opened.callback(self._stop_learning, learning)
                self._follow_control()
                self._writer.flush(GRACE_S)
        return self._exit_code

    def _wait_for_topics(self) -> bool:
        """Whether the server's topics have come; they are never created here."""
        give_up_at = time.monotonic() + self._server_timeout_s
        waiting = False
        for topic in (self._names.control, self._names.events):
            while self._transport.partitions(topic, LONGEST_PAUSE_S) is None:
                if self._stop_asked is not None:
                    self._exit_code, reason = self._stop_asked
                    logger.log(_level(self._exit_code), "%s", reason)
                    return False
                if time.monotonic() >= give_up_at:
                    logger.error(
                        "no server for %.0f s: topic %s does not exist; see whether the server "
                        "runs and uses the same job, run and broker",
                        self._server_timeout_s,
                        topic,
                    )
                    self._exit_code = exit_codes.UNAVAILABLE
                    return False
                if not waiting:
                    waiting = True
                    logger.info("waiting for the server of %s", self._run)
        return True

    def _follow_control(self) -> None:
        wakes = self._transport.wakes_readers
        self._pace = Pace(wakes=wakes)
        reader = self._transport.reader(self._names.control, committed=True, wait_s=WAIT_S[wakes])
        try:
            end = reader.end_offset()
            reader.seek(max(0, end - LOOK_BACK_RECORDS))
            while reader.position < end and (found := reader.poll(LONGEST_PAUSE_S)):
                self._receive(found, reader)
            with self._lock:
                for client in self._living():
                    self._carry_out(client, client.session.start(time.monotonic()))
            while self._living():
                self._keep_time()
                with self._lock:
                    busy = self._running is not None or bool(self._queue)
                    nap_s = self._pace.nap_s(time.monotonic(), busy=busy)
                if nap_s > 0 and self._work_done.wait(min(nap_s, self._patience_s())):
                    self._work_done.clear()
                    continue  # from now on an answer is awaited
                found = reader.poll(min(self._patience_s(), WAIT_S[wakes]))
                if found:
                    with self._lock:
                        self._pace.answered(time.monotonic())
                self._receive(found, reader)
        finally:
            reader.close()

    def _living(self) -> list[_Client]:
        return [client for client in self._clients if not client.session.ended]

    def _keep_time(self) -> None:
        with self._lock:
            if self._stop_asked is not None:
                for client in self._living():
                    self._carry_out(client, client.session.leave(*self._stop_asked))
            now = time.monotonic()
            for client in self._living():
                self._carry_out(client, client.session.tick(now))

    def _patience_s(self) -> float:
        """How long nothing has to be done."""
        due = min((client.session.wake_at for client in self._living()), default=0.0)
        return min(max(0.0, due - time.monotonic()), LONGEST_PAUSE_S)

    def _receive(self, found: Sequence[Record], reader: Reader) -> None:
        for record in found:
            decoded = self._decode(record)
            if decoded is None:
                continue
            said, payload = decoded
            with self._lock:
                if isinstance(said, records.Announced):
                    self._payloads.pop(said.base, None)
                    self._payloads[said.base] = payload
                    while len(self._payloads) > PAYLOADS_KEPT:
                        del self._payloads[next(iter(self._payloads))]
                now = time.monotonic()
                for client in self._living():
                    self._carry_out(client, client.session.receive(said, record.offset, now))
                seek, self._seek = self._seek, None
            if seek is not None:
                reader.seek(seek)
                return

    def _decode(self, record: Record) -> tuple[records.ControlRecord, bytes] | None:
        try:
            said, payload = records.decode(record.value)
        except WireError as error:
            self._skipped.say(
                error.reason, "control record %d is skipped: %s", record.offset, error
            )
            return None
        if not isinstance(said, records.ControlRecord):
            self._skipped.say(
                "misplaced", "control record %d is skipped: a %s", record.offset, said.type
            )
            return None
        return (said, bytes(payload)) if said.run == self._run else None

    def _carry_out(self, client: _Client, actions: Actions) -> None:
        """Do what a session wants; under the lock, from either thread."""
        learn: _Learn | None = None
        for action in actions:
            match action:
                case Send(record):
                    self._send(record)
                case SeekControl(offset):
                    self._seek = offset if self._seek is None else min(self._seek, offset)
                case Evaluate(test_set=test_set, announcement=work):
                    learn = _Learn(client, work.round, work.base, work, test_set, trains=False)
                case Train(work):
                    if learn is None or learn.announcement is not work:
                        learn = _Learn(client, work.round, work.base, work, None, trains=True)
                    learn.trains = True
                case AbortTraining(round_, base):
                    self._cancel(client, (round_, base))
                case Upload(round_, base):
                    self._queue.appendleft(_Publish(client, round_, base))
                case Forget():
                    client.kept = None
                case End(exit_code, reason):
                    self._end(client, exit_code, reason)
        if learn is not None:
            self._queue.append(learn)
        self._queue_changed.notify()

    def _send(self, record: records.EventRecord) -> Pending:
        return self._writer.send(self._names.events, records.encode(record))

    def _cancel(self, client: _Client, work: tuple[int, str] | None) -> None:
        """Cancel this work of the client; None: all of it. What has only to be measured goes on."""
        for job in [*self._queue, self._running]:
            if job is None or job.client is not client:
                continue
            if work is None or (
                (job.round, job.base) == work and not (isinstance(job, _Learn) and not job.trains)
            ):
                job.cancelled = True

    def _end(self, client: _Client, exit_code: int, reason: str) -> None:
        self._cancel(client, None)
        client.kept = None
        if self._exit_code == exit_codes.OK:
            self._exit_code = exit_code
        with log_fields(role=client.role, client=client.name):
            logger.log(_level(exit_code), "%s", reason)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            name = signal.Signals(number).name
            interrupted = number == signal.SIGINT
            self.stop(exit_codes.INTERRUPTED if interrupted else exit_codes.TERMINATED, name)

        before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    # ---- the learning thread ---------------------------------------------------------------------

    def _stop_learning(self, learning: threading.Thread) -> None:
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            for client in self._clients:
                self._cancel(client, None)
            self._queue_changed.notify()
            grace_s = GRACE_S if self._ready else 0.1  # libraries load for long, to no use now
        learning.join(grace_s)
        if learning.is_alive() and self._ready:
            logger.warning("the training did not stop within %.0f s and is given up", GRACE_S)

    def _learn_until_stopped(self) -> None:
        try:
            if self._threads is not None:
                limit_threads(self._threads)
            self._trainer = Trainer(
                self._job_file, self._data_paths, [client.name for client in self._clients]
            )
            if self._stopping:
                return
            self._versions = _Versions(self._transport, self._trainer, self._chunk_bytes)
            self._ready = True
            try:
                while (job := self._next_job()) is not None:
                    with log_fields(role=job.client.role, client=job.client.name, round=job.round):
                        self._do(job)
            finally:
                self._versions.close()
        except TaskError as error:
            self.stop(exit_codes.TASK, str(error))
        except SecurityError as error:
            self.stop(error.exit_code, str(error))
        except TransportError as error:
            self.stop(exit_codes.UNAVAILABLE, str(error))
        except Exception as error:
            logger.exception("the learning thread ends")
            self.stop(exit_codes.FAILED, f"{type(error).__name__}: {error}")

    @property
    def _chunk_bytes(self) -> int:
        return self._spec.communication.max_message_bytes

    def _next_job(self) -> _Job | None:
        with self._lock:
            worked = self._running is not None
            self._running = None
            while not self._stopping:
                while self._queue:
                    job = self._queue.popleft()
                    if not job.cancelled:
                        self._running = job
                        return job
                if worked:
                    self._pace.await_answer(time.monotonic())
                    self._work_done.set()
                    worked = False
                self._queue_changed.wait()
        return None

    def _do(self, job: _Job) -> None:
        """One piece of work. What goes wrong in it is reported and ends at most its client.

        Raises TransportError where the log cannot be reached.
        """
        try:
            if isinstance(job, _Learn):
                self._learn(job)
            else:
                self._publish(job)
        except TaskError as error:
            self._failed(job, str(error), permanent=True)
        except FedlogError as error:
            if isinstance(error, SecurityError):
                raise  # no other client of this process is let in, either
            if isinstance(error, TransportError) and (error.retriable or job.committing):
                raise
            self._failed(job, str(error))
        except (Exception, SystemExit) as error:
            if not job.cancelled:
                logger.exception("the task failed")
            self._failed(job, f"{type(error).__name__}: {error}")

    def _failed(self, job: _Job, reason: str, *, permanent: bool = False) -> None:
        if job.cancelled:
            return
        logger.warning("round %d: %s", job.round, reason)
        with self._lock:
            session = job.client.session
            self._carry_out(
                job.client,
                session.failed(job.round, job.base, reason, time.monotonic(), permanent=permanent),
            )

    def _learn(self, job: _Learn) -> None:
        announcement = job.announcement
        with self._lock:
            payload = self._payloads.get(job.base, b"")
        weights = self._versions.load(announcement, payload)
        self._trainer.check(job.client.name, weights)
        written: Pending | None = None
        if job.test_set is not None:
            try:
                written = self._evaluate(job, job.test_set, weights)
            except (Exception, SystemExit):
                if not job.trains or job.cancelled:
                    raise
                logger.exception("the evaluation failed; the training goes on")
        if not job.trains or announcement.training is None:
            if written is None:
                raise WorkImpossibleError(f"{job.client.name} has no test data to evaluate on")
            written.result(LEAST_TRANSFER_S)
            with self._lock:
                session = job.client.session
                self._carry_out(
                    job.client, session.evaluated(job.round, job.base, time.monotonic())
                )
            return
        trained = self._trainer.train(
            job.client.name,
            job.round,
            announcement.training,
            job.base,
            weights,
            evaluate=announcement.evaluate,
            should_stop=lambda: job.cancelled,
        )
        if trained is None or job.cancelled:
            return
        logger.info(
            "trained round %d on %d examples in %.2f s",
            job.round,
            trained.examples,
            trained.seconds,
        )
        with self._lock:
            session = job.client.session
            actions = session.trained(job.round, job.base, time.monotonic())
            kept = _Kept(announcement, trained)
            # A Forget among the actions is for the update that this one replaces.
            self._carry_out(job.client, actions)
            if any(isinstance(action, Upload) for action in actions):
                job.client.kept = kept

    def _evaluate(
        self, job: _Learn, test_set: Literal["HeldOut", "Clients"], weights: Weights
    ) -> Pending | None:
        version = job.announcement.version
        result = self._trainer.evaluate(job.client.name, test_set, job.base, weights)
        if result is None:
            return None
        session = job.client.session
        return self._send(
            records.Evaluated(
                run=self._run,
                client=session.client,
                incarnation=session.incarnation,
                version=version,
                digest=job.base,
                test_set=test_set,
                examples=result.examples,
                metrics=result.metrics,
            )
        )

    def _publish(self, job: _Job) -> None:
        session = job.client.session
        kept = job.client.kept
        if kept is None or (kept.announcement.round, kept.announcement.base) != (
            job.round,
            job.base,
        ):
            raise WorkImpossibleError("the update is no longer in memory")
        announcement, trained = kept.announcement, kept.trained
        topic = announcement.updates_topic
        partition = self._trainer.number(session.client) % self._partition_count(topic)
        timeout_s = max(announcement.deadline_s, LEAST_TRANSFER_S)

        def uploading(first_offset: int) -> None:
            self._send(
                records.Uploading(
                    run=self._run,
                    client=session.client,
                    incarnation=session.incarnation,
                    round=job.round,
                    base=job.base,
                    topic=topic,
                    partition=partition,
                    first_offset=first_offset,
                )
            )

        manifest, inline = upload(
            self._writer,
            encode_update(trained.delta, trained.views),
            topic=topic,
            partition=partition,
            chunk_bytes=self._chunk_bytes,
            codec="zstd" if self._spec.communication.compression is Compression.ZSTD else "none",
            on_first_chunk=uploading,
            timeout_s=timeout_s,
        )
        if job.cancelled:
            return
        updated = records.Updated(
            run=self._run,
            client=session.client,
            incarnation=session.incarnation,
            round=job.round,
            base=job.base,
            examples=trained.examples,
            metrics=dict(trained.metrics),
            seconds=trained.seconds,
            bulk=manifest,
        )
        frame = records.encode(updated, inline)
        job.committing = True
        offset = self._writer.send(self._names.events, frame).result(timeout_s)
        with self._lock:
            self._bound_memory(job.client)
            self._carry_out(
                job.client, session.uploaded(job.round, job.base, offset, time.monotonic())
            )

    def _bound_memory(self, latest: _Client) -> None:
        """Drop kept updates of other clients beyond what a process may keep."""
        kept = 0
        for client in self._clients:
            if client is latest or client.kept is None:
                continue
            kept += size_bytes(client.kept.trained.delta)
            if kept > KEEP_BYTES:
                client.kept = None

    def _partition_count(self, topic: str) -> int:
        if topic not in self._partitions:
            count = self._transport.partitions(topic, LEAST_TRANSFER_S)
            if count is None:
                raise WorkImpossibleError(f"the topic {topic} for updates does not exist")
            for older in list(self._partitions):  # generations: only the newest is written to
                self._writer.forget(older)
                del self._partitions[older]
            self._partitions[topic] = count
        return self._partitions[topic]


class WorkImpossibleError(FedlogError):
    """A piece of work that this client cannot do; it is reported and the client stays."""


def _check_clients(spec: Spec, clients: Sequence[str]) -> None:
    known = set(spec.client_ids())
    if spec.evaluation.held_out is not None:
        known.add(f"{EVALUATOR_GROUP}/0")
    groups = ", ".join(
        f"{group.name}/0" + (f" to /{group.replicas - 1}" if group.replicas > 1 else "")
        for group in spec.clients
    )
    problems = [
        Problem("spec.clients", f"no client {client}", groups, source="the client's identity")
        for client in clients
        if client not in known
    ]
    if problems:
        raise JobError(problems)


def _level(exit_code: int) -> int:
    asked_for = exit_code in (exit_codes.OK, exit_codes.INTERRUPTED, exit_codes.TERMINATED)
    return logging.INFO if asked_for else logging.ERROR


class _Versions:
    """The received model: each version is downloaded and decoded once per process.

    One buffer serves all versions, so the weights of one are valid until the next is loaded.
    """

    def __init__(self, transport: Transport, trainer: Trainer, chunk_bytes: int) -> None:
        self._limits = trainer.limits
        self._reader: BulkReader = transport.bulk_reader(chunk_bytes)
        self._buffer: bytearray | None = None
        self._base = ""
        self._weights: Weights = {}

    def load(self, announcement: records.Announced, inline: bytes) -> Weights:
        """Read-only weights of the announced version. Raises WireError, TransportError."""
        if announcement.base == self._base:
            return self._weights
        manifest = announcement.model
        if manifest.raw_digest != announcement.base:
            raise WireError("the announced model is not the version that it claims to be")
        self._base, self._weights = "", {}
        payload = download(
            self._reader,
            manifest,
            inline,
            limits=self._limits,
            into=self._buffer,
            timeout_s=max(announcement.deadline_s, LEAST_TRANSFER_S),
        )
        if isinstance(payload.obj, bytearray):  # the one that was given, or a larger one
            self._buffer = payload.obj
        self._weights = tensors.decode(payload, self._limits)
        self._base = announcement.base
        return self._weights

    def close(self) -> None:
        self._reader.close()
