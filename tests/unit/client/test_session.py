from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from fedlog import exit_codes
from fedlog.client.session import (
    AbortTraining,
    Action,
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
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.records import (
    Announced,
    Closed,
    Failed,
    Heartbeat,
    Joined,
    Left,
    Stopped,
    Training,
    Welcome,
)

RUN = "fedlog.default.digits.manual"
ME = "site-a/0"
OTHER = "site-b/3"
EVALUATOR = "evaluator/0"
MINE = "0123456789abcdef"
FOREIGN = "fedcba9876543210"


def base(version: int) -> str:
    return f"{version:064x}"


def announced(round_: int = 1, **changes: Any) -> Announced:
    version = changes.pop("version", round_ - 1)
    fields: dict[str, Any] = {
        "run": RUN,
        "epoch": 1,
        "round": round_,
        "version": version,
        "base": base(version),
        "model": BulkManifest(
            size=1,
            encoded_size=1,
            chunk_bytes=1,
            digest=base(0),
            raw_digest=base(version),
            digests="",
        ),
        "cohort": (ME, OTHER),
        "training": Training(local_epochs=1, batch_size=10, learning_rate=0.1),
        "evaluate": False,
        "evaluator": False,
        "keep_training": False,
        "deadline_s": 20.0,
        "updates_topic": f"{RUN}.updates",
    }
    return Announced(**(fields | changes))


def closed(round_: int = 1, **changes: Any) -> Closed:
    fields: dict[str, Any] = {
        "run": RUN,
        "epoch": 1,
        "round": round_,
        "version": round_,
        "digest": base(round_),
        "accepted": {},
    }
    return Closed(**(fields | changes))


def welcome(incarnation: str = MINE, *, client: str = ME, **changes: Any) -> Welcome:
    fields: dict[str, Any] = {"run": RUN, "epoch": 1, "clients": {client: incarnation}}
    return Welcome(**(fields | changes))


def stopped(**changes: Any) -> Stopped:
    fields: dict[str, Any] = {
        "run": RUN,
        "epoch": 1,
        "outcome": "Complete",
        "reason": "all rounds are done",
        "round": 3,
    }
    return Stopped(**(fields | changes))


def new_session(client: str = ME) -> ClientSession:
    session = ClientSession(client, MINE, RUN, heartbeat_s=3.0, server_timeout_s=600.0)
    session.start(0.0)
    return session


def member(client: str = ME) -> ClientSession:
    """Welcomed at offset 10, time 1."""
    session = new_session(client)
    assert session.receive(welcome(client=client), 10, 1.0) == ()
    return session


def trainer(**changes: Any) -> tuple[ClientSession, Announced]:
    """A member that trains round 1, announced at offset 11."""
    session = member()
    work = announced(**changes)
    assert Train(work) in session.receive(work, 11, 2.0)
    return session, work


def uploaded_client(**changes: Any) -> ClientSession:
    """A member whose update for round 1 is on the log, at offset 77 of events."""
    session, work = trainer(**changes)
    session.trained(1, work.base, 3.0)
    session.uploaded(1, work.base, 77, 4.0)
    return session


def records(actions: Actions, kind: type[Any]) -> list[Any]:
    return [a.record for a in actions if isinstance(a, Send) and isinstance(a.record, kind)]


def ends(actions: Actions) -> list[int]:
    return [a.exit_code for a in actions if isinstance(a, End)]


# ---- joining ------------------------------------------------------------------------------------


def test_the_first_word_is_joined_with_the_own_incarnation() -> None:
    session = ClientSession(ME, MINE, RUN, label="laptop")
    assert session.start(5.0) == (
        Send(Joined(run=RUN, client=ME, incarnation=MINE, label="laptop")),
    )


def test_joined_is_repeated_after_at_most_two_seconds_then_ever_more_slowly() -> None:
    session = new_session()
    sent = [0.0]
    now = 0.0
    while now < 120.0:
        now = session.wake_at
        if records(session.tick(now), Joined):
            sent.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert 1.5 <= gaps[0] <= 2.0
    assert all(7.5 <= gap <= 10.0 for gap in gaps[5:])
    assert len(set(gaps[5:])) > 1, "the jitter spreads them"


def test_two_clients_repeat_at_different_times() -> None:
    assert new_session(ME).wake_at != new_session(OTHER).wake_at


def test_the_own_welcome_ends_the_repetition() -> None:
    session = member()
    assert session.joined
    assert not [
        record for now in range(2, 50) for record in records(session.tick(float(now)), Joined)
    ]


def test_a_welcome_of_somebody_else_is_not_mine() -> None:
    session = new_session()
    session.receive(welcome(client=OTHER), 4, 1.0)
    assert not session.joined


def test_nothing_is_trained_before_the_welcome() -> None:
    session = new_session()
    assert session.receive(announced(), 9, 1.0) == ()


def test_the_welcome_leads_back_to_the_standing_announcement() -> None:
    session = new_session()
    session.receive(announced(), 9, 1.0)
    assert session.receive(welcome(announcement=9), 10, 1.0) == (SeekControl(9),)
    assert session.receive(announced(), 9, 1.0) == (Train(announced()),)
    assert session.receive(welcome(announcement=9), 10, 1.0) == ()


def test_an_old_announcement_written_once_more_stops_nothing() -> None:
    session, _ = trainer(round=2, version=1, base=base(1))
    assert session.receive(announced(1), 50, 6.0) == ()
    assert session.working_on == 2


def test_what_a_server_asks_for_after_its_welcome_it_does_not_have() -> None:
    """The update counted when the client joined; its chunks are gone since then."""
    session = new_session()
    session.receive(welcome(committed={ME: 2}, announcement=5), 10, 1.0)
    assert not asks(session.receive(announced(2), 5, 1.0))
    assert asks(session.receive(announced(2, cohort=(ME,)), 11, 1.0))


def asks(actions: Actions) -> bool:
    return any(isinstance(action, Train) for action in actions)


def test_an_update_that_counts_already_is_not_trained_again() -> None:
    session = new_session()
    session.receive(welcome(announcement=9, committed={ME: 1}), 10, 1.0)
    assert session.receive(announced(1, evaluate=True), 9, 1.0) == ()
    assert session.receive(announced(2), 11, 2.0) == (Train(announced(2)),)


def test_an_update_of_an_earlier_round_does_not_stop_this_one() -> None:
    session = new_session()
    session.receive(welcome(announcement=9, committed={ME: 1}), 10, 1.0)
    assert session.receive(announced(2), 9, 1.0) == (Train(announced(2)),)


def test_no_welcome_for_the_time_allowed_ends_as_unavailable() -> None:
    session = new_session()
    assert not ends(session.tick(599.9))
    actions = session.tick(600.0)
    assert records(actions, Left)
    assert ends(actions) == [exit_codes.UNAVAILABLE]
    assert session.ended


# ---- identity -----------------------------------------------------------------------------------


def test_a_predecessors_welcome_before_the_own_one_ends_nothing() -> None:
    session = new_session()
    assert session.receive(welcome(FOREIGN), 5, 1.0) == ()
    session.receive(welcome(announcement=3), 10, 1.0)
    assert session.receive(welcome(FOREIGN), 5, 1.0) == (), "read again after the seek"
    assert not session.ended


def test_a_later_welcome_of_another_incarnation_ends_as_replaced() -> None:
    session, work = trainer()
    actions = session.receive(welcome(FOREIGN), 12, 3.0)
    assert AbortTraining(1, work.base) in actions
    assert ends(actions) == [exit_codes.REPLACED]
    assert not records(actions, Joined)


def test_of_two_that_live_the_one_that_joined_last_stays() -> None:
    log = [welcome(MINE), welcome(FOREIGN)]
    first = ClientSession(ME, MINE, RUN)
    second = ClientSession(ME, FOREIGN, RUN)
    for session in (first, second):
        session.start(0.0)
        for offset, record in enumerate(log):
            session.receive(record, offset, 1.0)
    assert (first.ended, second.ended) == (True, False)


def test_a_replacement_announced_by_a_new_server_does_not_join_again() -> None:
    actions = member().receive(welcome(FOREIGN, epoch=2), 12, 3.0)
    assert [type(a) for a in actions] == [End]


# ---- epochs -------------------------------------------------------------------------------------


def test_records_of_an_older_server_are_dropped() -> None:
    session = member()
    session.receive(welcome(epoch=2), 11, 2.0)
    assert session.receive(announced(1, epoch=1), 12, 2.0) == ()
    assert session.receive(stopped(epoch=1), 13, 2.0) == ()


def test_a_new_server_is_joined_again_and_may_close_the_round_anew() -> None:
    session = member()
    session.receive(closed(1), 11, 2.0)
    actions = session.receive(announced(1, epoch=2), 12, 3.0)
    assert Train(announced(1, epoch=2)) in actions
    assert records(actions, Joined)
    session.receive(welcome(epoch=2, announcement=12), 13, 3.0)
    assert not records(session.tick(8.0), Joined)


def test_training_in_progress_goes_on_under_a_new_server() -> None:
    session, work = trainer()
    actions = session.receive(announced(1, epoch=2), 12, 3.0)
    assert not [a for a in actions if not isinstance(a, Send)]
    assert session.trained(1, work.base, 4.0) == (Upload(1, work.base),)


def test_a_new_server_that_publishes_the_announcement_again_gets_no_second_upload() -> None:
    session = uploaded_client()
    actions = session.receive(announced(1, epoch=2), 12, 5.0)
    assert not [a for a in actions if not isinstance(a, Send)]


def test_a_round_that_only_a_dead_server_knew_of_is_given_up() -> None:
    session = member()
    session.receive(announced(2), 11, 2.0)
    actions = session.receive(announced(1, epoch=2), 12, 3.0)
    assert AbortTraining(2, base(1)) in actions
    assert Train(announced(1, epoch=2)) in actions


# ---- a round ------------------------------------------------------------------------------------


def test_a_client_of_the_cohort_evaluates_first_then_trains() -> None:
    work = announced(1, evaluate=True)
    assert member().receive(work, 11, 2.0) == (
        Evaluate(0, work.base, "Clients", work),
        Train(work),
    )


def test_a_client_outside_the_cohort_does_nothing() -> None:
    assert member().receive(announced(1, cohort=(OTHER,), evaluate=True), 11, 2.0) == ()


def test_the_update_is_uploaded_once_trained() -> None:
    session, work = trainer()
    assert session.trained(1, work.base, 3.0) == (Upload(1, work.base),)
    assert session.uploaded(1, work.base, 77, 4.0) == ()
    assert session.working_on is None


def test_the_same_record_read_twice_is_handled_once() -> None:
    session, work = trainer()
    assert session.receive(work, 11, 2.5) == ()


def test_the_same_work_announced_again_while_training_is_the_same_work() -> None:
    session, work = trainer()
    assert session.receive(work, 15, 3.0) == ()


def test_the_server_that_names_the_client_again_has_not_got_its_update() -> None:
    session = uploaded_client()
    assert session.receive(announced(1), 15, 5.0) == (Upload(1, base(0)),)


def test_the_server_that_names_others_in_addition_asks_nothing() -> None:
    session = uploaded_client()
    assert session.receive(announced(1, cohort=(OTHER,)), 15, 5.0) == ()


@pytest.mark.parametrize("result", ["trained", "evaluated"])
def test_a_result_for_work_that_is_over_does_nothing(result: str) -> None:
    session = member()
    session.receive(announced(2), 11, 2.0)
    assert getattr(session, result)(1, base(0), 3.0) == ()


def test_a_closed_round_ends_the_training_where_late_updates_are_discarded() -> None:
    session, work = trainer()
    assert session.receive(closed(1), 12, 3.0) == (AbortTraining(1, work.base),)
    assert session.trained(1, work.base, 4.0) == ()


def test_the_next_announcement_ends_the_training_of_the_round_before() -> None:
    session, work = trainer()
    assert session.receive(announced(2), 12, 3.0) == (
        AbortTraining(1, work.base),
        Train(announced(2)),
    )


def test_a_closed_round_ends_an_upload_that_is_discarded_anyway() -> None:
    session, work = trainer()
    session.trained(1, work.base, 3.0)
    assert session.receive(closed(1), 12, 3.5) == (
        AbortTraining(1, work.base),
        Forget(1, work.base),
    )


def test_where_late_updates_count_the_client_finishes_and_sends_late() -> None:
    session, work = trainer(keep_training=True)
    assert session.receive(closed(1), 12, 3.0) == ()
    assert session.trained(1, work.base, 4.0) == (Upload(1, work.base),)


def test_a_late_client_goes_on_with_the_newest_round_only() -> None:
    session, work = trainer(keep_training=True)
    for round_, offset in ((2, 12), (3, 14)):
        assert session.receive(announced(round_, keep_training=True), offset, 3.0) == ()
    session.trained(1, work.base, 4.0)
    assert session.uploaded(1, work.base, 77, 5.0) == (Train(announced(3, keep_training=True)),)


def test_a_round_that_closed_while_it_waited_is_not_begun() -> None:
    session, work = trainer(keep_training=True)
    session.receive(announced(2, keep_training=True), 12, 3.0)
    session.receive(closed(2), 13, 3.0)
    session.trained(1, work.base, 4.0)
    assert session.uploaded(1, work.base, 77, 5.0) == ()


def test_training_of_a_round_never_begins_after_its_manifest_is_on_the_log() -> None:
    session = uploaded_client()
    for epoch, offset in ((1, 12), (2, 13), (2, 14), (3, 15)):
        actions = session.receive(announced(1, epoch=epoch), offset, 5.0)
        assert not [a for a in actions if isinstance(a, Train)]


def test_an_announcement_of_a_closed_round_asks_nothing() -> None:
    session = member()
    session.receive(closed(1), 11, 2.0)
    assert session.receive(announced(1), 12, 2.0) == ()


# ---- the kept update ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"accepted": {ME: 77}}, {"refused": {ME: "norm"}}],
    ids=["accepted", "refused"],
)
def test_it_is_kept_until_its_fate_is_known(changes: dict[str, Any]) -> None:
    session = uploaded_client()
    assert session.receive(closed(1, **changes), 12, 5.0) == (Forget(1, base(0)),)


