"""Replay: every round is folded again from the log, and the digest of every version compared.

Versions are a function of the log (`fedlog.learning.mean` has the arithmetic), so whoever holds
the log can check them without trusting the server that made them. The journal says which updates
are in a version and in which order they were folded; their manifests are on `events`, their bytes
where those say; the updates are read, verified and folded by the server's own `Folder`.

The same updates can be aggregated under another rule at the same time, to see what it would have
made of a round: the clients trained on the committed versions, so each round departs from them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedlog.job.model import FederatedJob, Retain, StrategySpec
from fedlog.learning.errors import LearningError
from fedlog.learning.strategies import Aggregation, State, make_strategy
from fedlog.learning.weights import Update, Weights, is_averaged
from fedlog.rounds.actions import FoldUpdate
from fedlog.rounds.events import UpdateFolded
from fedlog.server.errors import ReplayError
from fedlog.server.folding import Folder
from fedlog.server.global_model import GlobalModel
from fedlog.server.journal import read_journal
from fedlog.transport.base import Transport
from fedlog.transport.errors import BulkMissingError, UnknownTopicError
from fedlog.transport.reading import read_all
from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits

log = logging.getLogger(__name__)

_TIMEOUT_S = 60.0
"""For one model, one manifest, one update."""
_POLL_S = 0.25
_BLOCK = 2**20  # elements of a norm that are worked on at a time


class Verdict(StrEnum):
    """What became of one round."""

    OK = "ok"
    DIFFERS = "differs"
    """The log makes another version than the journal names."""
    NOT_THERE = "not there"
    """The log does not have all that the round was made of."""


@dataclass(frozen=True)
class Rule:
    """Another way to aggregate: `strategy` (None: the job's) over all updates but those of the
    clients in `without`.
    """

    strategy: StrategySpec | None = None
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Weighed:
    """One update under another rule. share: of the training examples that the version rests on."""

    client: str
    examples: int
    share: float


@dataclass(frozen=True)
class Comparison:
    """What another rule makes of a round.

    difference: L2 norm of its version minus the committed one; step: that of the committed version
    minus the one before; both over the averaged tensors. problem: why the rule makes no version.
    """

    weighed: tuple[Weighed, ...]
    digest: str | None = None
    difference: float | None = None
    step: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class ReplayedRound:
    """One round, folded again. digest: of what came out, None where nothing did; committed: the
    journal's. other: with a Rule, where the round is all there.
    """

    round: int
    verdict: Verdict
    committed: str
    digest: str | None = None
    updates: int = 0
    seconds: float = 0.0
    reason: str = ""
    other: Comparison | None = None


def replay(
    transport: Transport,
    run: str,
    *,
    job: FederatedJob | None = None,
    number: int | None = None,
    rule: Rule | None = None,
    save: Path | None = None,
    on_round: Callable[[ReplayedRound, int], None] | None = None,
) -> list[ReplayedRound]:
    """Fold the committed rounds of a run again, from version 0 on; all are well when every verdict
    is OK.

    run: the run's name in records and topics. job: the run's, where its journal has no room for
    it. number: this round alone. rule: aggregate under this one, too. save: where the last version
    that came out is written, the rule's where there is one (safetensors). on_round: called after
    each round, with how many there are.

    A round that cannot be folded does not end the replay: the next one departs from the version
    that the log has. Raises ReplayError where there is nothing to replay, or not the round that is
    asked for, and TransportError when the broker stays away.
    """
    with Replay(transport, run, job=job, rule=rule) as replayed:
        found = []
        for each in replayed.rounds(number):
            found.append(each)
            if on_round is not None:
                on_round(each, replayed.count if number is None else 1)
        if save is not None:
            replayed.save(save)
    return found


class _NotThereError(Exception):
    """What a round was made of is not on the log."""


class Replay:
    """The replay of one run; `rounds` does the work. A context manager: it closes its readers."""

    def __init__(
        self,
        transport: Transport,
        run: str,
        *,
        job: FederatedJob | None = None,
        rule: Rule | None = None,
    ) -> None:
        """Reads the journal; see `replay`."""
        self._transport, self._run = transport, run
        journal = read_journal(transport, f"{run}.journal", run)
        if journal.started is None or journal.head is None:
            raise ReplayError(
                f"there is no journal of {run} on this log: look at the name; or its topics were "
                "deleted when the run ended (spec.kafka.topics.deletionPolicy: Retain keeps them)"
            )
        self._journal, self._started, self._head = journal, journal.started, journal.head
        found = _job_of(journal.started) or job
        if found is None:
            raise ReplayError(
                "the journal holds no job that this Fedlog can read (it may have been too long for "
                "it): give the run's folder, or use the Fedlog that began the run"
            )
        self.job = found
        spec = found.spec
        if rule is not None and (unknown := rule.without - set(spec.client_ids())):
            raise ReplayError(f"the job has no client {', '.join(sorted(unknown))}")
        self._strategy = make_strategy(spec.strategy, spec.weight_adaptation)
        self._state: State | None = None
        self._chunk_bytes = spec.communication.max_message_bytes
        self._announced = self._find_announcements()
        self._events = transport.bulk_reader(self._chunk_bytes)
        self._model: GlobalModel | None = None
        self._folder: Folder | None = None
        self._aggregation: Aggregation | None = None
        self._other = None if rule is None else _Other(rule, self.job)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()
        self._events.close()

    @property
    def count(self) -> int:
        """Committed rounds."""
        return self._head.version

    def rounds(self, number: int | None = None) -> Iterator[ReplayedRound]:
        """Each committed round in turn, or one of them."""
        if number is not None and not 1 <= number <= self.count:
            raise ReplayError(
                f"there is no round {number}: {self.count} rounds are committed, from 1 on"
            )
        for each in range(1, self.count + 1) if number is None else (number,):
            started = time.monotonic()
            committed = self._journal.rounds.get(each)
            try:
                if committed is None:
                    raise _NotThereError(f"round {each} is not in the journal")
                yield self._round(committed, started)
            except _NotThereError as error:
                if number is not None:
                    raise ReplayError(str(error)) from None
                yield ReplayedRound(
                    each,
                    Verdict.NOT_THERE,
                    "" if committed is None else committed.digest,
                    reason=str(error),
                    seconds=time.monotonic() - started,
                )

    def save(self, path: Path) -> None:
        """Write the last version that came out. Raises ReplayError where none did."""
        model = self._model if self._other is None else self._other.model
        if model is None:
            raise ReplayError("no version came out: there is nothing to save")
        model.save(path)

    # ---- one round ------------------------------------------------------------------------------

    def _round(self, committed: records.Committed, started: float) -> ReplayedRound:
        if self._model is None or self._model.digest != committed.base:
            self._model = self._version(committed)
        model = self._model
        if self._state is None:
            self._state = self._strategy.init(model.weights)
        self._aggregation = self._strategy.begin(model.weights, self._state)
        if self._other is not None:
            self._other.begin(model)
        other = None
        problem = self._broken_chain(committed) or self._fold(committed)
        if not problem:
            try:
                self._state = self._aggregation.close_into(model.weights)
            except LearningError as error:
                problem = str(error)
            else:
                model.advance()
                if model.digest != committed.digest:
                    problem = "the log makes another version than the journal names"
                if self._other is not None:
                    other = self._other.close(model.weights)
        return ReplayedRound(
            committed.round,
            Verdict.DIFFERS if problem else Verdict.OK,
            committed.digest,
            digest=model.digest if model.version == committed.round else None,
            updates=len(committed.accepted),
            reason=problem,
            other=other,
            seconds=time.monotonic() - started,
        )

    def _broken_chain(self, committed: records.Committed) -> str:
        """Why the journal's versions do not follow from each other, or nothing."""
        number = committed.round
        before = self._journal.rounds.get(number - 1)
        if number == 1:
            expected: str | None = self._started.digest
        else:
            expected = None if before is None else before.digest
        if expected is not None and committed.base != expected:
            return f"it departs from {committed.base}, and version {number - 1} is {expected}"
        if number == self.count and committed.digest != self._head.digest:
            return f"the journal names two versions {number}"
        return ""

    def _fold(self, committed: records.Committed) -> str:
        """Fold what the journal names, in its order; why that cannot be, or nothing."""
        assert self._folder is not None  # noqa: S101 - made with the first version
        for row in committed.accepted:
            update = FoldUpdate(*row)
            manifest, payload = self._manifest(committed, update)
            result = self._folder.submit(update, manifest, payload)
            while result is None:
                # One at a time: what is queued would hold its payload.
                result = next(iter(self._folder.results(_POLL_S)), None)
            if not isinstance(result, UpdateFolded):
                if result.missing:
                    raise _NotThereError(self._gone(committed.round, result.reason))
                return f"the update of {update.client}: {result.reason}"
        return ""

    def _take(self, update: Update) -> None:
        """Called by the folder with each verified update."""
        if self._aggregation is not None:
            self._aggregation.fold(update)
        if self._other is not None:
            self._other.fold(update)

    # ---- what is on the log ---------------------------------------------------------------------

    def _manifest(
        self, committed: records.Committed, update: FoldUpdate
    ) -> tuple[records.Updated, memoryview]:
        topic = f"{self._run}.events"
        try:
            (value,) = self._events.read(topic, 0, [update.offset], _TIMEOUT_S)
            found, payload = records.decode(value)
        except BulkMissingError as error:
            raise _NotThereError(self._gone(committed.round, str(error))) from error
        except WireError as error:
            raise _NotThereError(f"events, offset {update.offset}: {error}") from error
        named = (found.run, getattr(found, "client", None), getattr(found, "examples", None))
        if not isinstance(found, records.Updated) or named != (
            self._run,
            update.client,
            update.examples,
        ):
            raise _NotThereError(
                f"events, offset {update.offset}: not the manifest of {update.client}"
            )
        return found, payload

    def _version(self, committed: records.Committed) -> GlobalModel:
        """The version that a round departs from, from the log."""
        number = committed.round - 1
        manifest, inline = self._announcement(committed)
        try:
            model = GlobalModel.read(
                self._transport,
                manifest,
                inline,
                version=number,
                chunk_bytes=self._chunk_bytes,
                timeout_s=_TIMEOUT_S,
            )
        except BulkMissingError as error:
            raise _NotThereError(self._gone(committed.round, str(error))) from error
        except WireError as error:
            raise _NotThereError(f"version {number}: {error}") from error
        if model.digest != committed.base:
            raise _NotThereError(f"version {number} on the log is not the one that was trained on")
        if self._folder is None:
            limits = Limits.for_model(model.size_bytes)
            self._folder = Folder(self._transport, self._take, limits, self._chunk_bytes)
        return model

    def _announcement(self, committed: records.Committed) -> tuple[BulkManifest, bytes]:
        """Where the version is that a round departs from."""
        if self._started.digest == committed.base:
            return self._started.model, self._journal.first_payload
        offset = self._announced.get(committed.base)
        if offset is None:
            raise _NotThereError(self._gone(committed.round, "its announcement is not there"))
        try:
            (value,) = self._events.read(f"{self._run}.control", 0, [offset], _TIMEOUT_S)
        except BulkMissingError as error:
            raise _NotThereError(self._gone(committed.round, str(error))) from error
        found, payload = records.decode(value)
        if not isinstance(found, records.Announced):
            raise _NotThereError(f"control, offset {offset}: not an announcement any more")
        return found.model, bytes(payload)

    def _find_announcements(self) -> dict[str, int]:
        """Digest of a version -> offset on control where it was announced last."""
        found: dict[str, int] = {}
        try:
            for record in read_all(self._transport, f"{self._run}.control", committed=True):
                try:
                    told, _ = records.decode(record.value)
                except WireError:
                    continue
                # Every version is as large as the first: nobody can have more memory taken.
                if (
                    isinstance(told, records.Announced)
                    and told.model.size == self._started.model.size
                ):
                    found[told.base] = record.offset
        except UnknownTopicError:
            log.info("control is not there: versions are only what comes out of the rounds")
        return found

    def _gone(self, number: int, detail: str) -> str:
        if self.job.spec.kafka.topics.retain is Retain.RESUME:
            return (
                f"round {number} was deleted: the job has topics.retain: Resume; set All before "
                "the run"
            )
        return f"round {number} is not complete: {detail}"


class _Other:
    """Another rule over the rounds of one replay."""

    def __init__(self, rule: Rule, job: FederatedJob) -> None:
        self._without = rule.without
        spec = job.spec
        self._strategy = make_strategy(rule.strategy or spec.strategy, spec.weight_adaptation)
        self._state: State | None = None
        self._aggregation: Aggregation | None = None
        self._weighed: list[tuple[str, int]] = []
        self._model: GlobalModel | None = None

    @property
    def model(self) -> GlobalModel | None:
        """The last version that came out."""
        return self._model if self._aggregation is None else None

    def begin(self, base: GlobalModel) -> None:
        """Start a round from this version, which is copied."""
        self._model = base.copy()
        if self._state is None:
            self._state = self._strategy.init(base.weights)
        self._aggregation = self._strategy.begin(base.weights, self._state)
        self._weighed = []

    def fold(self, update: Update) -> None:
        if update.client not in self._without and self._aggregation is not None:
            self._aggregation.fold(update)
            self._weighed.append((update.client, update.examples))

    def close(self, committed: Weights) -> Comparison:
        """What the rule made of the round; `committed` is what the job's made."""
        model, aggregation = self._model, self._aggregation
        if model is None or aggregation is None:
            raise RuntimeError("close comes after begin")
        total = sum(examples for _, examples in self._weighed)
        weighed = tuple(Weighed(client, n, n / total) for client, n in self._weighed)
        step = _distance(committed, model.weights)
        try:
            self._state = aggregation.close_into(model.weights)
        except LearningError as error:
            return Comparison(weighed, step=step, problem=str(error))
        model.advance()
        self._aggregation = None
        difference = _distance(committed, model.weights)
        return Comparison(weighed, model.digest, difference, step)


def _job_of(started: records.Started) -> FederatedJob | None:
    """The job in the journal, or None where it has none, or none that can be read."""
    try:
        return FederatedJob.model_validate_json(started.job) if started.job else None
    except ValidationError:
        log.warning("the job in the journal cannot be read")
        return None


def _distance(one: Weights, other: Weights) -> float:
    """L2 norm of the difference over the averaged tensors, in float64, block by block."""
    total = 0.0
    for name, array in one.items():
        if is_averaged(array):
            first, second = array.reshape(-1), other[name].reshape(-1)
            for begin in range(0, first.size, _BLOCK):
                part = slice(begin, begin + _BLOCK)
                gap = np.subtract(first[part], second[part], dtype=np.float64)
                total += float(np.square(gap).sum())
    return math.sqrt(total)
