"""Which deaths are survived, and how soon."""

import pytest

from fedlog.local.restarts import FIRST_PAUSE_S, LONGEST_PAUSE_S, Crashes, pause_s


def test_the_first_start_is_at_once_and_the_others_later_and_later():
    longest = [pause_s(times, lambda: 1.0) for times in range(1, 12)]
    assert longest[:4] == [0.0, FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert longest == sorted(longest)
    assert longest[-1] == pause_s(10_000, lambda: 1.0) == LONGEST_PAUSE_S


def test_pauses_differ_so_that_processes_do_not_start_in_step():
    assert pause_s(4, lambda: 0.0) == pause_s(4, lambda: 1.0) / 2
    assert len({pause_s(4) for _ in range(10)}) > 1


def test_crashes_count_since_the_last_progress():
    crashes = Crashes(["server"], 2)
    for _ in range(5):
        crashes.crashed()
        crashes.crashed()
        assert not crashes.exceeded
        crashes.progressed("server")
    for _ in range(3):
        crashes.crashed()
    assert crashes.exceeded


def test_one_that_never_progresses_is_found_out_among_neighbours_that_do():
    crashes = Crashes(["a/0", "b/0"], 3)
    for _ in range(4):
        assert not crashes.exceeded
        crashes.crashed()
        crashes.progressed("a/0")
    assert crashes.exceeded
    assert crashes.count == 4


@pytest.mark.parametrize("crashed", [0, 1])
def test_none_may_mean_none(crashed):
    crashes = Crashes(["server"], 0)
    for _ in range(crashed):
        crashes.crashed()
    assert crashes.exceeded is bool(crashed)
