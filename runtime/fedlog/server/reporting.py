"""What the server says about the run: status, round reports, metrics, the result."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from fedlog.job.model import FederatedJob, TestSet
from fedlog.rounds.actions import CommitRound, Measured
from fedlog.rounds.config import EVALUATOR
from fedlog.rounds.engine import Engine, Work
from fedlog.rounds.membership import MemberState
from fedlog.rounds.phase import Phase
from fedlog.server.journal import Journal
from fedlog.server.refusals import Refusals
from fedlog.telemetry.metrics import ServerMetrics
from fedlog.telemetry.result import Best, Result
from fedlog.telemetry.run_folder import MetricsFile, RunFolder
from fedlog.telemetry.status import (
    HISTORY,
    MAX_CLIENTS,
    MAX_WAITING,
    ClientState,
    ClientStatus,
    Evaluation,
    RoundReport,
    Status,
    TestSetName,
)
from fedlog.telemetry.versions import installed_versions
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.records import VersionMeasured, reason_word

_STATES = {
    Work.ASKED: ClientState.TRAINING,
    Work.ARRIVED: ClientState.UPLOADED,
}


@dataclass(frozen=True)
class UpdateFacts:
    """What a manifest tells about a folded update, for the round's report."""

    bulk: BulkManifest
    metrics: Mapping[str, float]
    examples: int


