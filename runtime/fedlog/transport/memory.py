"""A log in this process's memory: for tests and simulations. Same words as Kafka's, no broker."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter

from fedlog.transport.base import BulkReader, Bytes, Reader, Record, TopicSpec, Writer
from fedlog.transport.errors import (
    BulkMissingError,
    FencedError,
    RecordTooLargeError,
    TransportError,
    UnknownTopicError,
)


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False)
class _Transaction:
    state: _State = _State.OPEN
    touched: list[_Partition] = field(default_factory=list)

    def end(self, state: _State) -> None:
        self.state = state
        for partition in self.touched:
            partition.end += 1  # Kafka's end marker takes an offset, too


@dataclass(frozen=True)
class _Entry:
    record: Record
    transaction: _Transaction | None

    @property
    def offset(self) -> int:
        return self.record.offset


class _Partition:
    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self.entries: list[_Entry] = []

    def append(self, key: bytes | None, value: bytes, transaction: _Transaction | None) -> int:
        offset = self.end
        record = Record(offset, int(time.time() * 1000), key, value)
        self.entries.append(_Entry(record, transaction))
        self.end += 1
        if transaction is not None and self not in transaction.touched:
            transaction.touched.append(self)
        return offset

    def index(self, offset: int) -> int:
        return bisect_left(self.entries, offset, key=attrgetter("offset"))

    def read(self, offset: int, limit: int, *, committed: bool) -> tuple[list[Record], int]:
        """Visible records from `offset` on, and where the next read begins."""
        found: list[Record] = []
        for position in range(self.index(offset), len(self.entries)):
            entry = self.entries[position]
            state = _State.COMMITTED if entry.transaction is None else entry.transaction.state
            if committed and state is _State.OPEN:
                return found, entry.offset
            if committed and state is _State.ABORTED:
                continue
            found.append(entry.record)
            if len(found) == limit:
                return found, entry.offset + 1
        return found, max(offset, self.end)


class MemoryTransport:
    """One log; give the same object to everybody who shares it. Safe to use from several threads.

    Times out with the wall clock; nothing here waits unless it is asked to.
    """

    def __init__(self, *, max_message_bytes: int = 900_000, can_trim: bool = True) -> None:
        self._max_message_bytes = max_message_bytes
        self._can_trim = can_trim
        self._changed = threading.Condition()
        self._topics: dict[str, tuple[TopicSpec, list[_Partition]]] = {}
        self._owners: dict[str, _MemoryWriter] = {}

    @property
    def can_trim(self) -> bool:
        return self._can_trim

    @property
    def wakes_readers(self) -> bool:
        return True

    def create_topics(self, specs: Sequence[TopicSpec]) -> frozenset[str]:
        with self._changed:
            missing = [spec for spec in specs if spec.name not in self._topics]
            for spec in missing:
                self._topics[spec.name] = (spec, [_Partition() for _ in range(spec.partitions)])
            self._changed.notify_all()
            return frozenset(spec.name for spec in missing)

    def delete_topics(self, names: Iterable[str]) -> None:
        with self._changed:
            for name in names:
                self._topics.pop(name, None)
            self._changed.notify_all()

    def trim(self, topic: str, partition: int, before_offset: int) -> None:
        if not self._can_trim:
            raise TransportError("this log cannot delete records: use a topic per generation")
        with self._changed:
            found = self._partition(topic, partition)
            if self._topics[topic][0].compacted:
                raise TransportError(f"{topic} is compacted: its records cannot be deleted")
            del found.entries[: found.index(before_offset)]
            found.start = max(found.start, min(before_offset, found.end))

    def partitions(self, topic: str, timeout_s: float = 0.0) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: topic in self._topics, timeout_s)
            return len(self._topics[topic][1]) if topic in self._topics else None

    def reader(
        self,
        topic: str,
        *,
        partition: int = 0,
        start: int | None = 0,
        dense: bool = False,
        committed: bool = False,
        wait_s: float = 0.02,
    ) -> Reader:
        return _MemoryReader(self, topic, partition, start, committed=committed)

    def bulk_reader(self, chunk_bytes: int) -> BulkReader:
        return _MemoryBulkReader(self)

    def writer(self, *, transactional_id: str | None = None) -> Writer:
        return _MemoryWriter(self, transactional_id)

    def close(self) -> None:
        """Nothing to do: the log lives as long as the object."""

    def _partition(self, topic: str, partition: int) -> _Partition:
        _, partitions = self._topics.get(topic, (None, []))
        if not 0 <= partition < len(partitions):
            raise UnknownTopicError(
                f"there is no topic {topic!r}"
                if not partitions
                else f"topic {topic!r} has {len(partitions)} partitions, no number {partition}"
            )
        return partitions[partition]


@dataclass(frozen=True)
class _Done:
    offset: int

    def result(self, timeout_s: float) -> int:
        return self.offset


class _MemoryWriter:
    def __init__(self, log: MemoryTransport, transactional_id: str | None) -> None:
        self._log = log
        self._id = transactional_id
        self._transaction: _Transaction | None = None
        if transactional_id is not None:
            with log._changed:
                older = log._owners.get(transactional_id)
                log._owners[transactional_id] = self
                if older is not None and older._transaction is not None:
                    older._transaction.end(_State.ABORTED)
                    log._changed.notify_all()

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> _Done:
        size = memoryview(value).nbytes
        if size > self._log._max_message_bytes:
            raise RecordTooLargeError(
                f"a record of {size} bytes, {self._log._max_message_bytes} are allowed: lower "
                "communication.maxMessageBytes, or raise it with the broker's message.max.bytes"
            )
        with self._log._changed:
            self._check_owner()
            if self._id is not None and self._transaction is None:
                raise TransportError("a writer with a transactional id sends inside transaction()")
            target = self._log._partition(topic, partition)
            offset = target.append(key, bytes(value), self._transaction)
            self._log._changed.notify_all()
            return _Done(offset)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._id is None:
            raise TransportError("a transaction needs a writer with a transactional id")
        with self._log._changed:
            self._check_owner()
            self._transaction = _Transaction()
        try:
            yield
        except BaseException:
            self._end(_State.ABORTED)
            raise
        with self._log._changed:
            self._check_owner()
            self._end(_State.COMMITTED)

    def _end(self, state: _State) -> None:
        with self._log._changed:
            transaction, self._transaction = self._transaction, None
            if transaction is not None and transaction.state is _State.OPEN:
                transaction.end(state)
                self._log._changed.notify_all()

    def _check_owner(self) -> None:
        if self._id is not None and self._log._owners.get(self._id) is not self:
            raise FencedError(f"a newer writer has taken over {self._id!r}")

    def forget(self, topic: str) -> None:
        del topic

    def flush(self, timeout_s: float) -> None:
        """Everything is on the log as soon as it is sent."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Nothing is held."""


