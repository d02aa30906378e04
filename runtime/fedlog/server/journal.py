"""The journal: what a server leaves to the one that comes after it.

Its records are in `fedlog.wire.records`. Reading it gives a `Journal`; `standing` turns that into
what the engine goes on from. Nothing else is needed besides the log itself.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fedlog.job.errors import JobError, Problem
from fedlog.job.model import FederatedJob
from fedlog.rounds import actions as do
from fedlog.rounds.engine import LATENESS_ROUNDS, Engine
from fedlog.rounds.membership import Joining
from fedlog.rounds.standing import Judgement, OpenWork, Standing
from fedlog.telemetry.bursts import Bursts
from fedlog.transport.base import Record, Transport
from fedlog.wire import records
from fedlog.wire.errors import WireError

log = logging.getLogger(__name__)

_POLL_S = 0.25
_TIMEOUT_S = 5.0
_LATEST_S = 20.0


@dataclass
class Journal:
    """What the journal of one run says."""

    run: str
    started: records.Started | None = None
    first_payload: bytes = b""
    """Version 0, where it travelled inside `started`."""
    head: records.Head | None = None
    payload: bytes = b""
    """The current version, where it travelled inside `head`."""
    rounds: dict[int, records.Committed] = field(default_factory=dict)
    members: dict[str, records.MemberOf] = field(default_factory=dict)
    end: int = 0
    """Offset up to which it was read."""
    _bursts: Bursts = field(default_factory=lambda: Bursts(log, "journal records skipped"))

    def take(self, record: Record) -> None:
        """Add one record; the last one of a key counts, unless its server was fenced by that of
        another. What cannot be read is passed over.
        """
        try:
            found, payload = records.decode(record.value)
        except WireError as error:
            self._skip(record, error.reason, error)
            return
        if found.run != self.run:
            self._skip(record, "other-run", "it names another run")
            return
        match found:
            case records.Started():
                self.started, self.first_payload = found, bytes(payload)
            case records.Head():
                if self.head is None or found.epoch >= self.head.epoch:
                    self.head, self.payload = found, bytes(payload)
            case records.Committed():
                known = self.rounds.get(found.round)
                if known is None or found.epoch >= known.epoch:
                    self.rounds[found.round] = found
            case records.MemberOf():
                self.members[found.client] = found
            case _:
                self._skip(record, "misplaced", f"a {found.type} record is not for the journal")

    def _skip(self, record: Record, kind: str, why: object) -> None:
        self._bursts.say(kind, "journal record %d is skipped: %s", record.offset, why)

    def committed(self) -> Iterator[records.Committed]:
        """The rounds that count, in order: those that the head's version contains."""
        version = 0 if self.head is None else self.head.version
        for number in sorted(self.rounds):
            if number <= version:
                yield self.rounds[number]


def read_journal(transport: Transport, topic: str, run: str) -> Journal:
    """What is committed on the journal, to its end; empty where the topic is not there.

    What is written meanwhile, by a server that is at work, is followed for seconds only.
    Raises TransportError.
    """
    journal = Journal(run)
    if transport.partitions(topic) is None:
        return journal
    reader = transport.reader(topic, start=0, committed=True)
    try:
        end = reader.end_offset()
        batch = reader.poll(_POLL_S)
        # The end of a transaction takes an offset that no reader gets to see, and some brokers say
        # 0 while one is open: time ends this.
        deadline = time.monotonic() + _TIMEOUT_S
        latest = time.monotonic() + _LATEST_S
        while (batch or reader.position < end) and time.monotonic() < deadline:
            for record in batch:
                journal.take(record)
                journal.end = record.offset + 1
            if batch:
                deadline = time.monotonic() + _TIMEOUT_S
            if journal.end >= end:  # somebody writes while this reads
                deadline = min(deadline, latest)
            batch = reader.poll(_POLL_S)
    finally:
        reader.close()
    return journal


