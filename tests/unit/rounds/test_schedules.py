"""Generated schedules: whatever is lost, repeated, late or killed, the invariants hold and the job
ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unit.rounds.simulation import Federation, Weather, federation

CHANCE = st.sampled_from([0.0, 0.02, 0.1, 0.3])
FEW, MANY = 200, 4000
Schedule = tuple[dict[str, Any], Weather, int]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    clients = draw(st.integers(1, 6))
    quorum = draw(st.integers(1, clients))
    participation: dict[str, Any] = {
        "minClients": quorum,
        "overSelection": draw(st.sampled_from(["1", "1.5"])),
        "joinTimeoutSeconds": draw(st.sampled_from([5, 30])),
        "roundTimeoutSeconds": draw(st.sampled_from([4, 20, 60])),
        "lostAfterSeconds": draw(st.sampled_from([7, 15])),
        "onTimeout": draw(st.sampled_from(["Retry", "Retry", "Proceed", "Fail"])),
        "maxRetries": draw(st.integers(0, 3)),
        "lateUpdates": draw(st.sampled_from(["Discard", "FoldNext"])),
    }
    if draw(st.booleans()):
        participation["clientsPerRound"] = draw(st.integers(quorum, clients))
    every = draw(st.integers(0, 2))
    spec: dict[str, Any] = {
        "clients": [{"name": "site", "replicas": clients}],
        "rounds": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 100)),
        "participation": participation,
        "evaluation": {"every": every},
    }
    if draw(st.booleans()):
        spec["evaluation"]["heldOut"] = {}
    if every and draw(st.booleans()):
        spec["stopWhen"] = draw(st.sampled_from([{"value": "0.96"}, {"patience": 1}]))
    weather = Weather(
        delay_s=draw(st.sampled_from([0.01, 0.3])),
        loses_process=draw(CHANCE),
        comes_back=draw(st.sampled_from([0.5, 1.0])),
        duplicates=draw(CHANCE),
        fails=draw(CHANCE),
        unfit=draw(CHANCE),
        fold_s=draw(st.sampled_from([0.0, 2.0])),
        silences=draw(CHANCE),
        pauses=draw(CHANCE),
        twins=draw(CHANCE),
        straggler_s=draw(st.sampled_from([0.0, 10.0, 100.0])),
        inline=draw(st.booleans()),
        trimmed=draw(CHANCE),
        shows_aborted=draw(st.booleans()),
        can_trim=draw(st.booleans()),
        crashes=draw(st.sampled_from([0.0, 0.01, 0.03, 0.1])),
        stalls=draw(st.sampled_from([0.0, 0.01, 0.05])),
        most_mishaps=draw(st.integers(0, 8)),
        both=draw(st.sampled_from([0.0, 0.3])),
        second_server=draw(st.booleans()),
    )
    return spec, weather, draw(st.integers(0, 2**32))


def longest_s(made: Federation) -> float:
    """By then every deadline has passed, one after the other, again for every mishap."""
    participation = made.job.spec.participation
    phases_s = participation.join_timeout_seconds + participation.round_timeout_seconds
    tries = participation.max_retries + 2
    return (
        tries * phases_s * (made.job.spec.rounds + 2)
        # A pause, a lease of those that stand by, and what the journal did not know of a deadline.
        + made.weather.most_mishaps * (120 + phases_s)
    )


def generated(count: int) -> Callable[[Callable[[Schedule], None]], Callable[[], None]]:
    """A test of so many schedules; which ones, its name decides."""

    def decorate(test: Callable[[Schedule], None]) -> Callable[[], None]:
        quiet = list(HealthCheck)
        chosen = settings(
            max_examples=count,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=quiet,
        )
        return chosen(given(schedules())(test))

    return decorate


def play(schedule: Schedule) -> None:
    with federation(*schedule) as made:
        made.run(longest_s(made))
        (first, *_) = made.results
        if first.outcome == "Complete" and first.reason.endswith("rounds done"):
            assert first.rounds == made.job.spec.rounds


@generated(FEW)
def test_every_schedule_keeps_the_invariants_and_ends(schedule: Schedule) -> None:
    play(schedule)


@generated(FEW)
def test_other_schedules_do_so_too(schedule: Schedule) -> None:
    play(schedule)


@generated(FEW)
def test_and_others_again(schedule: Schedule) -> None:
    play(schedule)


@pytest.mark.soak
@generated(MANY)
def test_many_schedules_keep_the_invariants_and_end(schedule: Schedule) -> None:
    play(schedule)


STORM = Weather(
    loses_process=0.1,
    duplicates=0.1,
    unfit=0.05,
    pauses=0.1,
    crashes=0.05,
    stalls=0.05,
    most_mishaps=5,
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_same_schedule_gives_the_same_versions(seed: int) -> None:
    spec = {
        "clients": [{"name": "site", "replicas": 5}],
        "rounds": 4,
        "participation": {"roundTimeoutSeconds": 60},
    }
    seen = []
    for _ in range(2):
        with federation(spec, STORM, seed) as made:
            made.run(1e4)
            seen.append((made.results[0].digest, made.commits, made.trace))
    assert seen[0] == seen[1]


def test_in_fair_weather_every_client_trains_once_a_round() -> None:
    spec = {
        "clients": [{"name": "site", "replicas": 10}],
        "rounds": 5,
        "participation": {"minClients": 10},
    }
    with federation(spec, Weather(), 1) as made:
        made.run(1000)
        (result,) = made.results
        assert result.outcome == "Complete"
        assert made.trainings == 50
        assert set(result.participation.values()) == {5}
        assert [m.version for m in made.measured] == [0, 1, 2, 3, 4, 5]


def test_a_server_that_dies_costs_nobody_a_training() -> None:
    """Killed at random between two writes, again and again: the clients notice nothing."""
    spec = {
        "clients": [{"name": "site", "replicas": 6}],
        "rounds": 5,
        "participation": {"minClients": 6},
    }
    crashes = 0
    for seed in range(10):
        with federation(spec, Weather(crashes=0.1, most_mishaps=6), seed) as made:
            made.run(1e4)
            assert made.results[0].outcome == "Complete"
            assert made.trainings == 30
            crashes += made.crashes
    assert crashes >= 40
