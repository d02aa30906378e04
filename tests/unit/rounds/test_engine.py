"""The engine's rules, one by one; times are virtual seconds."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TypeVar

import pytest

from fedlog.job.model import LateUpdates, Mode, OnTimeout, TestSet
from fedlog.rounds import actions as do
from fedlog.rounds import events as happened
from fedlog.rounds.config import EVALUATOR, RoundsConfig, StopRule
from fedlog.rounds.engine import Engine
from fedlog.rounds.membership import Joining
from fedlog.rounds.phase import Phase
from fedlog.rounds.standing import Standing

A, B, C, D = (f"site/{i}" for i in range(4))
BASIC = RoundsConfig(
    clients=(A, B, C),
    rounds=2,
    quorum=2,
    join_timeout_s=10,
    round_timeout_s=60,
    lost_after_s=15,
    evaluate_every=0,
)
T = TypeVar("T")


class Bench:
    """An engine with a server that answers at once; `actions` collects everything it wanted."""

    def __init__(self, config: RoundsConfig) -> None:
        self.engine = Engine(config, digest="v0", now=0.0)
        self.now = 0.0
        self.offset = 0
        self.actions: list[do.Action] = []
        self.unfit: set[int] = set()
        self.hold_folds = False
        self.held: list[int] = []

    def step(self, event: happened.Event) -> None:
        waiting = [event]
        while waiting:
            for action in self.engine.step(waiting.pop(0), self.now):
                self.actions.append(action)
                match action:
                    case do.FoldUpdate() if self.hold_folds:
                        self.held.append(action.offset)
                    case do.FoldUpdate() if action.offset in self.unfit:
                        waiting.append(happened.UpdateRefused(action.offset, "unfit: NaN"))
                    case do.FoldUpdate():
                        waiting.append(happened.UpdateFolded(action.offset))
                    case do.TakeCut():
                        waiting.append(happened.CutTaken(self.offset))
                    case do.CommitRound():
                        waiting.append(happened.RoundCommitted(action.round, f"v{action.round}"))

    def wait(self, seconds: float, *, alive: tuple[str, ...] = ()) -> None:
        """Time passes; the clients named send heartbeats; the server reads events at its end."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            for client in alive:
                self.step(happened.ClientSeen(client, f"{client}#1"))
            self.step(happened.EventsRead(self.offset, at_end=True))

    def join(self, *clients: str, incarnation: int = 1) -> None:
        for client in clients:
            self.offset += 1
            self.step(happened.ClientJoined(client, f"{client}#{incarnation}", 0))

    def update(
        self, client: str, round_: int, base: str | None = None, *, incarnation: int = 1
    ) -> int:
        offset, self.offset = self.offset, self.offset + 1
        base = f"v{round_ - 1}" if base is None else base
        self.step(
            happened.UpdateArrived(client, f"{client}#{incarnation}", offset, round_, base, 10)
        )
        return offset

    def measure(self, client: str, version: int, accuracy: float, examples: int = 10) -> None:
        test_set = TestSet.HELD_OUT if client == EVALUATOR else TestSet.CLIENTS
        self.step(
            happened.EvaluationArrived(
                client,
                f"{client}#1",
                version,
                f"v{version}",
                test_set,
                examples,
                {"accuracy": accuracy},
            )
        )

    def all(self, kind: type[T]) -> list[T]:
        return [action for action in self.actions if isinstance(action, kind)]

    def last(self, kind: type[T]) -> T:
        return self.all(kind)[-1]

    def reasons(self) -> list[tuple[str, str]]:
        return [(each.client, each.reason) for each in self.all(do.Refuse)]


def started(config: RoundsConfig = BASIC) -> Bench:
    bench = Bench(config)
    bench.join(*config.clients, *([EVALUATOR] if config.evaluator else []))
    return bench


def test_first_round_starts_when_everybody_is_there() -> None:
    bench = Bench(BASIC)
    bench.join(A, B)
    assert bench.all(do.Announce) == []
    bench.join(C)
    assert bench.last(do.Announce) == do.Announce(
        round=1,
        version=0,
        cohort=(A, B, C),
        training=True,
        evaluate=False,
        evaluator=False,
        deadline_s=60,
    )


