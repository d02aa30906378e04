"""When to look again at a log that will answer after a while.

Some brokers (the embedded one) do not wake a fetch that waits: it ends by its own time, with what
has come. A fetch costs about 2 ms of CPU on both sides together, so many readers that look again
and again slow each other down, and one that looks too rarely is late. So a reader that awaits an
answer learns how long answers take, and looks for the first time shortly before.
"""

from __future__ import annotations

LONGEST_NAP_S = 0.1
BUSY_NAP_S = 0.05
"""The end of the work cuts this nap short."""
WAIT_S = {True: 0.25, False: 0.01}
"""How long a fetch may wait at the broker, by whether it wakes waiting fetches."""

_EARLY = 0.75  # the first look comes after this share of the usual time: answers vary
_SLOWING = 8  # later looks are late by at most this part of the time that it took
_MEMORY = 0.7


class Pace:
    """Times in seconds on a monotonic clock. Used under the caller's lock or in one thread."""

    def __init__(self, *, wakes: bool) -> None:
        """wakes: the broker wakes waiting fetches, so there is never a reason to nap."""
        self._wakes = wakes
        self._since = 0.0
        self._awaiting = False
        self._usual_s = 0.0

    def await_answer(self, now: float) -> None:
        """The other side was asked or told something and will answer."""
        self._since = now
        self._awaiting = True

    def answered(self, now: float) -> None:
        """It spoke."""
        if self._awaiting:
            self._usual_s = _MEMORY * self._usual_s + (1 - _MEMORY) * (now - self._since)
        self._since = now
        self._awaiting = False

    def nap_s(self, now: float, *, busy: bool = False) -> float:
        """How long to leave the log alone.

        busy: the other side waits for work that is being done here, so it has little to say.
        """
        if self._wakes:
            return 0.0
        if busy:
            return BUSY_NAP_S
        elapsed_s = now - self._since
        until_s = _EARLY * self._usual_s - elapsed_s if self._awaiting else 0.0
        return min(until_s if until_s > 0 else elapsed_s / _SLOWING, LONGEST_NAP_S)
