"""What the engine needs to know of a job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from fedlog.job.model import (
    EVALUATOR_GROUP,
    FederatedJob,
    LateUpdates,
    Mode,
    OnTimeout,
    TestSet,
)

EVALUATOR = f"{EVALUATOR_GROUP}/0"


@dataclass(frozen=True)
class StopRule:
    """`spec.stopWhen`; the defaults watch accuracy for the best version and never stop."""

    metric: str = "accuracy"
    mode: Mode = Mode.MAX
    value: float | None = None
    patience: int | None = None


@dataclass(frozen=True)
class RoundsConfig:
    """Durations in seconds; counts of training clients. See `fedlog.job.model` for the meanings."""

    clients: tuple[str, ...]
    rounds: int
    seed: int = 0
    wanted: int | None = None
    quorum: int = 1
    over_selection: Decimal = Decimal(1)
    join_timeout_s: float = 120.0
    round_timeout_s: float = 600.0
    lost_after_s: float = 15.0
    on_timeout: OnTimeout = OnTimeout.RETRY
    max_retries: int = 3
    late_updates: LateUpdates = LateUpdates.DISCARD
    evaluate_every: int = 1
    evaluator: bool = False
    stop: StopRule = StopRule()
    decisive: TestSet = TestSet.CLIENTS
    active_deadline_s: float | None = None

    @classmethod
    def of(cls, job: FederatedJob) -> RoundsConfig:
        spec, participation = job.spec, job.spec.participation
        wanted = participation.clients_per_round
        if participation.fraction is not None:
            share = math.ceil(participation.fraction * spec.client_count)
            wanted = max(share, participation.min_clients)
        stop = spec.stop_when
        return cls(
            clients=tuple(spec.client_ids()),
            rounds=spec.rounds,
            seed=spec.seed,
            wanted=wanted,
            quorum=participation.min_clients,
            over_selection=participation.over_selection,
            join_timeout_s=participation.join_timeout_seconds,
            round_timeout_s=participation.round_timeout_seconds,
            lost_after_s=participation.lost_after_seconds,
            on_timeout=participation.on_timeout,
            max_retries=participation.max_retries,
            late_updates=participation.late_updates,
            evaluate_every=spec.evaluation.every,
            evaluator=spec.evaluation.held_out is not None,
            stop=StopRule()
            if stop is None
            else StopRule(
                stop.metric,
                stop.mode,
                None if stop.value is None else float(stop.value),
                stop.patience,
            ),
            decisive=spec.decisive_test_set,
            active_deadline_s=spec.active_deadline_seconds,
        )