class Reporter:
    """Belongs to the server's main thread; `status` may be read by any."""

    def __init__(self, job: FederatedJob, run: str, folder: RunFolder) -> None:
        self.job = job
        self.run = run
        self.folder = folder
        self.metrics = ServerMetrics(job=job.metadata.name, namespace=job.metadata.namespace)
        self.message = "waiting for clients"
        self.refused_updates: Counter[str] = Counter()
        """Updates of the open round that were refused before they were folded, by reason."""
        self.refusals = Refusals()
        self.epoch = 1
        self._started = time.monotonic()
        self._file = MetricsFile(folder.metrics)
        self._history: deque[RoundReport] = deque(maxlen=HISTORY)
        self._best: Best | None = None
        self._bytes_up = 0
        self._bytes_down = 0
        self._round_seconds: deque[float] = deque(maxlen=5)
        self._round_opened = self._started
        self.status: Status

    def round_opened(self) -> None:
        self._round_opened = time.monotonic()

    def published(self, version: int, digest: str, model: BulkManifest) -> None:
        """A version is on the log. Version 0 has a report of its own, as no round made it."""
        self._bytes_down += model.encoded_size
        if version == 0:
            self._put(
                RoundReport(
                    round=0,
                    version=0,
                    digest=digest,
                    seconds=0.0,
                    bytes_down=model.encoded_size,
                    bytes_raw_down=model.size,
                )
            )

    def restore(self, journal: Journal, epoch: int) -> None:
        """What a predecessor has reported, as its journal has it."""
        self.epoch = epoch
        for report in reports_of(journal):
            self._put(report, seen=False)
            self._bytes_up += report.bytes_up
            self._bytes_down += report.bytes_down
        head = journal.head
        if head is None or head.judged.version is None or head.judged.value is None:
            return
        test_set = self.job.spec.decisive_test_set
        digest = next((c.digest for c in journal.committed() if c.round == head.judged.version), "")
        if head.judged.version == 0 and journal.started is not None:
            digest = journal.started.digest
        best = self.folder.best_model
        self._best = Best(
            version=head.judged.version,
            digest=digest,
            metric=self._decisive_metric(),
            test_set=test_set.value,
            value=head.judged.value,
            model=str(best.relative_to(self.folder.path)) if best.exists() else None,
        )

    def report_of(
        self,
        commit: CommitRound,
        digest: str,
        facts: Iterable[UpdateFacts],
        *,
        refused_records: Mapping[str, int],
        model: BulkManifest,
        learning_rate: float,
        aggregation_s: float,
        adapted: Mapping[str, int],
    ) -> RoundReport:
        """The report of a round that is about to be journaled."""
        facts = list(facts)
        now = time.monotonic()
        seconds = now - self._round_opened
        self._round_opened = now
        self._round_seconds.append(seconds)
        reasons = Counter(map(reason_word, commit.refused.values()))
        reasons.update(self.refused_updates)
        self.refused_updates.clear()
        up = sum(fact.bulk.encoded_size for fact in facts)
        return RoundReport(
            round=commit.round,
            version=commit.round,
            digest=digest,
            seconds=seconds,
            wanted=commit.wanted,
            selected=commit.selected,
            accepted=len(commit.accepted),
            late=commit.late,
            refused=dict(reasons),
            refused_records=dict(refused_records),
            lost=len(commit.lost),
            participants=tuple(update.client for update in commit.accepted[:MAX_CLIENTS]),
            train_metrics=_weighted(facts),
            bytes_up=up,
            bytes_down=model.encoded_size,
            bytes_raw_up=sum(fact.bulk.size for fact in facts),
            bytes_raw_down=model.size,
            learning_rate=learning_rate,
            aggregation_seconds=aggregation_s,
            adapted=dict(adapted),
        )

    def committed(self, report: RoundReport, *, below_quorum: bool) -> None:
        """A round is on the journal."""
        self._bytes_up += report.bytes_up
        self._put(report)
        self.message = f"round {report.round}: {report.accepted} of {report.selected} updates" + (
            ", below the quorum" if below_quorum else ""
        )

    def measured(self, measured: Measured, *, kept_as: str | None) -> None:
        """A version's figures on one test set are complete. kept_as: file of the best version."""
        figures = measured.figures
        evaluation = Evaluation(
            version=measured.version,
            examples=figures.examples,
            clients=figures.clients,
            metrics=dict(figures.metrics),
        )
        for report in self._history:
            if report.version == measured.version:
                merged = {**report.evaluations, measured.test_set.value: evaluation}
                self._put(report.model_copy(update={"evaluations": merged}))
                if measured.best:
                    self._note_best(report, measured, kept_as)
                return

    def _note_best(self, report: RoundReport, measured: Measured, kept_as: str | None) -> None:
        name = self._decisive_metric()
        self._best = Best(
            version=measured.version,
            digest=report.digest,
            metric=name,
            test_set=measured.test_set.value,
            value=measured.figures.metrics[name],
            model=kept_as,
        )

    def _decisive_metric(self) -> str:
        stop = self.job.spec.stop_when
        return "accuracy" if stop is None else stop.metric

    def _put(self, report: RoundReport, *, seen: bool = True) -> None:
        """seen: it happened in this process, so that its counters grow by it."""
        for index, known in enumerate(self._history):
            if known.round == report.round:
                self._history[index] = report
                break
        else:
            self._history.append(report)
        self._file.put(report)
        if seen:
            self.metrics.observe(report)

    def latest(self, version: int) -> dict[TestSetName, dict[str, float]]:
        """The figures of this version, by test set."""
        for report in self._history:
            if report.version == version:
                return {name: dict(e.metrics) for name, e in report.evaluations.items()}
        return {}

    def _newest_figures(self) -> dict[TestSetName, dict[str, float]]:
        newest: dict[TestSetName, dict[str, float]] = {}
        for report in self._history:
            for name, evaluation in report.evaluations.items():
                newest[name] = dict(evaluation.metrics)
        return newest

    def update_status(self, engine: Engine, now: float) -> None:
        """Make a new `status` of where the engine stands. now: on the engine's clock."""
        deadline = engine.deadline()
        rounds = self.job.spec.rounds
        current = engine.round
        number = current.number if current is not None else engine.version
        members = engine.membership.members
        lost = sum(member.state is MemberState.LOST for member in members.values())
        evaluator = engine.membership.is_live(EVALUATOR)
        self.status = Status.model_construct(
            run=self.run,
            job=self.job.metadata.name,
            namespace=self.job.metadata.namespace,
            epoch=self.epoch,
            phase=engine.phase,
            round=min(number, rounds),
            rounds=rounds,
            clients_desired=self.job.spec.client_count,
            clients_joined=engine.membership.live_count - evaluator,
            clients_lost=lost,
            waiting_for=tuple(engine.waiting_for()[:MAX_WAITING]),
            deadline_s=None if engine.ended or math.isinf(deadline) else max(0.0, deadline - now),
            metrics=self._newest_figures(),
            history=tuple(self._history),
            clients=self._clients(engine, now),
            refusals=self.refusals.recent(),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            eta_s=self._eta(engine),
            message=self.message,
            seconds=time.monotonic() - self._started,
            versions=installed_versions(),
        )
        self.metrics.set_status(self.status)

    def _clients(self, engine: Engine, now: float) -> tuple[ClientStatus, ...]:
        listed = []
        for client, member in list(engine.membership.members.items())[:MAX_CLIENTS]:
            work = engine.round.cohort.get(client) if engine.round is not None else None
            state = ClientState.IDLE
            if member.state is not MemberState.LIVE:
                state = ClientState(member.state.value)
            elif engine.phase is Phase.JOINING:
                state = ClientState.JOINED
            elif member.finishing is not None:
                state = ClientState.TRAINING
            elif work is not None:
                state = _STATES.get(work, ClientState.IDLE)
            listed.append(
                ClientStatus.model_construct(
                    id=client,
                    state=state,
                    round=engine.round.number if work is not None and engine.round else None,
                    last_seen_s=max(0.0, now - member.seen),
                )
            )
        return tuple(listed)

    def _eta(self, engine: Engine) -> float | None:
        if not self._round_seconds or engine.ended:
            return None
        mean = sum(self._round_seconds) / len(self._round_seconds)
        return max(0.0, mean * (self.job.spec.rounds - engine.version))

    def result(self, engine: Engine, reason: str, digest: str, model: str | None) -> Result:
        test_set = self.job.spec.decisive_test_set
        figures = self.latest(engine.version)
        return Result(
            run=self.run,
            job=self.job.metadata.name,
            namespace=self.job.metadata.namespace,
            outcome="Complete" if engine.phase is Phase.COMPLETE else "Failed",
            reason=reason,
            rounds=engine.version,
            rounds_wanted=self.job.spec.rounds,
            metrics=figures,
            test_set=_decisive(test_set, figures),
            participation=dict(engine.participation),
            digest=digest,
            seconds=time.monotonic() - self._started,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            model=model,
            best=self._best,
            versions=installed_versions(),
        )

    def close(self) -> None:
        self._file.close()


