"""Generated schedules: whatever is lost, repeated or late, the invariants hold and the job ends."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlog.job.model import LateUpdates, OnTimeout, TestSet
from fedlog.rounds.config import RoundsConfig, StopRule
from unit.rounds.simulation import Federation, Weather

CHANCE = st.sampled_from([0.0, 0.02, 0.1, 0.3])


@st.composite
def federations(draw: st.DrawFn) -> Federation:
    clients = draw(st.integers(1, 8))
    quorum = draw(st.integers(1, clients))
    wanted = draw(st.none() | st.integers(quorum, clients))
    evaluator = draw(st.booleans())
    config = RoundsConfig(
        clients=tuple(f"site/{i}" for i in range(clients)),
        rounds=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 100)),
        wanted=wanted,
        quorum=quorum,
        over_selection=draw(st.sampled_from([Decimal(1), Decimal("1.5")])),
        join_timeout_s=draw(st.sampled_from([5.0, 30.0])),
        round_timeout_s=draw(st.sampled_from([4.0, 20.0, 60.0])),
        lost_after_s=draw(st.sampled_from([7.0, 15.0])),
        on_timeout=draw(st.sampled_from(OnTimeout)),
        max_retries=draw(st.integers(0, 3)),
        late_updates=draw(st.sampled_from(LateUpdates)),
        evaluate_every=draw(st.integers(0, 2)),
        evaluator=evaluator,
        decisive=TestSet.HELD_OUT if evaluator else TestSet.CLIENTS,
        stop=draw(st.sampled_from([StopRule(), StopRule(value=0.96), StopRule(patience=1)])),
    )
    weather = Weather(
        delay_s=draw(st.sampled_from([0.01, 0.3])),
        loses_process=draw(CHANCE),
        comes_back=draw(st.sampled_from([0.5, 1.0])),
        duplicates=draw(CHANCE),
        fails=draw(CHANCE),
        refuses=draw(CHANCE),
        fold_s=draw(st.sampled_from([0.0, 2.0])),
        silences=draw(CHANCE),
        straggler_s=draw(st.sampled_from([0.0, 10.0, 100.0])),
    )
    return Federation(config, weather, seed=draw(st.integers(0, 2**32)))


@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(federations())
def test_every_schedule_keeps_the_invariants_and_ends(federation: Federation) -> None:
    config = federation.config
    tries = config.max_retries + 2
    longest = tries * (config.join_timeout_s + config.round_timeout_s) * (config.rounds + 2)

    federation.run(until_s=longest)

    finish = federation.finish
    assert finish is not None
    assert len(federation.commits) == federation.engine.version
    counted = sum(len(commit.accepted) for commit in federation.commits)
    assert counted == sum(federation.engine.participation.values())
    if finish.outcome == "Complete" and finish.reason == "AllRoundsDone":
        assert len(federation.commits) == config.rounds


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_same_schedule_gives_the_same_versions(seed: int) -> None:
    config = RoundsConfig(clients=tuple(f"site/{i}" for i in range(5)), rounds=4, quorum=2)
    weather = Weather(loses_process=0.1, duplicates=0.1, refuses=0.1)
    first, second = (Federation(config, weather, seed) for _ in range(2))
    first.run(until_s=1e5)
    second.run(until_s=1e5)
    assert first.digest == second.digest
    assert first.commits == second.commits


def test_in_fair_weather_every_client_trains_once_a_round() -> None:
    config = RoundsConfig(clients=tuple(f"site/{i}" for i in range(10)), rounds=5, quorum=10)
    federation = Federation(config, Weather(), seed=1)
    federation.run(until_s=1000)
    assert federation.finish is not None
    assert federation.finish.outcome == "Complete"
    assert federation.trainings == 50
    assert all(len(commit.accepted) == 10 for commit in federation.commits)
    assert [m.version for m in federation.measured] == [0, 1, 2, 3, 4, 5]