def test_first_round_starts_with_the_quorum_once_the_join_timeout_is_over() -> None:
    bench = Bench(BASIC)
    bench.join(A, B)
    bench.wait(9, alive=(A, B))
    assert bench.all(do.Announce) == []
    bench.wait(2, alive=(A, B))
    assert bench.last(do.Announce).cohort == (A, B)


@pytest.mark.parametrize(
    ("on_timeout", "retries", "outcome_after_s"),
    [(OnTimeout.FAIL, 3, 10), (OnTimeout.RETRY, 2, 30)],
    ids=["fail-at-once", "fail-after-retries"],
)
def test_below_quorum_at_the_start_ends_as_on_timeout_asks(
    on_timeout: OnTimeout, retries: int, outcome_after_s: int
) -> None:
    bench = Bench(replace(BASIC, on_timeout=on_timeout, max_retries=retries))
    bench.join(A)
    bench.wait(outcome_after_s - 1, alive=(A,))
    assert bench.all(do.Finish) == []
    bench.wait(2, alive=(A,))
    finish = bench.last(do.Finish)
    assert (finish.outcome, finish.reason) == ("Failed", "BelowQuorum")
    assert "1 of 3 clients joined" in finish.message


def test_below_quorum_at_the_start_proceeds_if_asked() -> None:
    bench = Bench(replace(BASIC, on_timeout=OnTimeout.PROCEED))
    bench.join(A)
    bench.wait(11, alive=(A,))
    assert bench.last(do.Announce).cohort == (A,)
    bench.update(A, 1)
    assert bench.last(do.CommitRound).below_quorum


def test_round_closes_when_all_updates_are_folded_in_log_order() -> None:
    bench = started()
    offsets = [bench.update(client, 1) for client in (C, A, B)]
    commit = bench.last(do.CommitRound)
    assert [update.client for update in commit.accepted] == [C, A, B]
    assert [update.offset for update in commit.accepted] == offsets
    assert commit.following is not None
    assert (commit.following.round, commit.following.version) == (2, 1)


def test_round_does_not_close_before_the_last_fold_is_done() -> None:
    bench = started()
    bench.hold_folds = True
    for client in (A, B, C):
        bench.update(client, 1)
    assert bench.all(do.CommitRound) == []
    for offset in bench.held:
        bench.step(happened.UpdateFolded(offset))
    assert len(bench.last(do.CommitRound).accepted) == 3


def test_replayed_manifest_counts_once() -> None:
    bench = started()
    bench.update(A, 1)
    bench.update(A, 1)
    bench.update(B, 1)
    bench.update(C, 1)
    assert [update.client for update in bench.last(do.CommitRound).accepted] == [A, B, C]
    assert bench.reasons() == [(A, "duplicate")]


def test_manifests_that_do_not_fit_are_refused_with_their_reason() -> None:
    bench = started(replace(BASIC, clients=(A, B, C, D), wanted=3))
    asked = bench.last(do.Announce).cohort
    (left_out,) = {A, B, C, D} - set(asked)
    bench.update(left_out, 1)
    bench.update(asked[0], 1, base="v7")
    bench.update(asked[0], 2, base="v1")
    bench.update(asked[0], 1, incarnation=9)
    bench.step(happened.UpdateArrived("site/9", "x", 99, 1, "v0", 10))
    assert bench.reasons() == [
        (left_out, "not-asked"),
        (asked[0], "unknown-base"),
        (asked[0], "unknown-base"),
        (asked[0], "superseded"),
        ("site/9", "not-a-member"),
    ]


def test_stranger_is_not_welcome() -> None:
    bench = Bench(BASIC)
    bench.join("other/0")
    assert bench.all(do.WelcomeClient) == []
    assert bench.reasons() == [("other/0", "unknown-client")]


def test_unfit_update_is_left_out_and_reported() -> None:
    bench = started()
    bench.unfit = {bench.offset}
    bench.update(A, 1)
    bench.update(B, 1)
    bench.update(C, 1)
    commit = bench.last(do.CommitRound)
    assert [update.client for update in commit.accepted] == [B, C]
    assert commit.refused == {A: "unfit: NaN"}


