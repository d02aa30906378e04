"""The state machine of a job's rounds.

A job goes through phases::

    Joining --enough clients--> Training --closed--> Closing --committed--> Training …
       ^                                                 |
       +------------- too few are left -----------------+--last version--> Evaluating --> Ended

What holds whatever arrives, in whatever order: a client counts at most once in a version; updates
are folded in the order of their offsets, late ones after those on time; every phase has a
deadline; the end names how many took part. (An update that replaces one whose chunks were gone is
folded when that is found out.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from fedlog.job.model import LateUpdates, OnTimeout, TestSet
from fedlog.learning.selection.random import select_random
from fedlog.rounds.actions import (
    Action,
    Announce,
    CommitRound,
    Finish,
    FoldUpdate,
    Measured,
    Notice,
    Refuse,
    TakeCut,
    WelcomeClient,
)
from fedlog.rounds.config import EVALUATOR, RoundsConfig
from fedlog.rounds.events import (
    Aborted,
    ClientJoined,
    ClientLeft,
    ClientSeen,
    CutTaken,
    EvaluationArrived,
    Event,
    EventsRead,
    RoundCommitted,
    Tick,
    UpdateArrived,
    UpdateFolded,
    UpdateRefused,
    WorkFailed,
)
from fedlog.rounds.measuring import Judge, VersionFigures
from fedlog.rounds.membership import Membership
from fedlog.rounds.phase import Phase
from fedlog.rounds.standing import OpenWork, Standing

LATENESS_ROUNDS = 10
"""A late update of an older round than this is refused; the log is kept for so long."""


REUPLOADS = 3
"""So often in a round a client is asked to write an update again whose chunks are gone."""


class Work(StrEnum):
    """What became of one client's work in the current round."""

    ASKED = "asked"
    ARRIVED = "arrived"
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    LEFT = "left"


@dataclass
class RoundState:
    """The round that is open. `outstanding`: asked, alive, nothing arrived yet."""

    number: int
    wanted: int
    deadline: float
    evaluate: bool
    """The version is measured on the clients' test data."""
    evaluator: bool
    """The evaluator is asked, and has not failed."""
    cohort: dict[str, Work] = field(default_factory=dict)
    outstanding: set[str] = field(default_factory=set)
    unmeasured: set[str] = field(default_factory=set)
    folding: dict[int, FoldUpdate] = field(default_factory=dict)
    accepted: list[FoldUpdate] = field(default_factory=list)
    spare: deque[FoldUpdate] = field(default_factory=deque)
    refused: dict[str, str] = field(default_factory=dict)
    again: dict[str, FoldUpdate] = field(default_factory=dict)
    """Updates that came once more while the first is being folded: its chunks may be gone."""
    asked_again: dict[str, int] = field(default_factory=dict)
    reupload: set[str] = field(default_factory=set)
    retries: int = 0
    cut_asked: bool = False
    cut: int | None = None
    asked_at_change: int = -1
    below_quorum: bool = False


