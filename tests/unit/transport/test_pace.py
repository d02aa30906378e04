"""Times in seconds; each expected nap is derived beside it."""

from __future__ import annotations

import pytest

from fedlog.transport.pace import BUSY_NAP_S, LONGEST_NAP_S, Pace


def after_one_answer(took_s: float) -> Pace:
    """Asked at 10, answered `took_s` later: the usual time becomes 0.3 of it."""
    pace = Pace(wakes=False)
    pace.await_answer(10.0)
    pace.answered(10.0 + took_s)
    return pace


def test_a_log_that_wakes_its_readers_is_never_left_alone() -> None:
    pace = Pace(wakes=True)
    pace.await_answer(10.0)
    pace.answered(10.2)
    pace.await_answer(10.2)
    assert pace.nap_s(10.2) == 0.0
    assert pace.nap_s(10.2, busy=True) == 0.0


def test_the_first_answer_is_looked_for_from_the_start() -> None:
    pace = Pace(wakes=False)
    pace.await_answer(10.0)
    assert pace.nap_s(10.0) == 0.0


def test_the_first_look_comes_shortly_before_the_usual_time() -> None:
    pace = after_one_answer(0.1)  # usual: 0.3 * 0.1 = 0.03
    pace.await_answer(20.0)
    assert pace.nap_s(20.0) == pytest.approx(0.0225)  # 0.75 * 0.03
    assert pace.nap_s(20.01) == pytest.approx(0.0125)  # 10 ms of it are over


def test_a_later_answer_moves_the_usual_time_by_a_third_of_the_way() -> None:
    pace = after_one_answer(0.1)
    pace.await_answer(20.0)
    pace.answered(20.05)  # usual: 0.7 * 0.03 + 0.3 * 0.05 = 0.036
    pace.await_answer(30.0)
    assert pace.nap_s(30.0) == pytest.approx(0.027)  # 0.75 * 0.036


def test_an_answer_that_is_overdue_is_looked_for_less_and_less_often() -> None:
    pace = after_one_answer(0.1)
    pace.await_answer(20.0)
    assert pace.nap_s(20.08) == pytest.approx(0.01)  # 0.08 / 8
    assert pace.nap_s(20.4) == pytest.approx(0.05)  # 0.4 / 8
    assert pace.nap_s(25.0) == LONGEST_NAP_S


def test_a_long_usual_time_never_makes_a_nap_too_long_for_news() -> None:
    pace = after_one_answer(60.0)
    pace.await_answer(100.0)
    assert pace.nap_s(100.0) == LONGEST_NAP_S


def test_after_an_answer_more_may_follow_at_once() -> None:
    pace = after_one_answer(0.1)  # answered at 10.1
    assert pace.nap_s(10.1) == 0.0
    assert pace.nap_s(10.26) == pytest.approx(0.02)  # 0.16 / 8


def test_an_unasked_record_does_not_change_the_usual_time() -> None:
    pace = after_one_answer(0.1)
    pace.answered(50.0)
    pace.await_answer(60.0)
    assert pace.nap_s(60.0) == pytest.approx(0.0225)


def test_who_works_for_the_other_side_looks_rarely() -> None:
    pace = after_one_answer(0.1)
    assert pace.nap_s(10.1, busy=True) == BUSY_NAP_S