def test_a_round_that_closes_without_it_leaves_it_for_the_next() -> None:
    session = uploaded_client()
    assert session.receive(closed(1), 12, 5.0) == ()
    assert session.receive(closed(2, accepted={ME: 77}), 13, 6.0) == (Forget(1, base(0)),)


def test_a_later_round_that_closes_without_a_word_ends_the_wait() -> None:
    session = uploaded_client()
    session.receive(closed(1), 12, 5.0)
    assert session.receive(closed(2), 13, 6.0) == (Forget(1, base(0)),)


def test_where_the_chunks_are_gone_it_is_uploaded_again() -> None:
    session = uploaded_client()
    assert session.receive(closed(1, reupload=(ME,)), 12, 5.0) == (Upload(1, base(0)),)
    assert session.uploaded(1, base(0), 90, 6.0) == ()
    assert session.receive(closed(2, accepted={ME: 90}), 13, 7.0) == (Forget(1, base(0)),)


def test_the_log_may_close_the_round_before_the_manifest_is_acknowledged() -> None:
    session, work = trainer()
    session.trained(1, work.base, 3.0)
    assert session.receive(closed(1, accepted={ME: 77}), 12, 3.5) == (Forget(1, work.base),)
    assert session.uploaded(1, work.base, 77, 3.6) == ()
    assert session.receive(announced(2), 13, 4.0) == (Train(announced(2)),)