class _MemoryReader:
    def __init__(
        self,
        log: MemoryTransport,
        topic: str,
        partition: int,
        start: int | None,
        *,
        committed: bool,
    ) -> None:
        self._log = log
        self._topic = topic
        self._number = partition
        self._committed = committed
        with log._changed:
            log._partition(topic, partition)
        self._position = self.end_offset() if start is None else start

    @property
    def position(self) -> int:
        return self._position

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        def ready() -> list[Record]:
            partition = self._log._partition(self._topic, self._number)
            records, self._position = partition.read(
                self._position, max_records, committed=self._committed
            )
            return records

        with self._log._changed:
            return self._log._changed.wait_for(ready, timeout_s)

    def seek(self, offset: int) -> None:
        self._position = offset

    def end_offset(self) -> int:
        with self._log._changed:
            return self._log._partition(self._topic, self._number).end

    def close(self) -> None:
        """Nothing is held."""


class _MemoryBulkReader:
    def __init__(self, log: MemoryTransport) -> None:
        self._log = log

    def read(
        self,
        topic: str,
        partition: int,
        offsets: Iterable[int],
        timeout_s: float,
    ) -> Iterator[bytes]:
        for offset in offsets:
            try:
                with self._log._changed:
                    found, _ = self._log._partition(topic, partition).read(
                        offset, 1, committed=False
                    )
            except UnknownTopicError as error:
                raise BulkMissingError(str(error)) from error
            if not found or found[0].offset != offset:
                raise BulkMissingError(f"{topic}/{partition} has no record at offset {offset}")
            yield found[0].value

    def close(self) -> None:
        """Nothing is held."""