def test_over_selection_takes_the_first_wanted_updates() -> None:
    config = replace(BASIC, clients=(A, B, C, D), wanted=2, over_selection=Decimal("1.5"))
    bench = started(config)
    asked = bench.last(do.Announce).cohort
    assert len(asked) == 3
    bench.hold_folds = True
    offsets = [bench.update(client, 1) for client in asked]
    assert bench.held == offsets[:2]
    for offset in offsets[:2]:
        bench.step(happened.UpdateFolded(offset))
    commit = bench.last(do.CommitRound)
    assert [update.offset for update in commit.accepted] == offsets[:2]
    assert commit.refused == {asked[2]: "surplus"}


def test_surplus_update_takes_the_place_of_an_unfit_one() -> None:
    config = replace(BASIC, clients=(A, B, C, D), wanted=2, over_selection=Decimal("1.5"))
    bench = started(config)
    bench.hold_folds = True
    offsets = [bench.update(client, 1) for client in bench.last(do.Announce).cohort]
    bench.step(happened.UpdateRefused(offsets[0], "unfit"))
    assert bench.held == offsets
    for offset in offsets[1:]:
        bench.step(happened.UpdateFolded(offset))
    assert [u.offset for u in bench.last(do.CommitRound).accepted] == offsets[1:]


def test_lost_client_costs_its_silence_not_the_round() -> None:
    bench = started()
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(14, alive=(A, B))
    assert bench.all(do.CommitRound) == []
    bench.wait(4, alive=(A, B))
    commit = bench.last(do.CommitRound)
    assert commit.lost == (C,)
    assert commit.following is not None
    assert commit.following.cohort == (A, B)


def test_silence_does_not_count_while_the_server_reads_old_events() -> None:
    bench = started()
    bench.wait(5, alive=(A, B, C))
    bench.now += 100  # the server was away; heartbeats wait on the log
    bench.step(happened.EventsRead(bench.offset, at_end=False))
    bench.step(happened.EventsRead(bench.offset, at_end=True))
    bench.wait(10)
    assert bench.engine.membership.live_count == 3
    bench.wait(8)
    assert bench.engine.membership.live_count == 0


def test_lost_client_that_speaks_again_is_waited_for_again() -> None:
    bench = started(replace(BASIC, quorum=3))
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(20, alive=(A, B))
    assert bench.engine.waiting_for() == []
    bench.step(happened.ClientSeen(C, f"{C}#1"))
    assert bench.engine.waiting_for() == [C]
    bench.update(C, 1)
    assert len(bench.last(do.CommitRound).accepted) == 3


def test_substitute_is_asked_when_a_client_is_lost() -> None:
    bench = started(replace(BASIC, clients=(A, B, C, D), wanted=3, quorum=3))
    asked = bench.last(do.Announce).cohort
    (spare,) = {A, B, C, D} - set(asked)
    bench.update(asked[0], 1)
    bench.update(asked[1], 1)
    bench.wait(20, alive=(asked[0], asked[1], spare))
    announce = bench.last(do.Announce)
    assert (announce.round, announce.cohort) == (1, (spare,))
    bench.update(spare, 1)
    assert len(bench.last(do.CommitRound).accepted) == 3


def test_quorum_is_enough_at_the_deadline() -> None:
    bench = started()
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(61, alive=(A, B, C))
    commit = bench.last(do.CommitRound)
    assert [update.client for update in commit.accepted] == [A, B]
    assert not commit.below_quorum
    assert len(bench.all(do.TakeCut)) == 1


def test_what_is_below_the_cut_at_the_deadline_is_on_time() -> None:
    bench = started()
    bench.update(A, 1)
    bench.now = 61
    for action in bench.engine.step(happened.Tick(), 61):
        bench.actions.append(action)
    assert bench.last(do.TakeCut)
    waiting = bench.offset  # B's manifest is on the log at this offset and not read yet
    bench.step(happened.CutTaken(waiting + 1))
    assert bench.all(do.CommitRound) == []
    bench.update(B, 1)
    bench.step(happened.EventsRead(bench.offset, at_end=True))
    assert [u.client for u in bench.last(do.CommitRound).accepted] == [A, B]


