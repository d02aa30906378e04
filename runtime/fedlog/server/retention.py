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
from collections.abc import Callable
from dataclasses import dataclass, field

from fedlog.transport.base import TopicSpec, Transport

log = logging.getLogger(__name__)

GENERATION_BYTES = 64 * 2**20


@dataclass
class _Generation:
    topic: str
    last_round: int = 0


@dataclass
class BulkTopic:
    """One bulk topic over the life of a run; for a reader only `current` matters."""

    transport: Transport
    spec: TopicSpec
    created: set[str]
    """Topics that this run created; shared, and added to."""
    ends: Callable[[str, int], int]
    """The end offset of (topic, partition)."""
    current: str = ""
    _bytes: int = 0
    _number: int = 0
    _old: list[_Generation] = field(default_factory=list)
    _ends: dict[int, list[int]] = field(default_factory=dict)
    _wrote: bool = False

    def __post_init__(self) -> None:
        self.current = self.spec.name

    def wrote(self, size_bytes: int) -> None:
        """So many bytes were written to the current generation."""
        self._bytes += size_bytes
        self._wrote = self._wrote or size_bytes > 0

    def end_round(self, number: int, keep_from: int) -> None:
        """Round `number` is closed, the next one not announced yet; what belongs to rounds before
        `keep_from` can go.
        """
        if not self._wrote:
            return  # small payloads travel in their manifests: there is nothing to trim
        if self.transport.can_trim:
            self._trim(number, keep_from)
        else:
            self._renew(number, keep_from)

    def _trim(self, number: int, keep_from: int) -> None:
        partitions = range(self.spec.partitions)
        self._ends[number] = [self.ends(self.current, p) for p in partitions]
        done = [n for n in self._ends if n < keep_from]
        if not done or self.current not in self.created:
            return
        for partition, end in enumerate(self._ends[max(done)]):
            if end:
                self.transport.trim(self.current, partition, end)
        for n in done:
            del self._ends[n]

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