def check_same_job(started: records.Started, job: FederatedJob) -> None:
    """Raises JobError where the run was started with a job that cannot go on as this one.

    Rounds, deadlines and what is kept may differ; who takes part and what is learned may not.
    """
    if not started.job:
        return
    try:
        before = FederatedJob.model_validate_json(started.job).spec
    except ValidationError as error:
        raise JobError(
            [
                Problem(
                    "",
                    f"the run was started with a job that this Fedlog cannot read: {_first(error)}",
                    "a job as this version knows it",
                    "go on with the Fedlog that began the run, or start another run with "
                    "--run NAME, for the server and the clients alike",
                )
            ]
        ) from None
    now = job.spec
    pairs: list[tuple[str, Any, Any]] = [
        ("spec.task", before.task, now.task),
        ("spec.seed", before.seed, now.seed),
        ("spec.strategy", before.strategy, now.strategy),
        ("spec.clients", before.client_ids(), now.client_ids()),
        ("spec.kafka.topics.model", before.kafka.topics.model, now.kafka.topics.model),
        ("spec.kafka.topics.updates", before.kafka.topics.updates, now.kafka.topics.updates),
    ]
    problems = [
        Problem(
            path,
            "not what the run was started with",
            "the same, while the run goes on",
            "start another run with --run NAME, for the server and the clients alike",
        )
        for path, old, new in pairs
        if old != new
    ]
    if problems:
        raise JobError(problems)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def key_of(record: records.JournalRecord) -> str:
    """What compaction keeps one record of."""
    match record:
        case records.Started():
            return "start"
        case records.Head():
            return "head"
        case records.MemberOf():
            return f"client/{record.client}"
        case records.Committed():
            return f"round/{record.round}"


def member_of(run: str, client: str, joinings: Iterable[Joining]) -> records.MemberOf:
    return records.MemberOf(
        run=run,
        client=client,
        incarnations=tuple((joining.incarnation, joining.offset) for joining in joinings),
    )


def work_record(work: OpenWork) -> records.Work:
    announce = work.announce
    return records.Work(
        round=announce.round,
        cohort=announce.cohort,
        training=announce.training,
        evaluate=announce.evaluate,
        evaluator=announce.evaluator,
        wanted=work.wanted,
        retries=work.retries,
    )


def rows(updates: Iterable[do.FoldUpdate]) -> tuple[records.Accepted, ...]:
    return tuple((u.client, u.offset, u.examples, u.round) for u in updates)


def judged(engine: Engine) -> records.Judged:
    at = engine.judge.judgement()
    return records.Judged(version=at.version, value=at.value, without_better=at.without_better)


def standing(journal: Journal, deadline_s: float) -> Standing:
    """Where the run stands. deadline_s: of a phase whose remainder was not journaled.

    Raises ValueError where the journal has no head.
    """
    head = journal.head
    if head is None:
        raise ValueError("a journal without a head")
    digests = {head.version: head.digest}
    asked: dict[int, frozenset[str]] = {}
    accepted: dict[str, int] = {}
    participation: Counter[str] = Counter()
    if journal.started is not None and head.version <= LATENESS_ROUNDS:
        digests[0] = journal.started.digest
    for committed in journal.committed():
        for client, _, _, number in committed.accepted:
            participation[client] += 1
            accepted[client] = max(number, accepted.get(client, 0))
        if committed.round > head.version - LATENESS_ROUNDS - 1:
            digests[committed.round] = committed.digest
        if committed.round > head.version - LATENESS_ROUNDS:
            asked[committed.round] = frozenset(
                [client for client, _, _, number in committed.accepted if number == committed.round]
            ) | {*committed.refused, *committed.unanswered}
    work = None
    if head.work is not None:
        announce = do.Announce(
            round=head.work.round,
            version=head.version,
            cohort=head.work.cohort,
            training=head.work.training,
            evaluate=head.work.evaluate,
            evaluator=head.work.evaluator,
            deadline_s=deadline_s if head.deadline_s is None else head.deadline_s,
        )
        work = OpenWork(announce, head.work.wanted, head.work.retries)
    return Standing(
        version=head.version,
        digests=digests,
        members=_members_at(journal.members.values(), head.events_offset),
        asked=asked,
        accepted=accepted,
        participation=participation,
        late=tuple(do.FoldUpdate(*row) for row in head.late),
        finishing=dict(head.finishing),
        judgement=Judgement(head.judged.version, head.judged.value, head.judged.without_better),
        work=work,
        deadline_s=head.deadline_s,
        active_s=head.active_s,
        stop_reason=head.stop_reason,
        outcome=head.outcome,
    )


def _members_at(members: Iterable[records.MemberOf], offset: int) -> dict[str, tuple[Joining, ...]]:
    """Who was a member when `events` was read below this offset: who joined later does so again
    when the rest is read.
    """
    found = {}
    for member in members:
        earlier = tuple(Joining(*each) for each in member.incarnations if each[1] < offset)
        if earlier:
            found[member.client] = earlier
    return found