def test_round_below_quorum_is_announced_again_with_the_same_work() -> None:
    bench = started(replace(BASIC, quorum=3))
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(61, alive=(A, B, C))
    announce = bench.last(do.Announce)
    assert (announce.round, announce.version, announce.cohort) == (1, 0, (C,))
    bench.update(C, 1)
    assert [u.client for u in bench.last(do.CommitRound).accepted] == [A, B, C]


def test_round_below_quorum_fails_after_its_retries() -> None:
    bench = started(replace(BASIC, quorum=3, max_retries=1))
    bench.update(A, 1)
    bench.wait(130, alive=(A, B, C))
    finish = bench.last(do.Finish)
    assert (finish.outcome, finish.reason) == ("Failed", "BelowQuorum")
    assert "round 1 has 1 of the 3 updates" in finish.message


def test_round_in_which_everybody_fails_does_not_wait_for_its_deadline() -> None:
    bench = started(replace(BASIC, max_retries=0))
    for client in (A, B, C):
        bench.step(happened.WorkFailed(client, f"{client}#1", 1, "out of memory"))
    bench.step(happened.EventsRead(bench.offset, at_end=True))
    finish = bench.last(do.Finish)
    assert bench.now == 0.0
    assert finish.reason == "BelowQuorum"
    assert "out of memory" in finish.message


def test_late_update_is_refused_by_default() -> None:
    bench = started()
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(61, alive=(A, B, C))
    bench.update(C, 1)
    assert bench.reasons() == [(C, "late")]


def late_bench() -> Bench:
    """Round 1 closed without C, which still trains; round 2 is open for A and B."""
    bench = started(replace(BASIC, late_updates=LateUpdates.FOLD_NEXT))
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(61, alive=(A, B, C))
    return bench


def test_straggler_is_left_in_peace_and_folded_next_after_those_on_time() -> None:
    bench = late_bench()
    following = bench.last(do.CommitRound).following
    assert following is not None
    assert following.cohort == (A, B)
    late = bench.update(C, 1)
    first, second = bench.update(B, 2), bench.update(A, 2)
    commit = bench.last(do.CommitRound)
    assert [(u.client, u.offset, u.round) for u in commit.accepted] == [
        (B, first, 2),
        (A, second, 2),
        (C, late, 1),
    ]
    assert commit.late == 1


def test_late_update_gives_way_to_an_update_on_time_of_the_same_client() -> None:
    bench = late_bench()
    bench.update(C, 1)
    bench.step(happened.ClientLeft(A, f"{A}#1"))
    assert bench.last(do.Announce).cohort == (C,)  # free again, and asked in A's place
    on_time = [bench.update(C, 2), bench.update(B, 2)]
    assert [u.offset for u in bench.last(do.CommitRound).accepted] == on_time
    assert bench.reasons() == [(C, "superseded-by-on-time")]


def test_restarted_client_learns_that_its_update_counts() -> None:
    bench = started()
    bench.update(A, 1)
    bench.join(A, incarnation=2)
    assert bench.last(do.WelcomeClient) == do.WelcomeClient(A, f"{A}#2", committed=1)
    bench.update(B, 1)
    bench.update(C, 1)
    assert len(bench.last(do.CommitRound).accepted) == 3


def test_zombie_does_not_take_its_identity_back() -> None:
    bench = started()
    bench.join(A, incarnation=2)
    bench.join(A, incarnation=1)
    bench.update(A, 1, incarnation=1)
    assert bench.reasons() == [(A, "superseded"), (A, "superseded")]
    bench.update(A, 1, incarnation=2)
    assert bench.engine.last_counted[A] == 1


def test_job_completes_after_all_rounds_and_the_final_evaluation() -> None:
    bench = started()
    for round_ in (1, 2):
        for client in (A, B, C):
            bench.update(client, round_)
    final = bench.last(do.CommitRound).following
    assert final is not None
    assert (final.training, final.version, final.cohort) == (False, 2, (A, B, C))
    for client, accuracy, examples in ((A, 0.5, 10), (B, 0.75, 20), (C, 1.0, 10)):
        bench.measure(client, 2, accuracy, examples)
    measured = bench.last(do.Measured)
    # (10 * 0.5 + 20 * 0.75 + 10 * 1.0) / 40 = 0.75
    assert measured.figures == do.Figures(3, 40, {"accuracy": pytest.approx(0.75)})
    finish = bench.last(do.Finish)
    assert (finish.outcome, finish.reason) == ("Complete", "AllRoundsDone")
    assert bench.engine.participation == {A: 2, B: 2, C: 2}