def test_the_next_update_takes_its_place() -> None:
    session = uploaded_client()
    session.receive(announced(2), 12, 5.0)
    assert session.trained(2, base(1), 6.0) == (Forget(1, base(0)), Upload(2, base(1)))


# ---- evaluation ---------------------------------------------------------------------------------


def test_the_evaluator_measures_on_held_out_data_when_asked() -> None:
    session = member(EVALUATOR)
    assert session.receive(announced(1), 11, 2.0) == ()
    work = announced(2, evaluator=True)
    assert session.receive(work, 12, 3.0) == (Evaluate(1, work.base, "HeldOut", work),)


def test_a_trainer_is_not_asked_by_the_evaluators_flag() -> None:
    assert member().receive(announced(1, cohort=(), evaluator=True), 11, 2.0) == ()


def test_the_last_version_is_evaluated_by_all_and_trained_by_nobody() -> None:
    last = announced(3, version=3, training=None, evaluator=True)
    assert member().receive(last, 11, 2.0) == (Evaluate(3, last.base, "Clients", last),)
    assert member(EVALUATOR).receive(last, 11, 2.0) == (Evaluate(3, last.base, "HeldOut", last),)


def test_the_last_version_is_evaluated_though_its_round_was_trained() -> None:
    session = uploaded_client()
    last = announced(1, training=None)
    assert session.receive(last, 12, 5.0) == (Evaluate(0, last.base, "Clients", last),)


