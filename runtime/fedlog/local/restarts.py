"""When a process that died is started again, and when no more. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from fedlog import exit_codes

PERMANENT = frozenset(
    (exit_codes.USAGE, exit_codes.TASK, exit_codes.REPLACED, exit_codes.DENIED),
)
"""Exit codes after which starting again does not help."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


def pause_s(times: int, jitter: Callable[[], float] = random.random) -> float:
    """How long to wait before start number `times`, from 1: at once first, then twice as long each
    time, between half of that and all of it, so that processes do not start in step.
    """
    if times <= 1:
        return 0.0
    whole = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 2, 16))
    return whole * (0.5 + jitter() / 2)


class Crashes:
    """Crashes of one process, counted for each of those who live in it since their last progress.

    One that crashes its process again and again is found out although its neighbours progress.
    """

    def __init__(self, names: Iterable[str], limit: int) -> None:
        self._counts = dict.fromkeys(names, 0)
        self.limit = limit

    @property
    def count(self) -> int:
        """Crashes of who has most."""
        return max(self._counts.values(), default=0)

    @property
    def exceeded(self) -> bool:
        return self.count > self.limit

    def crashed(self) -> None:
        for name in self._counts:
            self._counts[name] += 1

    def progressed(self, name: str) -> None:
        self._counts[name] = 0
