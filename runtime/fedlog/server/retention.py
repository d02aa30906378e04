"""Bulk is deleted as rounds end, so that a long run is bounded by a few rounds.

Where the broker has DeleteRecords, the topics are trimmed from the front. Elsewhere (the embedded
broker) bulk topics come in generations: the announcement names the current one, a new one is
begun once the current holds more than a round or GENERATION_BYTES, and an old one is deleted when
nothing in it may count any more. Only topics that this run created are ever touched.

What is kept: the current version and the one before it, the updates of the open round and of the
one before, and everything since the round of the oldest update that may still be folded late.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from fedlog.transport.base import TopicSpec, Transport
from fedlog.wire.bulk import BulkManifest

log = logging.getLogger(__name__)

GENERATION_BYTES = 64 * 2**20


@dataclass
class _Generation:
    topic: str
    last_round: int = 0


@dataclass
class BulkTopic:
    """One bulk topic over the life of a run; for a writer only `current` matters."""

    transport: Transport
    spec: TopicSpec
    created: set[str]
    """Topics that this run created; shared, and added to."""
    current: str = ""
    _bytes: int = 0
    _number: int = 0
    _old: list[_Generation] = field(default_factory=list)
    _ends: dict[int, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.current = self.spec.name

    def holds(self, number: int, manifest: BulkManifest) -> None:
        """The payload of this manifest belongs to round (or version) `number`."""
        if manifest.inline:
            return  # it travelled inside a record: there is nothing to trim
        self._bytes += manifest.encoded_size
        first, count = manifest.runs[-1]
        ends = self._ends.setdefault(number, {})
        ends[manifest.partition] = max(ends.get(manifest.partition, 0), first + count)

    def let_go(self, number: int, keep_from: int) -> None:
        """What belongs to rounds (versions) before `keep_from` can go; a new one begins after
        `number`.
        """
        if self.transport.can_trim:
            self._trim(keep_from)
        else:
            self._renew(number, keep_from)

    def _trim(self, keep_from: int) -> None:
        for number in sorted(n for n in self._ends if n < keep_from):
            for partition, end in self._ends.pop(number).items():
                if self.current in self.created:
                    self.transport.trim(self.current, partition, end)

    def _renew(self, number: int, keep_from: int) -> None:
        if self._bytes >= GENERATION_BYTES:
            self._old.append(_Generation(self.current, number))
            self._number += 1
            self.current = f"{self.spec.name}.{self._number}"
            self.created |= self.transport.create_topics(
                [TopicSpec(self.current, self.spec.partitions)]
            )
            self._bytes = 0
        gone = [g for g in self._old if g.last_round < keep_from and g.topic in self.created]
        if gone:
            names = [g.topic for g in gone]
            self.transport.delete_topics(names)
            self.created.difference_update(names)
            self._old = [g for g in self._old if g not in gone]
            log.debug("deleted old bulk: %s", ", ".join(names))