def journaled(report: RoundReport) -> dict[str, JsonValue]:
    """A report for the journal, without what its record says already."""
    content: dict[str, JsonValue] = report.model_dump(
        mode="json", exclude_defaults=True, exclude={"participants", "evaluations"}
    )
    return content


def reports_of(journal: Journal) -> Iterator[RoundReport]:
    """Every report that a journal holds, the first model's as round 0; each with the figures of
    its version as far as they are journaled. A report that cannot be read is left out.
    """
    previous: RoundReport | None = None
    if journal.started is not None:
        model = journal.started.model
        previous = RoundReport(
            round=0,
            version=0,
            digest=journal.started.digest,
            seconds=0.0,
            bytes_down=model.encoded_size,
            bytes_raw_down=model.size,
        )
    for committed in journal.committed():
        if previous is not None:
            yield _measured(previous, committed.measured)
        try:
            found = RoundReport.model_validate(committed.report)
        except ValidationError:
            previous = None
            continue
        participants = tuple(client for client, *_ in committed.accepted[:MAX_CLIENTS])
        previous = found.model_copy(update={"participants": participants})
    if previous is not None:
        yield _measured(previous, {} if journal.head is None else journal.head.measured)


def _measured(report: RoundReport, measured: Mapping[TestSetName, VersionMeasured]) -> RoundReport:
    return report.model_copy(
        update={
            "evaluations": {
                test_set: Evaluation(
                    version=report.version,
                    examples=figures.examples,
                    clients=figures.clients,
                    metrics=figures.metrics,
                )
                for test_set, figures in measured.items()
            }
        }
    )


def _decisive(test_set: TestSet, figures: Mapping[TestSetName, object]) -> TestSet | None:
    if test_set.value in figures:
        return test_set
    return next((other for other in TestSet if other.value in figures), None)


def _weighted(facts: Iterable[UpdateFacts]) -> dict[str, float]:
    """Means of the clients' training figures, weighted by examples."""
    means: dict[str, float] = {}
    weights: dict[str, int] = {}
    for fact in facts:
        for name, value in fact.metrics.items():
            weight = weights[name] = weights.get(name, 0) + fact.examples
            mean = means.get(name, 0.0)
            means[name] = mean + (value - mean) * (fact.examples / weight)
    return means