def test_final_evaluation_ends_at_its_deadline_without_the_silent() -> None:
    bench = started(replace(BASIC, rounds=1))
    for client in (A, B, C):
        bench.update(client, 1)
    bench.measure(A, 1, 0.5)
    bench.wait(61, alive=(A, B, C))
    assert bench.last(do.Measured).figures.clients == 1
    assert bench.last(do.Finish).outcome == "Complete"


def test_held_out_figure_stops_the_job_in_mid_round() -> None:
    config = replace(
        BASIC,
        rounds=9,
        evaluate_every=1,
        evaluator=True,
        decisive=TestSet.HELD_OUT,
        stop=StopRule(value=0.9),
    )
    bench = started(config)
    bench.measure(EVALUATOR, 0, 0.1)
    for client in (A, B, C):
        bench.measure(client, 0, 0.1)
        bench.update(client, 1)
    bench.measure(EVALUATOR, 1, 0.95)
    final = bench.last(do.Announce)
    assert (final.training, final.version, final.evaluator) == (False, 1, False)
    for client in (A, B, C):
        bench.measure(client, 1, 0.8)
    finish = bench.last(do.Finish)
    assert (finish.outcome, finish.reason) == ("Complete", "StopConditionMet")
    assert bench.engine.version == 1


@pytest.mark.parametrize(
    ("mode", "values", "stops_at"),
    [(Mode.MAX, [0.1, 0.5, 0.4, 0.5, 0.9], 3), (Mode.MIN, [0.9, 0.5, 0.6, 0.5, 0.1], 3)],
    ids=["more-is-better", "less-is-better"],
)
def test_patience_counts_evaluations_without_a_better_value(
    mode: Mode, values: list[float], stops_at: int
) -> None:
    config = replace(
        BASIC,
        rounds=9,
        evaluate_every=1,
        evaluator=True,
        decisive=TestSet.HELD_OUT,
        stop=StopRule(mode=mode, patience=2),
    )
    bench = started(config)
    for version, value in enumerate(values):
        bench.measure(EVALUATOR, version, value)
        if bench.engine.phase is not Phase.TRAINING:
            break
        for client in (A, B, C):
            bench.update(client, version + 1)
    assert bench.engine.version == stops_at
    assert [m.version for m in bench.all(do.Measured) if m.best] == [0, 1]


def test_round_waits_for_the_evaluator_but_not_for_a_lost_one() -> None:
    config = replace(BASIC, evaluate_every=1, evaluator=True, decisive=TestSet.HELD_OUT)
    bench = started(config)
    for client in (A, B, C):
        bench.update(client, 1)
    assert bench.engine.waiting_for() == [EVALUATOR]
    bench.wait(20, alive=(A, B, C))
    assert bench.last(do.CommitRound).round == 1


def test_active_deadline_ends_the_job_whatever_it_waits_for() -> None:
    bench = Bench(replace(BASIC, join_timeout_s=1000, active_deadline_s=30))
    bench.wait(31)
    assert bench.last(do.Finish).reason == "DeadlineExceeded"


def test_too_few_are_left_after_a_round_so_the_next_waits_for_them() -> None:
    bench = started()
    for client in (A, B):
        bench.update(client, 1)
    for client in (A, B):
        bench.step(happened.ClientLeft(client, f"{client}#1"))
    bench.update(C, 1)
    assert bench.engine.phase is Phase.JOINING
    bench.join(A, incarnation=2)
    assert bench.last(do.Announce).cohort == (A, C)


EVALUATED = replace(BASIC, evaluate_every=1, evaluator=True, decisive=TestSet.HELD_OUT)


