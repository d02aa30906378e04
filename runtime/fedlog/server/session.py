"""One run, from its first word to its last: events in, the engine's actions out."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fedlog.job.model import Compression, DeletionPolicy, FederatedJob, LateUpdates, Retain
from fedlog.job.schedule import learning_rate
from fedlog.learning.errors import LearningError
from fedlog.learning.strategies import Aggregation, make_strategy
from fedlog.learning.weights import Update
from fedlog.rounds import actions as do
from fedlog.rounds import events as happened
from fedlog.rounds.config import RoundsConfig
from fedlog.rounds.engine import LATENESS_ROUNDS, Engine
from fedlog.rounds.standing import OpenWork
from fedlog.server.control import ControlLog
from fedlog.server.errors import TerminatedError
from fedlog.server.folding import Folder
from fedlog.server.global_model import GlobalModel
from fedlog.server.intake import Intake
from fedlog.server.journal import Journal, judged, member_of, rows, standing, work_record
from fedlog.server.reading import EndWatch
from fedlog.server.reporting import Reporter, UpdateFacts, journaled
from fedlog.server.retention import BulkTopic, SmallTopic, keep_from
from fedlog.server.sizes import CLIENTS_PER_WELCOME, inline_model_bytes
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder
from fedlog.telemetry.status import RoundReport
from fedlog.transport.archive import export_log
from fedlog.transport.base import Bytes, Record, Transport
from fedlog.transport.bulk import upload
from fedlog.transport.errors import TransportError
from fedlog.transport.pace import WAIT_S, Pace
from fedlog.transport.topics import topic_names, topic_specs
from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.limits import Limits

log = logging.getLogger(__name__)

FAREWELL_S = 10.0
"""How long the server stays after its last word, so that clients can read it."""
_POLL_S = 0.25
_POLL_WHILE_FOLDING_S = 0.005
_UPLOAD_TIMEOUT_S = 600.0
_STATUS_EVERY_S = 0.2
_HEAD_EVERY_S = 5.0
_LOOK_BACK_RECORDS = 64
"""So many records of control below the current work are kept: clients look for a stop there."""


class ServerSession:
    """Owns what a run needs besides the log: engine, model, running sum."""

    def __init__(
        self,
        job: FederatedJob,
        run: str,
        transport: Transport,
        control: ControlLog,
        created: set[str],
        folder: RunFolder,
        model: GlobalModel,
        reporter: Reporter,
        journal: Journal,
    ) -> None:
        """created: the topics that this run created; it may delete those, and no others. journal:
        what a predecessor left; `model` is the version that its head names. Empty for a new run.
        """
        self._job, self._run = job, run
        self._transport, self._control = transport, control
        self._created, self._folder = created, folder
        self._model, self._reporter = model, reporter
        self._names = topic_names(job, run)
        self._writer = transport.writer()
        wakes = transport.wakes_readers
        self._pace = Pace(wakes=wakes)
        self._wait_s = WAIT_S[wakes]
        self._events = transport.reader(
            self._names.events, start=0, dense=True, wait_s=WAIT_S[wakes]
        )
        self._end_watch = EndWatch(self._events.end_offset)
        self._intake = Intake(run, reporter.refusals)
        specs = {spec.name: spec for spec in topic_specs(job, self._names)}
        self._models, self._updates = (
            BulkTopic(transport, specs[name], created)
            for name in (self._names.model, self._names.updates)
        )
        self._small = {
            name: SmallTopic(transport, name, created)
            for name in (self._names.events, self._names.control)
        }
        self._strategy = make_strategy(job.spec.strategy, job.spec.weight_adaptation)
        self._strategy_state = self._strategy.init(model.weights)
        self._aggregation: Aggregation | None = None
        self._chunk_bytes = job.spec.communication.max_message_bytes
        self._inline_bytes = inline_model_bytes(job, model.size_bytes)
        self._folder_of_updates = Folder(
            transport, self._fold, Limits.for_model(model.size_bytes), self._chunk_bytes
        )
        self._folding_s = 0.0
        self._manifest: BulkManifest
        self._inline: Bytes = b""
        self._welcomes: dict[str, do.WelcomeClient] = {}
        self._newly_joined: set[str] = set()
        self._announced: tuple[int, str] | None = None
        self._finish: do.Finish | None = None
        self._next_status = 0.0
        self._processed = 0
        """`events` below this has been handed to the engine."""
        self._figures: dict[Literal["HeldOut", "Clients"], records.VersionMeasured] = {}
        self._next_head = 0.0
        config, now = RoundsConfig.of(job), time.monotonic()
        self._epoch = 1
        self._resumed = journal.head is not None
        if journal.head is None:
            self._engine = Engine(config, digest=model.digest, now=now)
        else:
            self._epoch = journal.head.epoch + 1
            self._engine = Engine.resume(config, standing(journal, config.round_timeout_s), now)
            self._take_over(journal, journal.head)
        reporter.update_status(self._engine, now)

    # ---- the main path --------------------------------------------------------------------------

    def federate(self, turn: Callable[[], None]) -> Result:
        """Run to the end. `turn` is called a few times a second and may raise."""
        if self._resumed:
            self._resume(turn)
        else:
            self._publish_model()
            self._head = self._head_now()
            self._control.say([], [self._started(), (self._head, self._inline)])
        while self._finish is None:
            turn()
            self._read_events()
            self._update_status()
        return self._end(self._finish, turn)

    def _read_events(self) -> None:
        folding = self._folder_of_updates.in_flight > 0
        if not folding:
            time.sleep(self._pace.nap_s(time.monotonic()))
        batch = self._events.poll(_POLL_WHILE_FOLDING_S if folding else self._wait_s)
        if batch:
            self._pace.answered(time.monotonic())
        self._take(batch)
        for result in self._folder_of_updates.results():
            self._step(result)
        position, now = self._events.position, time.monotonic()
        at_end = self._engine.membership.live_count > 0 and self._end_watch.at_end(position, now)
        self._step(happened.EventsRead(position, at_end))
        self._send_welcomes()

    def _take(self, batch: Sequence[Record]) -> None:
        for record in batch:
            event = self._intake.take(record)
            self._processed = record.offset + 1
            if event is not None:
                self._step(event)

    # ---- taking over ----------------------------------------------------------------------------

    def _take_over(self, journal: Journal, head: records.Head) -> None:
        """Everything but the engine is as the predecessor's was when it wrote its last head."""
        self._head = head
        self._manifest, self._inline = head.model, journal.payload
        self._models.resume(head.version)
        self._updates.resume(head.version)
        self._models.holds(head.version, head.model)
        self._processed = head.events_offset
        oldest = min([head.events_offset, *(offset for _, offset, _, _ in head.late)])
        self._events.seek(oldest)
        if head.work is not None:
            self._announced = (head.work.round, head.digest)
        self._reporter.restore(journal, self._epoch)

    def _resume(self, turn: Callable[[], None]) -> None:
        """Publish the standing announcement again, then read what came since; answer after that.

        Whoever joins now is told what counts only once all that is on the log is known.
        """
        log.info(
            "going on with %s at version %d, as server number %d",
            self._run,
            self._model.version,
            self._epoch,
        )
        every = self._job.spec.output.checkpoint_every
        if every is not None and self._model.version and self._model.version % every == 0:
            self._model.save(self._folder.checkpoint(self._model.version))
        if self._head.outcome is not None:
            self._finish = do.Finish(self._head.outcome, self._head.cause, self._head.reason)
            return
        work = self._engine.open_work(time.monotonic())
        told = [] if work is None else [self._announcement(work.announce)]
        self._control.say(told, [self._head_again()], new_work=work is not None)
        self._pace.await_answer(time.monotonic())
        end = self._events.end_offset()
        while self._events.position < end and self._finish is None:
            turn()
            found = self._events.poll(self._wait_s)
            waiting = {update.offset for update in self._engine.late.values()}
            for record in found:
                if record.offset >= self._head.events_offset:
                    break
                if record.offset in waiting:
                    self._intake.take(record)
            self._take([r for r in found if r.offset >= self._head.events_offset])
            for result in self._folder_of_updates.results():
                self._step(result)

    def _step(self, event: happened.Event) -> None:
        """Take one event and everything that follows from it."""
        waiting: deque[happened.Event] = deque([event])
        while waiting:
            event = waiting.popleft()
            if isinstance(event, happened.UpdateFolded | happened.UpdateRefused):
                self._intake.folded(event.offset)
            for action in self._engine.step(event, time.monotonic()):
                if isinstance(action, do.Refuse):
                    self._refuse(action, event)
                elif (answer := self._do(action)) is not None:
                    waiting.append(answer)

    def _refuse(self, refuse: do.Refuse, event: happened.Event) -> None:
        """Count what is refused: updates apart from other records, and each of them once."""
        self._intake.refused(refuse.client, refuse.reason, refuse.offset)
        word = records.reason_word(refuse.reason)
        if refuse.offset is None:
            self._intake.refusals[word] += 1
            return
        self._intake.drop(refuse.offset)
        if not isinstance(event, happened.UpdateRefused):  # those are in CommitRound.refused
            self._reporter.refused_updates[word] += 1

    def _do(self, action: do.Action) -> happened.Event | None:
        match action:
            case do.WelcomeClient():
                self._welcomes[action.client] = action
                if action.fresh:
                    self._newly_joined.add(action.client)
            case do.Announce():
                self._announce(action)
            case do.FoldUpdate():
                return self._fold_update(action)
            case do.TakeCut():
                return happened.CutTaken(self._events.end_offset())
            case do.CommitRound():
                try:
                    return self._commit(action)
                except LearningError as error:
                    return happened.Aborted(str(error))
            case do.Measured():
                self._measured(action)
            case do.Notice():
                log.log(logging.getLevelNamesMapping()[action.level.upper()], action.message)
                self._reporter.message = action.message
            case do.Finish():
                self._finish = action
        return None

    # ---- what is told ---------------------------------------------------------------------------

    def _send_welcomes(self) -> None:
        if not self._welcomes:
            return
        welcomes, self._welcomes = list(self._welcomes.items()), {}
        members = self._engine.membership.members
        joined = [
            (member_of(self._run, client, members[client].joinings), b"")
            for client in sorted(self._newly_joined)
        ]
        self._newly_joined.clear()
        told: list[tuple[records.ControlRecord, Bytes]] = []
        for first in range(0, len(welcomes), CLIENTS_PER_WELCOME):
            some = dict(welcomes[first : first + CLIENTS_PER_WELCOME])
            record = records.Welcome(
                run=self._run,
                epoch=self._epoch,
                clients={client: w.incarnation for client, w in some.items()},
                committed={c: w.committed for c, w in some.items() if w.committed is not None},
                announcement=self._control.work_offset,
            )
            told.append((record, b""))
        self._control.say(told, joined)

    def _announcement(self, announce: do.Announce) -> tuple[records.Announced, Bytes]:
        """`announce` on the current version as a record with its payload."""
        spec = self._job.spec
        training = None
        if announce.training:
            training = records.Training(
                local_epochs=spec.training.local_epochs,
                batch_size=spec.training.batch_size,
                learning_rate=learning_rate(spec.training, announce.round - 1, spec.rounds),
            )
        record = records.Announced(
            run=self._run,
            epoch=self._epoch,
            round=announce.round,
            version=announce.version,
            base=self._model.digest,
            model=self._manifest,
            cohort=announce.cohort,
            training=training,
            evaluate=announce.evaluate,
            evaluator=announce.evaluator,
            keep_training=spec.participation.late_updates is LateUpdates.FOLD_NEXT,
            deadline_s=announce.deadline_s,
            updates_topic=self._updates.current,
        )
        return record, self._inline

    def _announce(self, announce: do.Announce) -> None:
        again = announce.training and self._announced == (announce.round, self._model.digest)
        self._announced = (announce.round, self._model.digest)
        if not again:
            self._reporter.round_opened()
        self._control.say([self._announcement(announce)], [self._head_again()], new_work=not again)
        self._pace.await_answer(time.monotonic())
        what = "training" if announce.training else "evaluation"
        log.info("round %d: %s asked of %d clients", announce.round, what, len(announce.cohort))

    # ---- what is journaled ----------------------------------------------------------------------

    def _started(self) -> tuple[records.Started, Bytes]:
        job = self._job.model_dump_json(by_alias=True, exclude_defaults=True)
        record = records.Started(
            run=self._run,
            digest=self._model.digest,
            model=self._manifest,
            job=job if len(job) <= records.MAX_JOB_CHARACTERS else "",
        )
        return record, self._inline

    def _head_now(self) -> records.Head:
        """The head of the version that has just been made."""
        return records.Head(
            run=self._run,
            epoch=self._epoch,
            version=self._model.version,
            digest=self._model.digest,
            model=self._manifest,
            events_offset=self._processed,
            created_topics=tuple(sorted(self._created)),
            late=rows(self._engine.late.values()),
            finishing=self._engine.finishing(),
            judged=judged(self._engine),
        )

    def _head_again(self, **changes: Any) -> tuple[records.Head, Bytes]:
        """The version's head, with what is asked now and what time is left."""
        now = time.monotonic()
        return self._head_with(
            self._engine.open_work(now), self._engine.deadline() - now, **changes
        )

    def _head_with(
        self, work: OpenWork | None, left_s: float, **changes: Any
    ) -> tuple[records.Head, Bytes]:
        now = time.monotonic()
        self._next_head = now + head_every_s(self._job)
        active_s = self._engine.active_deadline() - now
        self._head = self._head.model_copy(
            update={
                "epoch": self._epoch,
                "created_topics": tuple(sorted(self._created)),
                "work": None if work is None else work_record(work),
                "deadline_s": max(0.0, left_s) if math.isfinite(left_s) else None,
                "active_s": max(0.0, active_s) if math.isfinite(active_s) else None,
                "stop_reason": self._engine.stop_reason[:2000],
                **changes,
            }
        )
        return self._head, self._inline

    # ---- a round --------------------------------------------------------------------------------

    def _fold_update(self, update: do.FoldUpdate) -> happened.Event | None:
        found = self._intake.manifest(update.offset)
        if found is None:
            reason = f"missing: events has no manifest at {update.offset} any more"
            return happened.UpdateRefused(update.offset, reason, missing=True)
        manifest, payload = found
        if not self._updates.takes(manifest.bulk):
            where = f"{manifest.bulk.topic}/{manifest.bulk.partition}"
            return happened.UpdateRefused(
                update.offset, f"misplaced-bulk: {where} is not where updates go"
            )
        return self._folder_of_updates.submit(update, manifest, payload)

    def _fold(self, update: Update) -> None:
        if self._aggregation is None:
            self._aggregation = self._strategy.begin(self._model.weights, self._strategy_state)
        self._aggregation.fold(update)

    def _commit(self, commit: do.CommitRound) -> happened.RoundCommitted:
        """Make the version, write it, journal it; then tell everybody."""
        base = self._model.digest
        aggregation = self._aggregation
        if aggregation is None:
            raise RuntimeError("a round without an update cannot be committed")
        self._aggregation = None
        adapted = aggregation.adapted
        self._strategy_state = aggregation.close_into(self._model.weights)
        del aggregation
        self._model.advance()
        facts = self._facts(commit)
        for fact in facts:
            self._updates.holds(commit.round, fact.bulk)
        # A new generation must be there before the announcement that names it.
        self._updates.begin_after(commit.round)
        model_topic = self._models.current
        self._models.begin_after(commit.round - 1)
        if self._models.current != model_topic:
            self._writer.forget(model_topic)
        self._publish_model()

        following, work_before = commit.following, self._control.work_offset
        told: list[tuple[records.ControlRecord, Bytes]] = [(self._closed(commit), b"")]
        if following is not None:
            told.append(self._announcement(following))
            self._announced = (following.round, self._model.digest)
        report = self._report(commit, facts, adapted)
        self._head = self._head_now()
        work = None if following is None else self._engine.work_of(following)
        left_s = math.inf if following is None else following.deadline_s
        self._control.say(
            told,
            [(self._committed(commit, base, report), b""), self._head_with(work, left_s)],
            new_work=following is not None,
        )
        self._figures.clear()

        self._pace.await_answer(time.monotonic())
        self._let_go(commit.round, work_before)
        self._reporter.committed(report, below_quorum=commit.below_quorum)
        every = self._job.spec.output.checkpoint_every
        if every is not None and commit.round % every == 0:
            self._model.save(self._folder.checkpoint(commit.round))
        log.info("round %d committed: %d updates", commit.round, len(commit.accepted))
        return happened.RoundCommitted(commit.round, self._model.digest)

    def _report(
        self, commit: do.CommitRound, facts: Sequence[UpdateFacts], adapted: Mapping[str, int]
    ) -> RoundReport:
        folding_s = self._folder_of_updates.seconds - self._folding_s
        self._folding_s = self._folder_of_updates.seconds
        spec = self._job.spec
        report = self._reporter.report_of(
            commit,
            self._model.digest,
            facts,
            refused_records=self._intake.refusals,
            model=self._manifest,
            learning_rate=learning_rate(spec.training, commit.round - 1, spec.rounds),
            aggregation_s=folding_s,
            adapted=adapted,
        )
        self._intake.refusals.clear()
        return report

    def _facts(self, commit: do.CommitRound) -> list[UpdateFacts]:
        facts = []
        for update in commit.accepted:
            found = self._intake.manifest(update.offset)
            if found is None:
                raise RuntimeError(f"the manifest at {update.offset} was folded, and is not held")
            manifest, _ = found
            facts.append(UpdateFacts(manifest.bulk, manifest.metrics, update.examples))
        self._intake.keep_only({update.offset for update in self._engine.late.values()})
        return facts

    def _closed(self, commit: do.CommitRound) -> records.Closed:
        return records.Closed(
            run=self._run,
            epoch=self._epoch,
            round=commit.round,
            version=commit.round,
            digest=self._model.digest,
            accepted={update.client: update.offset for update in commit.accepted},
            refused=_words(commit.refused),
            reupload=commit.reupload,
        )

    def _committed(
        self, commit: do.CommitRound, base: str, report: RoundReport
    ) -> records.Committed:
        return records.Committed(
            run=self._run,
            epoch=self._epoch,
            round=commit.round,
            base=base,
            digest=self._model.digest,
            accepted=rows(commit.accepted),
            refused=_words(commit.refused),
            unanswered=commit.unanswered,
            measured=dict(self._figures),
            report=journaled(report),
        )

    def _publish_model(self) -> None:
        codec = self._job.spec.communication.compression
        self._manifest, self._inline = upload(
            self._writer,
            [self._model.payload],
            topic=self._models.current,
            partition=0,
            chunk_bytes=self._chunk_bytes,
            codec="zstd" if codec is Compression.ZSTD else "none",
            inline_bytes=self._inline_bytes,
            raw_digest=self._model.digest,
            timeout_s=_UPLOAD_TIMEOUT_S,
        )
        self._models.holds(self._model.version, self._manifest)
        self._reporter.published(self._model.version, self._model.digest, self._manifest)

    def _let_go(self, committed: int, work_before: int | None) -> None:
        """Delete what the journal has passed; work_before: offset of the round before's work."""
        if self._job.spec.kafka.topics.retain is Retain.ALL:
            return
        members = self._engine.membership.members.values()
        oldest = keep_from(
            committed,
            finishing=[m.finishing for m in members if m.finishing is not None],
            late=[update.round for update in self._engine.late.values()],
            lateness=LATENESS_ROUNDS,
        )
        self._updates.let_go(oldest)
        self._models.let_go(committed - 1)
        self._small[self._names.events].let_go(self._intake.oldest(self._head.events_offset))
        if work_before is not None:
            self._small[self._names.control].let_go(work_before - _LOOK_BACK_RECORDS)

    def _measured(self, measured: do.Measured) -> None:
        kept_as = None
        if measured.best and self._job.spec.output.keep_best:
            path = self._folder.best_model
            self._model.save(path)
            kept_as = str(path.relative_to(self._folder.path))
        figures = measured.figures
        self._figures[measured.test_set.value] = records.VersionMeasured(
            clients=figures.clients, examples=figures.examples, metrics=dict(figures.metrics)
        )
        self._reporter.measured(measured, kept_as=kept_as)
        named = ", ".join(f"{k} {v:.4g}" for k, v in sorted(measured.figures.metrics.items()))
        log.info("version %d on %s: %s", measured.version, measured.test_set.value, named)

    def _update_status(self) -> None:
        now = time.monotonic()
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            self._reporter.update_status(self._engine, now)
        if now >= self._next_head and not self._engine.ended:
            self._control.say([], [self._head_again()])  # so that a new server knows the time left

    # ---- the end --------------------------------------------------------------------------------

    def _end(self, finish: do.Finish, turn: Callable[[], None]) -> Result:
        """Write the result, tell everybody, wait for farewells, delete what this run created."""
        log.info("%s: %s", finish.outcome, finish.message)
        self._reporter.message = finish.message
        stopped = records.Stopped(
            run=self._run,
            epoch=self._epoch,
            outcome=finish.outcome,
            reason=finish.message[:2000],
            round=self._model.version,
        )
        # A server that was fenced learns it here: it has no verdict.
        head = self._head_again(
            outcome=finish.outcome,
            cause=finish.reason,
            reason=finish.message[:2000],
            measured=dict(self._figures) or self._head.measured,
        )
        self._control.say([(stopped, b"")], [head])
        self._model.save(self._folder.model)
        result = self._reporter.result(
            self._engine, finish.message, self._model.digest, self._folder.model.name
        )
        self._reporter.close()
        self._folder.write_result(result)
        self._reporter.update_status(self._engine, time.monotonic())
        try:
            self._see_off(turn)
            self._export_log(turn)
            if self._job.spec.kafka.topics.deletion_policy is DeletionPolicy.DELETE:
                self._transport.delete_topics(sorted(self._created))
        except (TransportError, TerminatedError) as error:
            log.warning("the run is over, but its topics are not deleted: %s", error)
        return result.model_copy(update={"folder": self._folder.path})

    def _export_log(self, turn: Callable[[], None]) -> None:
        """With retain: All, the log goes to the run folder before it goes with topics or broker.

        Raises TransportError and TerminatedError; the topics stay then.
        """
        topics = self._job.spec.kafka.topics
        if topics.retain is not Retain.ALL:
            return
        if topics.deletion_policy is DeletionPolicy.RETAIN and self._transport.can_trim:
            log.info("the log stays: fedlog replay --broker HOST:PORT --run-id %s", self._run)
            return
        path = self._folder.log
        log.info("writing the log to %s", path)
        written = export_log(
            self._transport, self._names, self._run, path, chunk_bytes=self._chunk_bytes, turn=turn
        )
        log.info("%s: %d records, %.1f MB", path.name, written.records, written.size_bytes / 1e6)
        if written.missing:
            log.warning("the chunks of %d manifests were gone already", written.missing)

    def _see_off(self, turn: Callable[[], None]) -> None:
        """Wait until the clients have left, or FAREWELL_S."""
        deadline = time.monotonic() + FAREWELL_S
        while self._engine.membership.live_count and time.monotonic() < deadline:
            try:
                turn()
            except TerminatedError:
                return  # the verdict stands
            for record in self._events.poll(_POLL_S):
                event = self._intake.take(record)
                if record.offset < self._head.events_offset:
                    continue
                if isinstance(event, happened.ClientLeft | happened.ClientJoined):
                    self._engine.step(event, time.monotonic())
                self._intake.drop(record.offset)

    def close(self) -> None:
        self._folder_of_updates.close()
        self._events.close()
        self._writer.close()


def head_every_s(job: FederatedJob) -> float:
    """How often the journal hears from a server at least."""
    return max(_HEAD_EVERY_S, job.spec.participation.round_timeout_seconds / 10)


def _words(refused: Mapping[str, str]) -> dict[str, str]:
    """The reason's word by client: the text is in the log, records are kept small."""
    return {client: records.reason_word(reason) for client, reason in refused.items()}