class Engine:
    """One job's rounds. Not thread-safe; everything it holds can be deep-copied."""

    def __init__(self, config: RoundsConfig, *, digest: str, now: float) -> None:
        """Start with version 0, whose identity is `digest`, at time `now` (seconds, monotonic)."""
        self.config = config
        self.phase = Phase.JOINING
        self.version = 0
        self.digests = {0: digest}
        self.membership = Membership(config.lost_after_s)
        self.round: RoundState | None = None
        self.figures = VersionFigures(0, digest)
        self.judge = Judge(config.stop)
        self.last_counted: dict[str, int] = {}
        self.late: dict[str, FoldUpdate] = {}
        self.participation: dict[str, int] = dict.fromkeys(config.clients, 0)
        self._known = frozenset(config.clients) | ({EVALUATOR} if config.evaluator else set())
        self._deadline = now + config.join_timeout_s
        self._end_at = (
            math.inf if config.active_deadline_s is None else now + config.active_deadline_s
        )
        self._join_retries = 0
        self._position = 0
        self._asked: dict[int, set[str]] = {}  # by round, as far back as late updates count
        self._counted_before: dict[int, int | None] = {}  # last_counted before this manifest
        self._commit: CommitRound | None = None  # on its way to the journal
        self._stop_reason: str | None = None
        self._actions: list[Action] = []

    @classmethod
    def resume(cls, config: RoundsConfig, standing: Standing, now: float) -> Engine:
        """Go on where another engine stopped, at time `now` (seconds, monotonic).

        The caller then hands in what is on `events` since the version was made, in order.
        """
        engine = cls(config, digest=standing.digests[standing.version], now=now)
        engine.version = standing.version
        engine.digests = dict(standing.digests)
        engine.figures = VersionFigures(standing.version, standing.digests[standing.version])
        engine.judge = Judge.at(config.stop, standing.judgement)
        engine.last_counted = dict(standing.accepted)
        engine.participation |= standing.participation
        for update in standing.late:
            engine.late[update.client] = update
            engine._count(update)
        members = {c: joinings for c, joinings in standing.members.items() if c in engine._known}
        engine.membership.restore(members, now)
        for client, number in standing.finishing.items():
            if client in engine.membership.members:
                engine.membership.members[client].finishing = number
        engine._asked = {number: set(clients) for number, clients in standing.asked.items()}
        engine._stop_reason = standing.stop_reason or None
        if standing.active_s is not None:
            engine._end_at = now + standing.active_s
        if standing.outcome is not None:
            engine.phase = Phase.COMPLETE if standing.outcome == "Complete" else Phase.FAILED
        elif standing.work is not None:
            engine._open(standing.work.announce, now, emit=False)
            if engine.round is not None:
                engine.round.wanted = standing.work.wanted
                engine.round.retries = standing.work.retries
        elif standing.deadline_s is not None:
            engine._deadline = now + standing.deadline_s
        return engine

    # ---- what others may ask --------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.phase.ended

    def deadline(self) -> float:
        """When the current phase gives up waiting, on the clock of `step`."""
        return min(self._end_at, self.round.deadline if self.round else self._deadline)

    def active_deadline(self) -> float:
        """When the run as a whole is given up, on the clock of `step`; inf for never."""
        return self._end_at

    def open_work(self, now: float) -> OpenWork | None:
        """What the open phase asks for, for the journal; None while nothing is asked."""
        current = self.round
        if current is None or self.phase is Phase.CLOSING:
            return None
        training = self.phase is Phase.TRAINING
        announce = Announce(
            round=current.number,
            version=self.version,
            cohort=tuple(sorted(current.cohort)),
            training=training,
            evaluate=current.evaluate,
            evaluator=current.evaluator,
            deadline_s=max(0.0, current.deadline - now),
        )
        return OpenWork(announce, current.wanted, current.retries)

    def work_of(self, announce: Announce) -> OpenWork:
        """What `announce` opens."""
        cohort = len(announce.cohort)
        return OpenWork(announce, min(self.config.wanted or cohort, cohort))

    @property
    def stop_reason(self) -> str:
        """Why the current version is the last one, where it is so before all rounds are done."""
        return self._stop_reason or ""

    def finishing(self) -> dict[str, int]:
        """Clients that still train for a closed round, and which."""
        members = self.membership.members
        return {c: m.finishing for c, m in members.items() if m.finishing is not None}

    def waiting_for(self) -> list[str]:
        """Whose word the current phase waits for."""
        if self.ended:
            return []
        if self.round is not None:
            names = set(self.round.outstanding)
            if self.phase is Phase.EVALUATING:
                names = {c for c in self.round.unmeasured if self.membership.is_live(c)}
            if self._evaluator_pending():
                names.add(EVALUATOR)
            return sorted(names)
        free = set(self.membership.available())
        return sorted(c for c in self._known if c not in free)

    # ---- the one way in -------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Action]:
        """Take one event at time `now` (seconds, monotonic, never before an earlier call's)."""
        self._actions = []
        self._take(event, now)
        if not self.ended:
            self._lose_silent(now)
            self._advance(now)
        return self._actions

    def _take(self, event: Event, now: float) -> None:
        match event:
            case ClientJoined():
                self._join(event, now)
            case ClientSeen():
                self._see(event.client, event.incarnation, now)
            case ClientLeft():
                self._leave(event)
            case UpdateArrived():
                self._arrive(event, now)
            case WorkFailed():
                self._fail_work(event, now)
            case EvaluationArrived():
                self._measure(event, now)
            case UpdateFolded():
                self._folded(event)
            case UpdateRefused():
                self._refused(event, now)
            case CutTaken():
                if self.round is not None and self.round.cut_asked:
                    self.round.cut = event.end_offset
            case EventsRead():
                self._position = max(self._position, event.position)
                self.membership.read(event.at_end, now)
            case RoundCommitted():
                self._take_committed(event, now)
            case Aborted():
                if not self.ended:
                    self._finish(Phase.FAILED, "Aborted", event.reason)
            case Tick():
                pass

    def _emit(self, action: Action) -> None:
        self._actions.append(action)

    # ---- members --------------------------------------------------------------------------------

    def _join(self, event: ClientJoined, now: float) -> None:
        client = event.client
        if client not in self._known:
            self._emit(Refuse(client, "unknown-client"))
            return
        if self.membership.is_former(client, event.incarnation):
            self._emit(Refuse(client, "superseded"))
            return
        fresh = self.membership.join(client, event.incarnation, event.offset, now)
        failed = (Work.FAILED, Work.REFUSED)
        if fresh and self.round and self.round.cohort.get(client) in failed:
            self.round.cohort[client] = Work.LEFT  # a new process may succeed
        self._ask_again(client)
        counted = self.last_counted.get(client)
        self._emit(WelcomeClient(client, event.incarnation, counted, fresh))

    def _see(self, client: str, incarnation: str, now: float) -> None:
        if self.membership.see(client, incarnation, now):
            self._emit(Notice(f"{client} is back"))
            self._ask_again(client)

    def _ask_again(self, client: str) -> None:
        """A client of the cohort that is here (again) is waited for (again)."""
        current = self.round
        if current is None or current.cohort.get(client) not in (Work.ASKED, Work.LOST, Work.LEFT):
            return
        current.cohort[client] = Work.ASKED
        if self.phase is Phase.TRAINING:
            current.outstanding.add(client)

    def _leave(self, event: ClientLeft) -> None:
        if self.membership.current(event.client, event.incarnation) is None:
            return
        self.membership.leave(event.client)
        self._give_up(event.client, Work.LEFT)

    def _give_up(self, client: str, why: Work) -> None:
        current = self.round
        if current is None:
            return
        current.unmeasured.discard(client)
        if client in current.outstanding:
            current.outstanding.discard(client)
            current.cohort[client] = why

    def _lose_silent(self, now: float) -> None:
        for client in self.membership.fall_silent(now):
            silence = f"{self.config.lost_after_s:g} s of silence"
            self._emit(Notice(f"{client} is lost after {silence}", "warning"))
            self._give_up(client, Work.LOST)

    # ---- updates --------------------------------------------------------------------------------

    def _arrive(self, event: UpdateArrived, now: float) -> None:
        client, number = event.client, event.round
        member = self.membership.current(client, event.incarnation)
        if member is None:
            known = client in self.membership.members
            self._refuse(event, "superseded" if known else "not-a-member")
            return
        self._see(client, event.incarnation, now)
        self.membership.finished(member)
        update = FoldUpdate(client, event.offset, event.examples, number)
        if client == EVALUATOR:
            self._refuse(event, "not-asked")
        elif self.digests.get(number - 1) != event.base:
            self._refuse(event, "unknown-base")
        elif self.last_counted.get(client, 0) >= number:
            self._arrive_again(update)
        elif self.phase is Phase.TRAINING and self.round and self.round.number == number:
            self._arrive_on_time(update, self.round)
        else:
            self._arrive_late(update)

    def _arrive_again(self, update: FoldUpdate) -> None:
        """The client's update of this round counts already, unless its chunks turn out to be gone:
        then the client has been asked for them by a server before this one.
        """
        current = self.round
        if current is None or not any(
            (first.client, first.round) == (update.client, update.round)
            for first in current.folding.values()
        ):
            self._refuse(update, "duplicate")
            return
        if update.client in current.again:
            self._refuse(current.again[update.client], "duplicate")
        current.again[update.client] = update

    def _arrive_on_time(self, update: FoldUpdate, current: RoundState) -> None:
        client = update.client
        if current.cohort.get(client) not in (Work.ASKED, Work.LOST, Work.LEFT, Work.FAILED):
            asked_before = client in current.cohort
            self._refuse(update, "duplicate" if asked_before else "not-asked")
            return
        current.cohort[client] = Work.ARRIVED
        current.outstanding.discard(client)
        current.unmeasured.discard(client)
        self._count(update)
        current.spare.append(update)
        self._fold_spare(current)

    def _fold_spare(self, current: RoundState) -> None:
        """Fold waiting updates in log order, as far as they are wanted and came in time."""
        while (
            current.spare
            and len(current.accepted) + len(current.folding) < current.wanted
            and (current.cut is None or current.spare[0].offset < current.cut)
        ):
            self._fold(current.spare.popleft(), current)

    def _fold(self, update: FoldUpdate, current: RoundState) -> None:
        current.folding[update.offset] = update
        self._emit(update)

    def _arrive_late(self, update: FoldUpdate) -> None:
        client = update.client
        if self.round is not None and self.round.number == update.round:
            self.round.outstanding.discard(client)  # it came while the round was closing
        if self.config.late_updates is LateUpdates.DISCARD or self.ended:
            self._refuse(update, "late")
        elif client not in self._asked.get(update.round, ()):
            self._refuse(update, "not-asked")
        elif client in self.late:
            self._refuse(update, "duplicate")
        else:
            self.late[client] = update
            self._count(update)

    def _refuse(self, update: UpdateArrived | FoldUpdate, reason: str) -> None:
        self._emit(Refuse(update.client, reason, update.offset))

    def _folded(self, event: UpdateFolded) -> None:
        if self.round is not None and event.offset in self.round.folding:
            update = self.round.folding.pop(event.offset)
            self.round.accepted.append(update)
            self._drop_again(update.client, self.round)

    def _drop_again(self, client: str, current: RoundState) -> None:
        if (second := current.again.pop(client, None)) is not None:
            self._refuse(second, "duplicate")

    def _refused(self, event: UpdateRefused, now: float) -> None:
        current = self.round
        if current is None or event.offset not in current.folding:
            return
        update = current.folding.pop(event.offset)
        self._uncount(update)
        self._refuse(update, event.reason)
        if event.missing and (
            self._take_again(update, current) or self._ask_for_lost_chunks(update, current, now)
        ):
            return
        self._drop_again(update.client, current)
        current.refused[update.client] = event.reason
        if update.client in current.cohort and update.round == current.number:
            current.cohort[update.client] = Work.REFUSED
        current.asked_at_change = -1  # somebody else may be asked
        if self.phase is Phase.TRAINING:
            self._fold_spare(current)

    def _take_again(self, gone: FoldUpdate, current: RoundState) -> bool:
        """Fold what came instead. Only here is an update folded after others of a higher offset."""
        if gone.client not in current.again or self.phase is not Phase.TRAINING:
            return False
        update = current.again.pop(gone.client)
        self._count(update)
        current.spare = deque(sorted((*current.spare, update), key=lambda each: each.offset))
        self._fold_spare(current)
        return True

    def _ask_for_lost_chunks(self, update: FoldUpdate, current: RoundState, now: float) -> bool:
        """A client keeps its update until the round is closed: it writes the chunks again."""
        client = update.client
        if update.round != current.number:
            current.reupload.add(client)
            return False
        again = current.asked_again.get(client, 0)
        if (
            self.phase is not Phase.TRAINING
            or not self.membership.is_live(client)
            or again >= REUPLOADS
        ):
            return False
        current.asked_again[client] = again + 1
        self._ask(current, [client], now)
        self._fold_spare(current)
        return True

    def _count(self, update: FoldUpdate) -> None:
        self._counted_before[update.offset] = self.last_counted.get(update.client)
        self.last_counted[update.client] = update.round

    def _uncount(self, update: FoldUpdate) -> None:
        before = self._counted_before.pop(update.offset, None)
        if self.last_counted.get(update.client) != update.round:
            return  # a later one counts
        if before is None:
            del self.last_counted[update.client]
        else:
            self.last_counted[update.client] = before

    def _fail_work(self, event: WorkFailed, now: float) -> None:
        member = self.membership.current(event.client, event.incarnation)
        if member is None:
            return
        self._see(event.client, event.incarnation, now)
        self.membership.finished(member)
        current = self.round
        self._emit(
            Notice(f"{event.client} failed in round {event.round}: {event.reason}", "warning")
        )
        if current is None or current.number != event.round:
            return
        if event.client == EVALUATOR:
            current.evaluator = False
        if event.client in current.outstanding:
            current.refused[event.client] = f"failed: {event.reason}"[:200]
            current.asked_at_change = -1  # somebody else may be asked
        self._give_up(event.client, Work.FAILED)

    # ---- evaluations ----------------------------------------------------------------------------

    def _measure(self, event: EvaluationArrived, now: float) -> None:
        if self.membership.current(event.client, event.incarnation) is None:
            self._emit(Refuse(event.client, "not-a-member"))
            return
        self._see(event.client, event.incarnation, now)
        expected = TestSet.HELD_OUT if event.client == EVALUATOR else TestSet.CLIENTS
        if event.version != self.figures.version or event.digest != self.figures.digest:
            self._emit(Refuse(event.client, "late-evaluation"))
        elif event.test_set is not expected:
            self._emit(Refuse(event.client, "wrong-test-set"))
        elif not self.figures.add(event.client, event.test_set, event.examples, event.metrics):
            self._emit(Refuse(event.client, "duplicate-evaluation"))
        if self.round is not None:
            self.round.unmeasured.discard(event.client)

    def _evaluator_pending(self) -> bool:
        return (
            self.round is not None
            and self.round.evaluator
            and self.membership.is_live(EVALUATOR)
            and not self.figures.has(EVALUATOR, TestSet.HELD_OUT)
        )

    def _take_figures(self, *, everything: bool) -> str | None:
        """Report test sets whose figures are complete (or all); why to stop, if they say so."""
        current = self.round
        stop = None
        for test_set in sorted(TestSet, key=lambda each: each is not self.config.decisive):
            complete = everything or (
                (test_set is TestSet.HELD_OUT and self.figures.has(EVALUATOR, TestSet.HELD_OUT))
                or (
                    test_set is TestSet.CLIENTS
                    and current is not None
                    and current.evaluate
                    and not current.unmeasured
                )
            )
            figures = self.figures.take(test_set) if complete else None
            if figures is None:
                continue
            best = False
            if test_set is self.config.decisive:
                best, stop = self.judge.judge(self.version, figures)
            self._emit(Measured(self.version, test_set, figures, best))
            if stop is not None:
                break  # the other test set is completed by the final evaluation
        return stop

    # ---- transitions ----------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if now >= self._end_at:
            self._finish(
                Phase.FAILED,
                "DeadlineExceeded",
                f"not finished within activeDeadlineSeconds ({self.config.active_deadline_s:g})",
            )
        elif self.phase is Phase.JOINING:
            self._advance_joining(now)
        elif self.round is None:
            return  # the server commits
        elif self.phase is Phase.TRAINING:
            self._advance_training(self.round, now)
        elif self.phase is Phase.CLOSING:
            self._advance_closing(self.round)
        else:
            self._advance_evaluating(self.round, now)

    def _trainers(self) -> list[str]:
        return sorted(c for c in self.membership.available() if c != EVALUATOR)

    def _advance_joining(self, now: float) -> None:
        everybody = self.membership.live_count >= len(self._known)
        if self.version == 0 and not everybody and now < self._deadline:
            return  # the first round waits for all
        trainers = self._trainers()
        if len(trainers) >= self.config.quorum:
            missing = self.waiting_for()
            if missing:
                names = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
                self._emit(Notice(f"starting without {len(missing)} clients: {names}", "warning"))
            self._join_retries = 0
            self._open(self._announcement(trainers), now)
        elif now >= self._deadline:
            self._below_quorum_joining(len(trainers), now)

    def _below_quorum_joining(self, joined: int, now: float) -> None:
        config = self.config
        message = (
            f"{joined} of {len(config.clients)} clients joined within {config.join_timeout_s:g} s, "
            f"minClients is {config.quorum}"
        )
        if self.version > 0:
            message = (
                f"{joined} of {len(config.clients)} clients are free for round {self.version + 1} "
                f"after {config.join_timeout_s:g} s, minClients is {config.quorum}"
            )
        if config.on_timeout is OnTimeout.PROCEED and joined >= 1:
            self._emit(Notice(f"{message}: proceeding, as onTimeout asks", "warning"))
            self._open(self._announcement(self._trainers()), now)
            return
        if config.on_timeout is OnTimeout.FAIL or self._join_retries >= config.max_retries:
            self._finish(Phase.FAILED, "BelowQuorum", message)
            return
        self._join_retries += 1
        self._deadline = now + config.join_timeout_s
        self._emit(
            Notice(
                f"{message}: waiting again ({self._join_retries}/{config.max_retries})", "warning"
            )
        )

    def _evaluation_due(self, version: int) -> bool:
        every = self.config.evaluate_every
        return every > 0 and version % every == 0

    def _announcement(self, trainers: list[str], *, version: int | None = None) -> Announce:
        """Training of the next round, on `version` (default: the current one)."""
        version = self.version if version is None else version
        wanted = min(self.config.wanted or len(trainers), len(trainers))
        asked = min(len(trainers), math.ceil(wanted * self.config.over_selection))
        cohort = select_random(trainers, asked, seed=self.config.seed, round=version + 1)
        evaluate = self._evaluation_due(version)
        return Announce(
            round=version + 1,
            version=version,
            cohort=tuple(sorted(cohort)),
            training=True,
            evaluate=evaluate,
            evaluator=evaluate and self.config.evaluator,
            deadline_s=self.config.round_timeout_s,
        )

    def _open(self, announce: Announce, now: float, *, emit: bool = True) -> None:
        """Open the round that `announce` asks for."""
        self.round = RoundState(
            number=announce.round,
            wanted=self.work_of(announce).wanted,
            deadline=now + announce.deadline_s,
            evaluate=announce.evaluate,
            evaluator=announce.evaluator,
            cohort=dict.fromkeys(announce.cohort, Work.ASKED),
            outstanding={c for c in announce.cohort if self.membership.is_live(c)},
            asked_at_change=self.membership.changes,
        )
        if announce.evaluate:
            self.round.unmeasured = set(self.round.outstanding)
        if announce.training:
            self._asked[announce.round] = set(announce.cohort)
        self.phase = Phase.TRAINING if announce.training else Phase.EVALUATING
        if not announce.training:
            self.round.outstanding = set()
        if emit:
            self._emit(announce)

    def _advance_training(self, current: RoundState, now: float) -> None:
        stop = self._take_figures(everything=False)
        if stop is not None:
            self._stop_early(stop, now)
            return
        if not current.cut_asked and (now >= current.deadline or self._hopeless(current)):
            current.cut_asked = True
            self._emit(TakeCut())
        if current.folding:
            return
        count = len(current.accepted)
        at_deadline = current.cut is not None and self._position >= current.cut
        complete = count >= current.wanted or (
            not current.outstanding and count >= self.config.quorum
        )
        if at_deadline:
            if count >= self.config.quorum:
                self._close(current, now)
            else:
                self._below_quorum(current, now)
        elif complete and not self._evaluator_pending():
            self._close(current, now)
        elif not complete:
            self._ask_substitutes(current, now)

    def _hopeless(self, current: RoundState) -> bool:
        """Below the quorum, and waiting cannot help: all others tried and failed."""
        return (
            not current.outstanding
            and not current.folding
            and len(current.accepted) < self.config.quorum
            and all(
                work in (Work.ARRIVED, Work.REFUSED, Work.FAILED)
                for work in current.cohort.values()
            )
            and all(client in current.cohort for client in self._trainers())
        )

    def _ask_substitutes(self, current: RoundState, now: float) -> None:
        """Ask others where clients were lost or failed, once per change in who is there."""
        if current.asked_at_change == self.membership.changes:
            return
        current.asked_at_change = self.membership.changes
        missing = current.wanted - len(current.accepted) - len(current.outstanding)
        if missing <= 0:
            return
        others = [c for c in self._trainers() if c not in current.cohort]
        missing = min(missing, len(others))
        chosen = select_random(others, missing, seed=self.config.seed, round=current.number)
        self._ask(current, chosen, now)

    def _ask(self, current: RoundState, clients: Iterable[str], now: float) -> None:
        """Announce the open round's work to more clients."""
        asked = tuple(sorted(clients))
        if not asked:
            return
        for client in asked:
            current.cohort[client] = Work.ASKED
            current.outstanding.add(client)
        self._asked[current.number].update(asked)
        self._emit(
            Announce(
                round=current.number,
                version=self.version,
                cohort=asked,
                training=True,
                evaluate=current.evaluate,
                evaluator=False,
                deadline_s=max(0.0, current.deadline - now),
            )
        )

    def _below_quorum(self, current: RoundState, now: float) -> None:
        config, count = self.config, len(current.accepted)
        when = f"at its deadline ({config.round_timeout_s:g} s)"
        if now < current.deadline:
            client, why = next(iter(current.refused.items()), ("nobody", "no reason given"))
            when = f"and nobody is left to ask ({client}: {why})"
        message = (
            f"round {current.number} has {count} of the {config.quorum} updates that minClients "
            f"asks for {when}"
        )
        if config.on_timeout is OnTimeout.PROCEED and count >= 1:
            self._emit(Notice(f"{message}: proceeding, as onTimeout asks", "warning"))
            self._close(current, now)
        elif config.on_timeout is OnTimeout.FAIL or current.retries >= config.max_retries:
            self._finish(Phase.FAILED, "BelowQuorum", message)
        else:
            current.retries += 1
            current.cut, current.cut_asked = None, False
            current.deadline = now + config.round_timeout_s
            self._fold_spare(current)
            self._emit(
                Notice(
                    f"{message}: announced again ({current.retries}/{config.max_retries})",
                    "warning",
                )
            )
            again = [c for c, work in current.cohort.items() if work is not Work.ARRIVED]
            live = set(self._trainers())
            others = [c for c in live if c not in current.cohort]
            self._ask(current, [c for c in again if c in live] + others, now)

    def _close(self, current: RoundState, now: float) -> None:
        """Nothing more counts as on time. Late updates of before are folded now, if asked for."""
        stop = self._take_figures(everything=True)
        if stop is not None:
            self._stop_early(stop, now)
            return
        self.phase = Phase.CLOSING
        current.below_quorum = len(current.accepted) < self.config.quorum
        fold_next = self.config.late_updates is LateUpdates.FOLD_NEXT
        if fold_next:
            on_time = {update.client for update in current.accepted}
            for client in sorted(self.late, key=lambda c: self.late[c].offset):
                update = self.late[client]
                if client in on_time:
                    self._refuse(update, "superseded-by-on-time")
                else:
                    self._fold(update, current)
            self.late.clear()
        for update in current.spare:
            if fold_next:
                self.late[update.client] = update
            else:
                self._uncount(update)
                late = current.cut is not None and update.offset >= current.cut
                current.refused[update.client] = "late" if late else "surplus"
        current.spare.clear()
        self._advance_closing(current)

    def _advance_closing(self, current: RoundState) -> None:
        if current.folding:
            return
        self.round = None
        number = current.number
        unfinished = sorted(current.outstanding)
        if self.config.late_updates is LateUpdates.FOLD_NEXT:
            for client in unfinished:
                self.membership.members[client].finishing = number
        accepted = {update.client for update in current.accepted}
        on_time = {update.client for update in current.accepted if update.round == number}
        lost = [c for c, w in current.cohort.items() if w in (Work.LOST, Work.LEFT)]
        late = sum(update.round != number for update in current.accepted)
        self._commit = CommitRound(
            round=number,
            accepted=tuple(current.accepted),
            refused={c: why for c, why in current.refused.items() if c not in accepted},
            unanswered=tuple(
                sorted(c for c in current.cohort if c not in on_time and c not in current.refused)
            ),
            reupload=tuple(sorted(current.reupload)),
            lost=tuple(sorted(lost)),
            selected=len(current.cohort),
            wanted=current.wanted,
            late=late,
            below_quorum=current.below_quorum,
            following=self._following(number),
        )
        self._emit(self._commit)

    def _following(self, version: int) -> Announce | None:
        """What to announce together with the new version."""
        trainers = self._trainers()
        if version < self.config.rounds:
            if len(trainers) < self.config.quorum:
                return None
            return self._announcement(trainers, version=version)
        return self._final_evaluation(version, everybody=True)

    def _final_evaluation(self, version: int, *, everybody: bool) -> Announce:
        """Measure the last version where it was not measured yet."""
        live = sorted(c for c in self.membership.members if self.membership.is_live(c))
        cohort = tuple(
            c
            for c in live
            if c != EVALUATOR and (everybody or not self.figures.settled(c, TestSet.CLIENTS))
        )
        # It may come later; it is waited for only while it is there.
        evaluator = self.config.evaluator and (
            everybody or not self.figures.settled(EVALUATOR, TestSet.HELD_OUT)
        )
        return Announce(
            round=version,
            version=version,
            cohort=cohort,
            training=False,
            evaluate=bool(cohort),
            evaluator=evaluator,
            deadline_s=self.config.round_timeout_s,
        )

    def _take_committed(self, event: RoundCommitted, now: float) -> None:
        commit, self._commit = self._commit, None
        if commit is None or commit.round != event.version:
            return
        for update in commit.accepted:
            self.participation[update.client] += 1
        self.version = event.version
        self.digests[event.version] = event.digest
        self.figures = VersionFigures(event.version, event.digest)
        self._forget(event.version - LATENESS_ROUNDS)
        if commit.following is not None:
            self._open(commit.following, now, emit=False)
            return
        self.phase = Phase.JOINING
        self._deadline = now + self.config.join_timeout_s
        self._emit(
            Notice(
                f"{len(self._trainers())} clients are free for round {event.version + 1}, "
                f"minClients is {self.config.quorum}: waiting for more",
                "warning",
            )
        )

    def _forget(self, oldest: int) -> None:
        """Let go of rounds up to `oldest`: late updates of those do not count any more."""
        self.digests.pop(oldest - 1, None)
        self._asked.pop(oldest, None)
        kept = {update.offset for update in self.late.values()}
        self._counted_before = {o: r for o, r in self._counted_before.items() if o in kept}
        for member in self.membership.members.values():
            if member.finishing is not None and member.finishing <= oldest:
                self.membership.finished(member)

    def _stop_early(self, why: str, now: float) -> None:
        """The current version is the last one; what is being trained is thrown away."""
        self._emit(Notice(f"stopping after version {self.version}: {why}"))
        self._stop_reason = why
        self._open(self._final_evaluation(self.version, everybody=False), now)

    def _advance_evaluating(self, current: RoundState, now: float) -> None:
        waiting = current.unmeasured or self._evaluator_pending()
        if waiting and now < current.deadline:
            self._take_figures(everything=False)
            return
        if waiting:
            names = ", ".join(self.waiting_for()[:10])
            self._emit(Notice(f"the last version was not measured by: {names}", "warning"))
        self._take_figures(everything=True)
        rounds = f"{self.version} of {self.config.rounds} rounds"
        if self._stop_reason is None:
            self._finish(Phase.COMPLETE, "AllRoundsDone", f"{rounds} done")
        else:
            self._finish(Phase.COMPLETE, "StopConditionMet", f"{self._stop_reason} ({rounds})")

    def _finish(self, phase: Phase, reason: str, message: str) -> None:
        if self.round is not None and phase is Phase.FAILED:
            self._take_figures(everything=True)
        self.phase = phase
        self.round = None
        outcome: Literal["Complete", "Failed"] = "Complete" if phase is Phase.COMPLETE else "Failed"
        self._emit(Finish(outcome, reason, message))