def test_evaluator_that_fails_is_not_waited_for() -> None:
    bench = started(EVALUATED)
    bench.step(happened.WorkFailed(EVALUATOR, f"{EVALUATOR}#1", 1, "no held-out data"))
    for client in (A, B, C):
        bench.update(client, 1)
    assert bench.last(do.CommitRound).round == 1
    assert bench.now == 0.0


def test_evaluator_that_comes_late_measures_the_last_version() -> None:
    bench = Bench(replace(EVALUATED, rounds=1, evaluate_every=0))
    bench.join(A, B, C)
    bench.wait(11, alive=(A, B, C))
    for client in (A, B, C):
        bench.update(client, 1)
    final = bench.last(do.CommitRound).following
    assert final is not None
    assert final.evaluator  # it reads this once it is there
    bench.join(EVALUATOR)
    for client in (A, B, C):
        bench.measure(client, 1, 0.5)
    assert bench.engine.waiting_for() == [EVALUATOR]
    bench.measure(EVALUATOR, 1, 0.75)
    assert bench.last(do.Finish).outcome == "Complete"
    assert bench.last(do.Measured).test_set in TestSet
    assert {m.test_set for m in bench.all(do.Measured)} == set(TestSet)


@pytest.mark.parametrize("how", ["fails", "unfit"])
def test_substitute_is_asked_for_a_client_that_fails_or_sends_an_unfit_update(how: str) -> None:
    bench = started(replace(BASIC, clients=(A, B, C, D), wanted=3, quorum=3))
    asked = bench.last(do.Announce).cohort
    (spare,) = {A, B, C, D} - set(asked)
    if how == "fails":
        bench.step(happened.WorkFailed(asked[0], f"{asked[0]}#1", 1, "boom"))
    else:
        bench.unfit = {bench.offset}
        bench.update(asked[0], 1)
    bench.update(asked[1], 1)
    bench.update(asked[2], 1)
    assert bench.last(do.Announce).cohort == (spare,)
    bench.update(spare, 1)
    commit = bench.last(do.CommitRound)
    assert sorted(u.client for u in commit.accepted) == sorted([asked[1], asked[2], spare])
    assert list(commit.refused) == [asked[0]]


def test_straggler_that_answers_an_older_round_is_free_again() -> None:
    bench = late_bench()
    bench.wait(20, alive=(A, B))  # C is lost while it trains round 1 …
    bench.step(happened.ClientSeen(C, f"{C}#1"))  # … and comes back
    bench.update(A, 2)
    bench.update(B, 2)
    assert bench.last(do.CommitRound).round == 2
    bench.update(C, 1)
    assert C in bench.engine.membership.available()


def test_straggler_that_never_answers_does_not_hold_the_log_for_ever() -> None:
    bench = started(replace(BASIC, rounds=40, late_updates=LateUpdates.FOLD_NEXT))
    bench.update(A, 1)
    bench.update(B, 1)
    bench.wait(61, alive=(A, B, C))
    member = bench.engine.membership.members[C]
    assert member.finishing == 1
    for round_ in range(2, 14):
        bench.update(A, round_)
        bench.update(B, round_)
    assert member.finishing is None or member.finishing > 1


def test_client_is_never_both_accepted_and_refused() -> None:
    bench = started()
    bench.update(A, 1)
    bench.step(happened.WorkFailed(A, f"{A}#1", 1, "too late to fail"))
    bench.update(B, 1)
    bench.update(C, 1)
    commit = bench.last(do.CommitRound)
    assert [u.client for u in commit.accepted] == [A, B, C]
    assert commit.refused == {}


def test_late_update_of_a_client_that_was_not_asked_does_not_count() -> None:
    config = replace(
        BASIC, clients=(A, B, C, D), wanted=3, late_updates=LateUpdates.FOLD_NEXT, rounds=3
    )
    bench = Bench(config)
    bench.join(A, B, C)
    early = bench.update(A, 1)  # no round is open yet
    bench.join(D)
    asked = bench.last(do.Announce).cohort
    (left_out,) = {A, B, C, D} - set(asked)
    for client in asked:
        bench.update(client, 1)
    bench.update(left_out, 1)
    assert bench.all(do.Refuse) == [
        do.Refuse(A, "not-asked", early),
        do.Refuse(left_out, "not-asked", bench.offset - 1),
    ]
    assert len(bench.last(do.CommitRound).accepted) == 3


