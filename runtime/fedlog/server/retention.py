"""What is not needed any more is deleted as rounds end, so that a long run is bounded.

Where the broker has DeleteRecords, the topics are trimmed from the front. Elsewhere (the embedded
broker) bulk topics come in generations: the announcement names the current one, a new one is
begun once the current holds GENERATION_BYTES, and an old one is deleted when nothing in it may
count any more; `events` and `control` are never trimmed there. Only topics that this run created
are ever touched. Nothing here ends a run: what cannot be deleted is a warning.

With topics.retain: All nothing is deleted before the run is over.

What is kept otherwise: the current version and the one before it, the updates of the open round and
of the one before, and everything since the round of the oldest update that may still be folded
late.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedlog.transport.base import TopicSpec, Transport
from fedlog.transport.errors import TransportError
from fedlog.wire.bulk import BulkManifest

log = logging.getLogger(__name__)

GENERATION_BYTES = 64 * 2**20
RECORDS_PER_TRIM = 1000
"""Small records are deleted so many at a time: a request for each round would cost more."""


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
    _ours: bool = False
    _partitions: int = 0
    _bytes: int = 0
    _number: int = 0
    _old: list[_Generation] = field(default_factory=list)
    _ends: dict[int, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.current = self.spec.name
        self._partitions = self.spec.partitions
        self._ours = self.current in self.created
        if not self._ours:  # somebody else's may have another number
            self._partitions = self.transport.partitions(self.current) or self._partitions

    def resume(self, version: int) -> None:
        """Go on with the generation that a predecessor used last; `version` is the current one."""
        prefix = f"{self.spec.name}."
        numbers = [
            int(name.removeprefix(prefix))
            for name in self.created
            if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()
        ]
        if not numbers:
            return
        self._ours = True
        self._number = max(numbers)
        names = [self.spec.name, *(f"{prefix}{number}" for number in sorted(numbers))]
        self.current = names.pop()
        self._old = [_Generation(name, version) for name in names if name in self.created]

    def takes(self, manifest: BulkManifest) -> bool:
        """Whether what it names lies in a live generation, in a partition that there is."""
        live = {self.current, *(generation.topic for generation in self._old)}
        return manifest.inline or (manifest.topic in live and manifest.partition < self._partitions)

    def holds(self, number: int, manifest: BulkManifest) -> None:
        """The commit of round (or version) `number` needs this payload; nothing later does."""
        if manifest.inline:
            return  # it travelled inside a record: there is nothing to trim
        self._bytes += manifest.encoded_size
        first, count = manifest.runs[-1]
        ends = self._ends.setdefault(number, {})
        ends[manifest.partition] = max(ends.get(manifest.partition, 0), first + count)

    def begin_after(self, number: int) -> None:
        """Begin a new generation after round (version) `number` where it is time to; before the
        announcement that names it.
        """
        if self.transport.can_trim or self._bytes < GENERATION_BYTES:
            return
        following = f"{self.spec.name}.{self._number + 1}"
        try:
            created = self.transport.create_topics([TopicSpec(following, self._partitions)])
        except TransportError as error:
            log.warning("no new generation of %s: %s", self.spec.name, error)
            return
        # One that is there already was made by a predecessor that died before it could say so.
        self.created |= {following} if self._ours else created
        self._old.append(_Generation(self.current, number))
        self._number += 1
        self.current = following
        self._bytes = 0

    def let_go(self, keep_from: int) -> None:
        """Delete what only commits before `keep_from` needed: those are on the journal."""
        try:
            if self.transport.can_trim:
                self._trim(keep_from)
            else:
                self._delete(keep_from)
        except TransportError as error:
            log.warning("old bulk of %s is not deleted: %s", self.spec.name, error)

    def _trim(self, keep_from: int) -> None:
        ends: dict[int, int] = {}
        for number in [n for n in self._ends if n < keep_from]:
            for partition, end in self._ends.pop(number).items():
                ends[partition] = max(end, ends.get(partition, 0))
        if self.current in self.created:
            for partition, end in ends.items():
                self.transport.trim(self.current, partition, end)

    def _delete(self, keep_from: int) -> None:
        gone = [g for g in self._old if g.last_round < keep_from]
        self._old = [g for g in self._old if g not in gone]
        names = [g.topic for g in gone if g.topic in self.created]
        if names:
            self.transport.delete_topics(names)
            self.created.difference_update(names)
            log.debug("deleted old bulk: %s", ", ".join(names))


@dataclass
class SmallTopic:
    """`events` or `control`: trimmed now and then, where the broker can."""

    transport: Transport
    name: str
    created: Iterable[str]
    _trimmed: int = 0

    def let_go(self, before_offset: int) -> None:
        """Records below the offset are not needed any more."""
        if (
            not self.transport.can_trim
            or self.name not in self.created
            or before_offset - self._trimmed < RECORDS_PER_TRIM
        ):
            return
        self._trimmed = before_offset
        try:
            self.transport.trim(self.name, 0, before_offset)
        except TransportError as error:
            log.warning("old records of %s are not deleted: %s", self.name, error)


def keep_from(
    committed: int, *, finishing: Iterable[int], late: Iterable[int], lateness: int
) -> int:
    """The oldest round whose updates may still count after the commit of round `committed`.

    finishing: rounds that members still train for; one that takes more than `lateness` rounds
    does not count any more. late: rounds of updates that wait for the next close.
    """
    oldest = committed - lateness + 1
    return min([committed, *(max(number, oldest) for number in finishing), *late])
