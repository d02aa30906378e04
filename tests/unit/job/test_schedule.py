"""Learning rates by hand: lr 0.8, factor 0.5, over 4 rounds where it matters."""

from __future__ import annotations

from decimal import Decimal

import pytest

from fedlog.job.model import LearningRateSchedule, Schedule, Training
from fedlog.job.schedule import learning_rate


def rates(rounds: int, **schedule: object) -> list[float]:
    training = Training(
        learning_rate=Decimal("0.8"), schedule=LearningRateSchedule.model_validate(schedule)
    )
    return [learning_rate(training, r, rounds) for r in range(rounds)]


def test_constant() -> None:
    assert rates(3, name=Schedule.CONSTANT) == [0.8, 0.8, 0.8]


def test_step_halves_after_every_two_rounds() -> None:
    expected = [0.8, 0.8, 0.4, 0.4, 0.2]
    assert rates(5, name=Schedule.STEP, every=2, factor="0.5") == pytest.approx(expected)


def test_exponential() -> None:
    expected = [0.8, 0.4, 0.2, 0.1]
    assert rates(4, name=Schedule.EXPONENTIAL, factor="0.5") == pytest.approx(expected)


def test_cosine() -> None:
    # cos of 0, 45, 90, 135 degrees: 1, 0.70711, 0, -0.70711; half of (1 + cos) times 0.8.
    expected = [0.8, 0.682843, 0.4, 0.117157]
    assert rates(4, name=Schedule.COSINE) == pytest.approx(expected, abs=1e-6)


def test_cosine_leaves_a_floor() -> None:
    # 0.8 * (0.25 + 0.75 * (1 + cos) / 2) for cos = 1 and 0.
    assert rates(2, name=Schedule.COSINE, floor="0.25") == pytest.approx([0.8, 0.5])


@pytest.mark.parametrize("round", [-1, 3])
def test_rounds_outside_the_job_are_refused(round: int) -> None:  # noqa: A002
    with pytest.raises(ValueError, match="allowed is 0 to 2"):
        learning_rate(Training(), round, 3)
