from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from fedlog.transport.base import Record
from fedlog.transport.dense import MAX_TRIES, DenseOrder


def record(offset: int) -> Record:
    return Record(offset, 0, None, b"%d" % offset)


class Script:
    """A partition whose fetches leave out what `hidden(offset, fetch number)` says."""

    def __init__(self, end: int, hidden: Callable[[int, int], bool]) -> None:
        self.end = end
        self.hidden = hidden
        self.fetches: list[int] = []

    def fetch(self, offset: int, count: int = 4) -> list[Record]:
        self.fetches.append(offset)
        number = len(self.fetches)
        there = [o for o in range(offset, self.end) if not self.hidden(o, number)]
        return [record(o) for o in there[:count]]


def follow(script: Script, order: DenseOrder) -> list[int]:
    """What a reader does: fetch on from where the last fetch ended, or where it is sent back."""
    got: list[int] = []
    position = order.position
    while order.position < script.end:
        fetched = script.fetch(position)
        ready, back = order.accept(fetched)
        got += [each.offset for each in ready]
        position = fetched[-1].offset + 1 if back is None else back.offset
    return got


def test_without_holes_every_record_passes_in_one_go() -> None:
    script = Script(10, lambda offset, number: False)
    assert follow(script, DenseOrder("events/0", 0)) == list(range(10))
    assert script.fetches == [0, 4, 8]


@pytest.mark.parametrize("hole", [0, 3, 4, 8])
def test_a_record_that_a_fetch_leaves_out_is_gone_back_for(hole: int) -> None:
    seen_hidden: list[int] = []

    def hidden(offset: int, number: int) -> bool:
        if offset != hole or seen_hidden:
            return False
        seen_hidden.append(number)
        return True

    script = Script(10, hidden)
    assert follow(script, DenseOrder("events/0", 0)) == list(range(10))
    assert hole in script.fetches[1:]


def test_each_record_passes_once_when_a_fetch_repeats_some() -> None:
    order = DenseOrder("events/0", 0)
    assert [r.offset for r in order.accept([record(0), record(1)])[0]] == [0, 1]
    assert [r.offset for r in order.accept([record(1), record(2)])[0]] == [2]


def test_a_hole_that_stays_is_passed_after_bounded_tries_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script(9, lambda offset, number: offset in (5, 6))
    with caplog.at_level(logging.WARNING):
        assert follow(script, DenseOrder("run.events/0", 0)) == [0, 1, 2, 3, 4, 7, 8]
    assert len(script.fetches) <= MAX_TRIES + 4
    (warning,) = caplog.messages
    assert "run.events/0" in warning
    assert "5 to 6" in warning


def test_pauses_grow_and_are_bounded_and_each_hole_has_its_own_tries() -> None:
    order = DenseOrder("events/0", 0)

    def tries(offset: int) -> list[float]:
        pauses = []
        while True:
            _, back = order.accept([record(offset)])
            if back is None:
                return pauses
            pauses.append(back.pause_s)

    first, second = tries(1), tries(3)
    assert first == second
    assert len(first) == MAX_TRIES
    assert first == sorted(first)
    assert 0 < sum(first) < 5


def test_seeking_starts_afresh() -> None:
    order = DenseOrder("events/0", 0)
    order.accept([record(5)])
    order.seek(7)
    ready, back = order.accept([record(5), record(7)])
    assert ([r.offset for r in ready], back, order.position) == ([7], None, 8)
