"""From records of `events` to the engine's events. Everything read is hostile until it is here."""

from __future__ import annotations

import logging
from collections import Counter

from fedlog.job.model import TestSet
from fedlog.rounds import events as happened
from fedlog.transport.base import Record
from fedlog.wire import records
from fedlog.wire.errors import WireError

log = logging.getLogger(__name__)


class Intake:
    """Decodes events, and holds the manifests that may still be folded, by offset: at most one of
    each client, and its payload (where it came inside) until it is folded.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self.refusals: Counter[str] = Counter()
        """Records that do not count, by reason, since somebody cleared it."""
        self._held: dict[int, tuple[records.Updated, memoryview]] = {}

    def take(self, record: Record) -> happened.Event | None:
        """The event that a record stands for, or None where it does not count."""
        try:
            found, payload = records.decode(record.value)
        except WireError as error:
            self._refuse(error.reason, record.offset, str(error))
            return None
        if found.run != self._run:
            self._refuse("other-run", record.offset, f"it names the run {found.run[:80]!r}")
            return None
        match found:
            case records.Joined():
                return happened.ClientJoined(found.client, found.incarnation)
            case records.Heartbeat() | records.Uploading():
                return happened.ClientSeen(found.client, found.incarnation)
            case records.Left():
                return happened.ClientLeft(found.client, found.incarnation)
            case records.Failed():
                return happened.WorkFailed(
                    found.client, found.incarnation, found.round, found.reason
                )
            case records.Evaluated():
                return happened.EvaluationArrived(
                    client=found.client,
                    incarnation=found.incarnation,
                    version=found.version,
                    digest=found.digest,
                    test_set=TestSet(found.test_set),
                    examples=found.examples,
                    metrics=found.metrics,
                )
            case records.Updated():
                self._held[record.offset] = (found, payload)
                return happened.UpdateArrived(
                    client=found.client,
                    incarnation=found.incarnation,
                    offset=record.offset,
                    round=found.round,
                    base=found.base,
                    examples=found.examples,
                )
        self._refuse("misplaced", record.offset, f"a {found.type} record is not a client's")
        return None

    def _refuse(self, reason: str, offset: int, why: str) -> None:
        self.refusals[reason] += 1
        log.warning("record %d of events is refused (%s): %s", offset, reason, why)

    def manifest(self, offset: int) -> tuple[records.Updated, memoryview]:
        """The manifest at this offset, and its payload."""
        return self._held[offset]

    def drop(self, offset: int) -> None:
        """The manifest does not count."""
        self._held.pop(offset, None)

    def folded(self, offset: int) -> None:
        """The payload is not needed any more."""
        if offset in self._held:
            manifest, _ = self._held[offset]
            self._held[offset] = (manifest, memoryview(b""))

    def oldest(self, default: int) -> int:
        """The lowest offset of a manifest that is held; `default` where there is none."""
        return min(self._held, default=default)

    def keep_only(self, offsets: set[int]) -> None:
        """A round is over: drop every manifest except these."""
        self._held = {offset: kept for offset, kept in self._held.items() if offset in offsets}
