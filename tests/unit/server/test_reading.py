"""Silence counts only where `events` is read to its end."""

from __future__ import annotations

from fedlog.server.reading import EndWatch


class End:
    def __init__(self) -> None:
        self.offset = 0
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.offset


def test_a_small_batch_out_of_a_backlog_is_not_the_end() -> None:
    end = End()
    end.offset = 500
    watch = EndWatch(end)
    assert not watch.at_end(17, 0.0)  # one fetch of large records
    assert not watch.at_end(34, 0.1)
    assert watch.at_end(500, 0.9)
    assert end.asked == 1


def test_in_a_busy_system_the_end_of_a_moment_ago_is_reached() -> None:
    end = End()
    watch = EndWatch(end)
    reached = 0
    for tick in range(100):  # ten seconds; ten new records a tick, read one tick later
        end.offset = 10 * tick
        reached += watch.at_end(10 * (tick - 1), tick / 10)
    assert reached > 50
    assert end.asked <= 11


def test_an_old_answer_is_not_believed() -> None:
    end = End()
    watch = EndWatch(end)
    assert watch.at_end(0, 0.0)
    end.offset = 100
    assert not watch.at_end(50, 5.0)
