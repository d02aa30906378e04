"""Reading without holes: which of the fetched records are next, and where to go back to.

Tansu sometimes hands a reader that follows the end record n+1 before n, and never n (about once
in 30,000 records with many producers on one partition); a fetch at n finds it. So whoever needs
every record counts, and goes back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fedlog.transport.base import Record

log = logging.getLogger(__name__)

MAX_TRIES = 8
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True)
class GoBack:
    """Fetch again at `offset`, after `pause_s`."""

    offset: int
    pause_s: float


class DenseOrder:
    """Turns what fetches bring into each record exactly once, in order."""

    def __init__(self, name: str, position: int) -> None:
        """`name` is for warnings; `position` is the offset that comes first."""
        self.position = position
        self._name = name
        self._tries = 0

    def seek(self, offset: int) -> None:
        self.position = offset
        self._tries = 0

    def accept(self, fetched: Sequence[Record]) -> tuple[list[Record], GoBack | None]:
        """The records that are next, and what to do when one is missing before the rest.

        Offsets below the position are dropped. A hole is asked for MAX_TRIES times, then passed
        with a warning.
        """
        ready: list[Record] = []
        for record in fetched:
            if record.offset < self.position:
                continue
            if record.offset > self.position:
                if self._tries < MAX_TRIES:
                    pause_s = min(_FIRST_PAUSE_S * 2**self._tries, _LONGEST_PAUSE_S)
                    self._tries += 1
                    return ready, GoBack(self.position, pause_s)
                log.warning(
                    "%s: offsets %d to %d are not on the log (asked %d times); passing over them",
                    self._name,
                    self.position,
                    record.offset - 1,
                    self._tries,
                )
            self._tries = 0
            self.position = record.offset + 1
            ready.append(record)
        return ready, None
