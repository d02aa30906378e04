"""From records of `events` to the engine's events. Everything read is hostile until it is here.

One record costs at most the parsing of its header, which a broker's message size bounds. What a
client may have taken is bounded per round, so that one of them cannot fill the control topic with
welcomes, the log with its failures, or the memory with its manifests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from fedlog.job.model import TestSet
from fedlog.rounds import events as happened
from fedlog.server.refusals import UNKNOWN, Refusals
from fedlog.transport.base import Record
from fedlog.wire import records
from fedlog.wire.errors import WireError

QUOTA_WINDOW_S = 60.0
"""Quotas are per client and round; in a long round they begin anew after this."""
QUOTAS: dict[type[records.ClientRecord], int] = {
    # A server that was away finds one `joined` every 10 s from each client that waited for it.
    records.Joined: 256,
    records.Left: 256,
    # One of each per round, and a few more for retries.
    records.Updated: 16,
    records.Evaluated: 16,
    records.Failed: 16,
}
"""Records of one client that are taken per round. Signs of life have none: they cost nothing
beyond their parsing."""
_MAX_COUNTED = 200_000
"""Clients and kinds that are counted at once; strangers may use any name."""
TOPIC = "events"


class Intake:
    """Decodes events, and holds the manifests that may still be folded, by offset, with their
    payloads (where they came inside) until they are folded. The engine lets one client have one
    for its round and a late one.
    """

    def __init__(
        self,
        run: str,
        told: Refusals | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """told: where every refusal is logged and listed with its sender."""
        self._run = run
        self._told = Refusals() if told is None else told
        self._clock = clock
        self.refusals: Counter[str] = Counter()
        """Records that do not count, by reason, since somebody cleared it."""
        self._held: dict[int, tuple[records.Updated, memoryview]] = {}
        self._taken: Counter[tuple[str, type[records.ClientRecord]]] = Counter()
        self._window_end = clock() + QUOTA_WINDOW_S
        self._offset = 0

    def take(self, record: Record) -> happened.Event | None:
        """The event that a record stands for, or None where it does not count."""
        self._offset = record.offset
        self._told.tell()
        try:
            found, payload = records.decode(record.value)
        except WireError as error:
            self._refuse(UNKNOWN, f"{error.reason}: {error}")
            return None
        client = found.client if isinstance(found, records.ClientRecord) else UNKNOWN
        if found.run != self._run:
            self._refuse(client, f"other-run: it names {found.run[:80]!r}")
            return None
        if isinstance(found, records.ClientRecord) and not self._within_quota(found):
            limit = QUOTAS[type(found)]
            self._refuse(client, f"quota: more than {limit} records '{found.type}' in a round")
            return None
        match found:
            case records.Joined():
                return happened.ClientJoined(found.client, found.incarnation, record.offset)
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
        self._refuse(UNKNOWN, f"misplaced: a {found.type} record is not a client's")
        return None

    def _within_quota(self, found: records.ClientRecord) -> bool:
        limit = QUOTAS.get(type(found))
        if limit is None:
            return True
        now = self._clock()
        if now >= self._window_end or len(self._taken) >= _MAX_COUNTED:
            self._taken.clear()
            self._window_end = now + QUOTA_WINDOW_S
        key = (found.client, type(found))
        self._taken[key] += 1
        return self._taken[key] <= limit

    def _refuse(self, client: str, reason: str) -> None:
        self.refusals[records.reason_word(reason)] += 1
        self.refused(client, reason)

    def refused(self, client: str, reason: str, offset: int | None = None) -> None:
        """Log and list a refusal; offset: of its record, if that is not the one taken last."""
        self._told.add(
            reason, client=client, topic=TOPIC, offset=self._offset if offset is None else offset
        )

    def manifest(self, offset: int) -> tuple[records.Updated, memoryview] | None:
        """The manifest at this offset, and its payload; None where it is not held."""
        return self._held.get(offset)

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
        self._taken.clear()
        self._window_end = self._clock() + QUOTA_WINDOW_S