def test_a_late_training_makes_way_for_the_final_evaluation() -> None:
    session, work = trainer(keep_training=True)
    last = announced(2, version=2, training=None)
    assert session.receive(last, 12, 3.0) == (
        AbortTraining(1, work.base),
        Evaluate(2, last.base, "Clients", last),
    )


def test_a_slow_evaluator_skips_to_the_newest_version() -> None:
    session = member(EVALUATOR)
    works = [announced(round_, evaluator=True) for round_ in (1, 2, 3)]
    for offset, work in enumerate(works, start=11):
        session.receive(work, offset, 2.0)
    assert session.evaluated(1, works[0].base, 3.0) == (
        Evaluate(2, works[2].base, "HeldOut", works[2]),
    )


def test_an_evaluation_is_made_once() -> None:
    session = member(EVALUATOR)
    work = announced(1, evaluator=True)
    session.receive(work, 11, 2.0)
    session.evaluated(1, work.base, 3.0)
    assert session.receive(work, 12, 4.0) == ()


# ---- time ---------------------------------------------------------------------------------------


def test_heartbeats_tell_the_round_in_progress() -> None:
    session, _ = trainer()
    assert session.wake_at == 4.0
    assert session.tick(3.9) == ()
    (beat,) = records(session.tick(4.0), Heartbeat)
    assert beat.round == 1
    assert session.wake_at == 7.0


