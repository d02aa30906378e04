"""A whole federation in virtual time: the real engine, the real client sessions, a log that
delays, duplicates and loses, processes that crash and come back. No thread, no clock.

The invariants are checked while it runs; `Broken` names the one that did not hold.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fedlog.client import session as client_side
from fedlog.client.session import ClientSession
from fedlog.job.model import LateUpdates, OnTimeout, TestSet
from fedlog.rounds import actions as do
from fedlog.rounds import events as happened
from fedlog.rounds.config import EVALUATOR, RoundsConfig
from fedlog.rounds.engine import Engine
from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest

RUN = "fedlog.default.simulated.0"
TICK_S = 0.25


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Weather:
    """What goes wrong, and how often (probabilities per record or per round of training)."""

    delay_s: float = 0.05
    loses_process: float = 0.0  # a client's process is killed while it trains
    comes_back: float = 0.9  # … and another one starts in its place
    duplicates: float = 0.0  # a record is appended twice
    fails: float = 0.0  # the user's training code raises
    refuses: float = 0.0  # an update is found unfit when it is read
    fold_s: float = 0.0  # reading an update takes up to so long
    silences: float = 0.0  # a client that trains is not heard of for a while
    training_s: tuple[float, float] = (0.5, 5.0)
    straggler_s: float = 0.0  # every fourth client is so much slower


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _bulk(name: str) -> BulkManifest:
    return BulkManifest(
        size=1,
        encoded_size=1,
        chunk_bytes=1,
        digest=_digest(name),
        raw_digest=_digest(name),
        digests="",
    )


@dataclass
class Process:
    """One incarnation of a client."""

    session: ClientSession
    position: int = 0
    alive: bool = True
    silent_until: float = 0.0
    job: int = 0  # grows with every piece of work that begins or is given up


@dataclass
class Federation:
    config: RoundsConfig
    weather: Weather
    seed: int
    now: float = 0.0
    events: list[records.EventRecord] = field(default_factory=list)
    control: list[records.ControlRecord] = field(default_factory=list)
    commits: list[do.CommitRound] = field(default_factory=list)
    measured: list[do.Measured] = field(default_factory=list)
    finish: do.Finish | None = None
    trainings: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.digest = _digest("initial")
        self.engine = Engine(self.config, digest=self.digest, now=0.0)
        self.processes: dict[str, Process] = {}
        self.manifested: dict[tuple[str, int], int] = {}
        self._read = 0
        self._work_offset: int | None = None
        self._folds_end = 0.0
        self.asked: dict[int, set[str]] = {}
        clients = [*self.config.clients, *([EVALUATOR] if self.config.evaluator else [])]
        for client in clients:
            self.at(self.random.uniform(0, 3), lambda c=client: self.start(c))
        self.at(TICK_S, self._serve)

    # ---- virtual time ---------------------------------------------------------------------------

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._count), what))

    def run(self, until_s: float) -> None:
        while self._heap and self.finish is None:
            self.now, _, what = heapq.heappop(self._heap)
            if self.now > until_s:
                raise Broken(f"not over after {until_s:g} s: {self.engine.waiting_for()}")
            what()

    # ---- clients --------------------------------------------------------------------------------

    def start(self, client: str) -> None:
        incarnation = f"{self.random.getrandbits(64):016x}"
        process = Process(ClientSession(client, incarnation, RUN), position=len(self.control))
        self.processes[client] = process
        self._carry_out(process, process.session.start(self.now))
        self._wake(process)

    def kill(self, process: Process) -> None:
        process.alive = False
        if self.random.random() < self.weather.comes_back:
            self.at(self.random.uniform(0.1, 8), lambda: self.start(process.session.client))

    def _wake(self, process: Process) -> None:
        if process.alive and not process.session.ended:
            if self.random.random() < self.weather.silences / 20:
                process.silent_until = self.now + self.random.uniform(5, 40)
            self._carry_out(process, process.session.tick(self.now))
            self.at(0.5, lambda: self._wake(process))

    def _read_control(self, process: Process) -> None:
        while process.alive and process.position < len(self.control):
            offset = process.position
            process.position += 1
            self._carry_out(
                process, process.session.receive(self.control[offset], offset, self.now)
            )

    def _carry_out(self, process: Process, actions: client_side.Actions) -> None:
        session = process.session
        for action in actions:
            match action:
                case client_side.Send(records.Heartbeat()) if self.now < process.silent_until:
                    pass
                case client_side.Send():
                    self._append(process, action.record)
                case client_side.SeekControl():
                    process.position = action.offset
                    self.at(0.01, lambda: self._read_control(process))
                case client_side.Evaluate():
                    self._evaluate(process, action)
                case client_side.Train():
                    self._train(process, action.announcement)
                case client_side.AbortTraining():
                    process.job += 1
                case client_side.Upload():
                    self._upload(process, action.round, action.base)
                case client_side.Forget():
                    pass
                case client_side.End():
                    process.alive = False
                    if action.exit_code != 0 and session.client in self.config.clients:
                        current = self.processes[session.client]
                        if current is process:
                            raise Broken(f"{session.client} ended itself: {action.reason}")

    def _append(
        self,
        process: Process,
        record: records.EventRecord,
        then: Callable[[int], None] | None = None,
    ) -> None:
        """A client's own records stay in order; those of others come between."""

        def arrive() -> None:
            self.events.append(record)
            offset = len(self.events) - 1
            if isinstance(record, records.Updated):
                self.manifested.setdefault((record.client, record.round), offset)
            if self.random.random() < self.weather.duplicates:
                self.at(self.random.uniform(0, 2), lambda: self.events.append(record))
            if then is not None and process.alive:
                then(offset)

        self.at(self.weather.delay_s, arrive)

    def _evaluate(self, process: Process, action: client_side.Evaluate) -> None:
        session = process.session
        record = records.Evaluated(
            run=RUN,
            client=session.client,
            incarnation=session.incarnation,
            version=action.version,
            digest=action.base,
            test_set=action.test_set,
            examples=10,
            metrics={"accuracy": 1 - 0.5 ** (1 + action.version)},
        )

        def done() -> None:
            if not process.alive:
                return
            round_ = action.announcement.round
            if session.is_evaluator and self.random.random() < self.weather.fails:
                failed = session.failed(round_, action.base, "no data", self.now)
                self._carry_out(process, failed)
            else:
                self._append(process, record)
                self._carry_out(process, session.evaluated(round_, action.base, self.now))

        self.at(self.random.uniform(0.1, 1.0), done)

    def _train(self, process: Process, announced: records.Announced) -> None:
        session, weather = process.session, self.weather
        key = (session.client, announced.round)
        if key in self.manifested and (
            # The welcome has told everything that was on the log before the client joined; a
            # predecessor's manifest after it does not count.
            self.manifested[key] < self._joined_at(session)
            or self.events[self.manifested[key]].incarnation == session.incarnation
        ):
            raise Broken(f"{key} trains again, its manifest is on the log")
        self.trainings += 1
        process.job += 1
        job = process.job
        slow = weather.straggler_s if hash_of(session.client) % 4 == 0 else 0.0
        duration = self.random.uniform(*weather.training_s) + slow
        if self.random.random() < weather.loses_process:
            self.at(self.random.uniform(0, duration), lambda: self.kill(process))

        def done() -> None:
            if not process.alive or process.job != job:
                return
            if self.random.random() < weather.fails:
                actions = session.failed(announced.round, announced.base, "boom", self.now)
            else:
                actions = session.trained(announced.round, announced.base, self.now)
            self._carry_out(process, actions)

        self.at(duration, done)

    def _joined_at(self, session: ClientSession) -> int:
        return next(
            (
                offset
                for offset, record in enumerate(self.events)
                if isinstance(record, records.Joined) and record.incarnation == session.incarnation
            ),
            len(self.events),
        )

    def _upload(self, process: Process, round_: int, base: str) -> None:
        session = process.session
        record = records.Updated(
            run=RUN,
            client=session.client,
            incarnation=session.incarnation,
            round=round_,
            base=base,
            examples=1 + hash_of(session.client) % 7,
            bulk=_bulk(f"{session.client} {round_}"),
        )

        def uploaded(offset: int) -> None:
            self._carry_out(process, session.uploaded(round_, base, offset, self.now))

        self.at(0.1, lambda: process.alive and self._append(process, record, uploaded))

    # ---- server ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._read < len(self.events):
            offset = self._read
            self._read += 1
            self._step(_event_of(self.events[offset], offset))
        self._step(happened.EventsRead(self._read, at_end=True))
        self.at(TICK_S, self._serve)

    def _step(self, event: happened.Event) -> None:
        waiting = [event]
        while waiting and self.finish is None:
            for action in self.engine.step(waiting.pop(0), self.now):
                match action:
                    case do.WelcomeClient():
                        self._tell(
                            records.Welcome(
                                run=RUN,
                                epoch=1,
                                clients={action.client: action.incarnation},
                                committed={action.client: action.committed}
                                if action.committed is not None
                                else {},
                                announcement=self._work_offset,
                            )
                        )
                    case do.Announce():
                        self._announce(action)
                    case do.FoldUpdate():
                        self._fold(action)
                    case do.TakeCut():
                        waiting.append(happened.CutTaken(len(self.events)))
                    case do.CommitRound():
                        waiting.append(self._commit(action))
                    case do.Measured():
                        self.measured.append(action)
                    case do.Finish():
                        self.finish = action
                        self._tell(
                            records.Stopped(
                                run=RUN, epoch=1, outcome=action.outcome, reason="", round=0
                            )
                        )

    def _fold(self, action: do.FoldUpdate) -> None:
        """One after the other, in the order of asking."""
        unfit = self.random.random() < self.weather.refuses
        result = (
            happened.UpdateRefused(action.offset, "unfit")
            if unfit
            else happened.UpdateFolded(action.offset)
        )
        begins = max(self.now, self._folds_end)
        self._folds_end = begins + self.random.uniform(0, self.weather.fold_s)
        self.at(self._folds_end - self.now, lambda: self._step(result))

    _announced: tuple[int, str] | None = None

    def _announce(self, action: do.Announce) -> None:
        if action.training:
            self.asked.setdefault(action.round, set()).update(action.cohort)
        work = (action.round, self.digest)
        if not (action.training and work == self._announced):
            self._work_offset = len(self.control)
        self._announced = work
        training = records.Training(local_epochs=1, batch_size=1, learning_rate=1.0)
        self._tell(
            records.Announced(
                run=RUN,
                epoch=1,
                round=action.round,
                version=action.version,
                base=self.digest,
                model=_bulk(self.digest),
                cohort=action.cohort,
                training=training if action.training else None,
                evaluate=action.evaluate,
                evaluator=action.evaluator,
                keep_training=self.config.late_updates is LateUpdates.FOLD_NEXT,
                deadline_s=action.deadline_s,
                updates_topic="updates",
            )
        )

    def _commit(self, commit: do.CommitRound) -> happened.RoundCommitted:
        self._check(commit)
        self.commits.append(commit)
        self.digest = _digest(self.digest, [update.offset for update in commit.accepted])
        self._tell(
            records.Closed(
                run=RUN,
                epoch=1,
                round=commit.round,
                version=commit.round,
                digest=self.digest,
                accepted={update.client: update.offset for update in commit.accepted},
                refused=dict(commit.refused),
            )
        )
        if commit.following is not None:
            self._announce(commit.following)
        return happened.RoundCommitted(commit.round, self.digest)

    def _tell(self, record: records.ControlRecord) -> None:
        self.control.append(record)
        for process in list(self.processes.values()):
            delay = self.random.uniform(0, 2 * self.weather.delay_s)
            self.at(delay, lambda p=process: self._read_control(p))

    # ---- what must hold -------------------------------------------------------------------------

    def _check(self, commit: do.CommitRound) -> None:
        clients = [update.client for update in commit.accepted]
        if len(set(clients)) != len(clients):
            raise Broken(f"round {commit.round}: a client counts twice in {clients}")
        earlier = {
            (update.client, update.round) for each in self.commits for update in each.accepted
        }
        for update in commit.accepted:
            if (update.client, update.round) in earlier:
                raise Broken(f"{update.client} counts twice for round {update.round}")
            manifest = self.events[update.offset]
            if not (
                isinstance(manifest, records.Updated)
                and manifest.client == update.client
                and manifest.round == update.round
            ):
                raise Broken(f"round {commit.round}: offset {update.offset} is no such manifest")
        if both := set(clients) & set(commit.refused):
            raise Broken(f"round {commit.round}: {both} accepted and refused")
        for update in commit.accepted:
            if update.client not in self.asked[update.round]:
                raise Broken(f"{update.client} was not asked in round {update.round}")
        order = [(update.round != commit.round, update.offset) for update in commit.accepted]
        if order != sorted(order):
            raise Broken(f"round {commit.round}: folded out of order: {order}")
        on_time = sum(update.round == commit.round for update in commit.accepted)
        if on_time < self.config.quorum and not commit.below_quorum:
            raise Broken(f"round {commit.round} closed with {on_time} updates and does not say so")
        if commit.below_quorum and self.config.on_timeout is not OnTimeout.PROCEED:
            raise Broken(f"round {commit.round} went on below the quorum")
        if commit.round != len(self.commits) + 1:
            raise Broken(f"round {commit.round} after {len(self.commits)} rounds")


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _event_of(record: records.EventRecord, offset: int) -> happened.Event:
    client, incarnation = record.client, record.incarnation
    match record:
        case records.Joined():
            return happened.ClientJoined(client, incarnation, offset)
        case records.Left():
            return happened.ClientLeft(client, incarnation)
        case records.Failed():
            return happened.WorkFailed(client, incarnation, record.round, record.reason)
        case records.Evaluated():
            return happened.EvaluationArrived(
                client,
                incarnation,
                record.version,
                record.digest,
                TestSet(record.test_set),
                record.examples,
                record.metrics,
            )
        case records.Updated():
            return happened.UpdateArrived(
                client, incarnation, offset, record.round, record.base, record.examples
            )
        case _:
            return happened.ClientSeen(client, incarnation)