def test_round_that_cannot_be_committed_counts_for_nobody() -> None:
    engine = Engine(BASIC, digest="v0", now=0.0)
    for client in (A, B, C):
        engine.step(happened.ClientJoined(client, "x", 0), 0.0)
    for offset, client in enumerate((A, B, C)):
        engine.step(happened.UpdateArrived(client, "x", offset, 1, "v0", 1), 0.0)
        engine.step(happened.UpdateFolded(offset), 0.0)
    engine.step(happened.Aborted("the new model is not finite"), 0.0)
    assert engine.phase is Phase.FAILED
    assert set(engine.participation.values()) == {0}


def test_clients_that_finish_late_work_are_named_while_the_next_round_waits() -> None:
    bench = started(replace(BASIC, late_updates=LateUpdates.FOLD_NEXT))
    bench.hold_folds = True
    bench.update(A, 1)
    bench.update(B, 1)
    bench.step(happened.ClientLeft(B, f"{B}#1"))
    bench.wait(61, alive=(A, C))
    for offset in bench.held:
        bench.step(happened.UpdateFolded(offset))
    assert bench.engine.phase is Phase.JOINING
    assert bench.engine.waiting_for() == [B, C]
    assert bench.last(do.Notice).message == (
        "1 clients are free for round 2, minClients is 2: waiting for more"
    )
    bench.update(C, 1)  # late, and free again
    assert bench.last(do.Announce).cohort == (A, C)


def test_an_update_that_came_again_is_folded_where_the_firsts_chunks_are_gone() -> None:
    bench = started()
    bench.hold_folds = True
    first = bench.update(A, 1)
    later = bench.update(B, 1)
    again = bench.update(A, 1)
    bench.step(happened.UpdateRefused(first, "missing", missing=True))
    assert bench.held == [first, later, again]
    assert bench.reasons() == [(A, "missing")]
    assert len(bench.all(do.Announce)) == 1  # nobody is asked for what is there


def test_an_update_that_came_again_is_a_duplicate_once_the_first_is_folded() -> None:
    bench = started()
    bench.hold_folds = True
    first = bench.update(A, 1)
    bench.update(A, 1)
    assert bench.reasons() == []
    bench.step(happened.UpdateFolded(first))
    assert bench.reasons() == [(A, "duplicate")]


def test_a_new_process_may_do_better_than_one_whose_update_was_refused() -> None:
    bench = started()
    bench.unfit.add(bench.offset)
    bench.update(A, 1)
    bench.join(A, incarnation=2)
    assert A in bench.engine.waiting_for()
    bench.update(A, 1, incarnation=2)
    assert bench.reasons() == [(A, "unfit: NaN")]


def test_a_late_update_that_cannot_be_read_after_a_restart_leaves_the_earlier_one_counted() -> None:
    config = RoundsConfig(clients=(A, B), rounds=20, late_updates=LateUpdates.FOLD_NEXT)
    standing = Standing(
        version=7,
        digests={number: f"v{number}" for number in range(8)},
        members={client: (Joining(f"{client}#1", 0),) for client in (A, B)},
        asked={number: frozenset((A, B)) for number in range(1, 8)},
        accepted={A: 6, B: 7},
        late=(do.FoldUpdate(A, 50, 1, 7),),
    )
    engine = Engine.resume(config, standing, 0.0)
    engine.step(happened.Tick(), 1.0)
    engine.step(happened.ClientLeft(A, f"{A}#1"), 1.5)
    engine.step(happened.UpdateArrived(B, f"{B}#1", 60, 8, "v7", 1), 2.0)
    engine.step(happened.UpdateFolded(60), 2.1)
    engine.step(happened.UpdateRefused(50, "unreadable"), 2.2)
    engine.step(happened.RoundCommitted(8, "v8"), 2.3)
    engine.step(happened.ClientJoined(A, f"{A}#1", 61), 2.4)
    (refused,) = engine.step(happened.UpdateArrived(A, f"{A}#1", 62, 6, "v5", 1), 2.5)
    assert isinstance(refused, do.Refuse)
    assert refused.reason == "duplicate"
