"""The learning rate of every round."""

from __future__ import annotations

import math

from fedlog.job.model import Schedule, Training


def learning_rate(training: Training, round: int, rounds: int) -> float:  # noqa: A002 - the field's word
    """The clients' learning rate in one round, a function of its arguments alone.

    round: 0 for the first. rounds: `spec.rounds`; only Cosine depends on it. Cosine (Loshchilov and
    Hutter 2017, without restarts) would reach `floor` in the round after the last one.
    Raises ValueError for a round outside 0 .. rounds - 1.
    """
    if not 0 <= round < rounds:
        raise ValueError(f"round is {round}, allowed is 0 to {rounds - 1}")
    rate = float(training.learning_rate)
    schedule = training.schedule
    match schedule.name:
        case Schedule.CONSTANT:
            return rate
        case Schedule.STEP:
            return rate * float(schedule.factor) ** (round // schedule.every)
        case Schedule.EXPONENTIAL:
            return rate * float(schedule.factor) ** round
        case Schedule.COSINE:
            floor = float(schedule.floor)
            return rate * (floor + (1 - floor) * (1 + math.cos(math.pi * round / rounds)) / 2)
