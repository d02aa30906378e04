"""Whether `events` is read to its end, which is when a client's silence may be counted."""

from __future__ import annotations

from collections.abc import Callable

_VALID_S = 1.0
"""So long the answer to where the log ends is good enough; less than a client may be silent."""


class EndWatch:
    """Knows that the end was reached. A poll that brings little, or nothing, does not prove it:
    a fetch is bounded, and may still be under way.
    """

    def __init__(self, end_offset: Callable[[], int]) -> None:
        """end_offset: asks the log; called about once a second."""
        self._ask = end_offset
        self._end = 0
        self._asked_at = float("-inf")

    def at_end(self, position: int, now: float) -> bool:
        """Whether everything below `position` is all that there was a moment ago.

        now: seconds on the monotonic clock.
        """
        if now - self._asked_at > _VALID_S:
            self._end = self._ask()
            self._asked_at = now
        return position >= self._end
