"""What was refused, and from whom: counted, told in the log once a burst, listed in the status."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from fedlog.telemetry.bursts import Bursts
from fedlog.telemetry.status import MAX_REFUSALS, Refusal
from fedlog.wire.records import reason_word

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""The sender of a record that does not say, or whose word cannot be read."""
_LONGEST_WHY = 300
_ORDINARY = frozenset({"late", "late-evaluation", "superseded-by-on-time", "surplus"})
"""What honest clients that are slow meet every day; worth a line, no warning."""


class Refusals:
    """Bounded whatever comes: reasons are our own words, and senders are forgotten, oldest first.

    Not thread-safe; `recent` is a value.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._bursts = Bursts(log, "records refused", clock)
        self._listed: OrderedDict[tuple[str, str, str], Refusal] = OrderedDict()
        self.totals: Counter[str] = Counter()
        """By reason, over the life of this server."""

    def add(self, reason: str, *, client: str, topic: str, offset: int) -> None:
        """reason: a word, or a word, a colon and more. offset: of the record on `topic`."""
        word = reason_word(reason)
        self.totals[word] += 1
        key = (word, client, topic)
        known = self._listed.pop(key, None)
        self._listed[key] = Refusal(
            reason=word,
            client=client,
            topic=topic,
            offset=offset,
            count=1 if known is None else known.count + 1,
        )
        while len(self._listed) > MAX_REFUSALS:
            self._listed.popitem(last=False)
        self._bursts.say(
            word,
            "%s: record %d of %s is refused: %s",
            client,
            offset,
            topic,
            reason[:_LONGEST_WHY],
            level=logging.INFO if word in _ORDINARY else logging.WARNING,
        )

    def tell(self) -> None:
        """Sum up the floods that are over, or have lasted; to be called now and then."""
        self._bursts.tell()

    def recent(self) -> tuple[Refusal, ...]:
        """One entry for each reason, sender and topic, the latest last; at most MAX_REFUSALS."""
        return tuple(self._listed.values())