def test_there_is_no_heartbeat_before_the_welcome() -> None:
    session = new_session()
    assert not [r for now in range(100) for r in records(session.tick(float(now)), Heartbeat)]


def test_a_silent_server_is_joined_again_after_a_minute() -> None:
    session = member()
    assert not records(session.tick(60.9), Joined)
    (joined,) = records(session.tick(61.0), Joined)
    assert joined.incarnation == MINE


def test_silence_is_measured_by_the_last_deadline() -> None:
    session = member()
    session.receive(announced(1, deadline_s=100.0), 11, 2.0)
    assert not records(session.tick(201.9), Joined)
    assert records(session.tick(202.0), Joined)


def test_a_member_that_hears_nothing_ends_as_unavailable_in_the_end() -> None:
    session = member()
    session.tick(61.0)
    assert not ends(session.tick(660.0))
    assert ends(session.tick(661.0)) == [exit_codes.UNAVAILABLE]


def test_a_member_that_is_welcomed_again_stays_and_reads_on() -> None:
    session, work = trainer()
    session.tick(70.0)
    assert session.receive(welcome(announcement=11), 14, 71.0) == ()
    assert not records(session.tick(80.0), Joined)
    assert session.trained(1, work.base, 81.0) == (Upload(1, work.base),)


# ---- the end ------------------------------------------------------------------------------------


def test_stop_ends_a_member_with_ok_after_left() -> None:
    session, _work = trainer()
    actions = session.receive(stopped(), 12, 3.0)
    assert [type(a) for a in actions] == [AbortTraining, Send, End]
    assert records(actions, Left)
    assert ends(actions) == [exit_codes.OK]


def test_stop_ends_one_that_was_never_welcomed() -> None:
    assert ends(new_session().receive(stopped(outcome="Failed"), 12, 3.0)) == [exit_codes.OK]


def test_nothing_happens_after_the_end() -> None:
    session = member()
    session.receive(stopped(), 12, 3.0)
    later: list[Action] = [
        *session.receive(announced(1), 13, 4.0),
        *session.tick(1000.0),
        *session.leave(exit_codes.TERMINATED, "SIGTERM"),
        *session.failed(1, base(0), "too late", 5.0),
    ]
    assert later == []


def test_a_signal_aborts_says_left_and_ends() -> None:
    session, work = trainer()
    actions = session.leave(exit_codes.TERMINATED, "SIGTERM")
    assert actions[0] == AbortTraining(1, work.base)
    assert records(actions, Left)[0].reason == "SIGTERM"
    assert ends(actions) == [exit_codes.TERMINATED]


# ---- failure ------------------------------------------------------------------------------------


def test_a_failed_training_is_reported_and_the_client_stays() -> None:
    session, work = trainer()
    actions = session.failed(1, work.base, "ValueError: no examples", 3.0)
    (failed,) = records(actions, Failed)
    assert (failed.round, failed.reason) == (1, "ValueError: no examples")
    assert not ends(actions)
    assert session.receive(announced(2), 12, 4.0) == (Train(announced(2)),)


def test_a_server_that_asks_again_gets_another_try() -> None:
    session, work = trainer()
    session.failed(1, work.base, "out of memory", 3.0)
    assert session.receive(work, 12, 4.0) == (Train(work),)


def test_a_task_that_can_never_work_ends_the_client() -> None:
    session, work = trainer()
    actions = session.failed(1, work.base, "no data at /data", 3.0, permanent=True)
    assert records(actions, Failed)
    assert records(actions, Left)
    assert ends(actions) == [exit_codes.TASK]


def test_a_very_long_reason_is_cut() -> None:
    session, work = trainer()
    actions = session.failed(1, work.base, "x" * 5000, 3.0, permanent=True)
    assert len(records(actions, Failed)[0].reason) == 2000


def test_a_copy_is_a_snapshot() -> None:
    session = member()
    before = copy.copy(session)
    session.receive(announced(1), 11, 2.0)
    assert before.working_on is None
    assert before.receive(announced(1), 11, 2.0) == (Train(announced(1)),)
