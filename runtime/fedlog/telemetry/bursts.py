"""Saying once what happens a thousand times: a flood of bad records is a few lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

BURST_S = 10.0


@dataclass
class _Burst:
    told_at: float
    untold: int = 0


class Bursts:
    """For each kind the first line at once, then how many followed, at most once in BURST_S.

    Kinds are the caller's own words, and few.
    """

    def __init__(
        self, log: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """what: the plural of what happens, as in "12 more WHAT (kind) within 10 s"."""
        self._log = log
        self._what = what
        self._clock = clock
        self._bursts: dict[tuple[str, int], _Burst] = {}

    def say(self, kind: str, message: str, *values: object, level: int = logging.WARNING) -> None:
        now = self._clock()
        burst = self._bursts.setdefault((kind, level), _Burst(float("-inf")))
        if burst.untold or now - burst.told_at < BURST_S:
            burst.untold += 1
            self.tell()
            return
        burst.told_at = now
        self._log.log(level, message, *values)

    def tell(self) -> None:
        """Sum up the bursts that are BURST_S old; to be called now and then."""
        now = self._clock()
        for (kind, level), burst in self._bursts.items():
            since_s = now - burst.told_at
            if burst.untold and since_s >= BURST_S:
                what = (burst.untold, self._what, kind, since_s)
                self._log.log(level, "%d more %s (%s) within %.0f s", *what)
                burst.told_at, burst.untold = now, 0
