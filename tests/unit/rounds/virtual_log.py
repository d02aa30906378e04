"""A log in virtual time. Nothing is hidden from the test, everything may go wrong for the rest."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from fedlog.transport.base import Bytes, Record, TopicSpec
from fedlog.transport.errors import BulkMissingError, FencedError, UnknownTopicError
from unit.rounds.virtual_time import Killed, Process

Hazard = Callable[[Process, str], None]
"""Called before and after everything that a server does to the log; may raise Killed, or wait."""


@dataclass(eq=False)
class Transaction:
    writer: object
    state: Literal["open", "committed", "aborted"] = "open"
    touched: list[Partition] = field(default_factory=list)


@dataclass(eq=False)
class Partition:
    """offsets: of `records`, ascending; markers of transactions leave holes."""

    offsets: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    owners: list[Transaction | None] = field(default_factory=list)
    end: int = 0

    def append(self, key: bytes | None, value: bytes, transaction: Transaction | None) -> int:
        offset = self.end
        self.offsets.append(offset)
        self.records.append(Record(offset, 0, key, value))
        self.owners.append(transaction)
        self.end += 1
        if transaction is not None and self not in transaction.touched:
            transaction.touched.append(self)
        return offset

    def drop(self, before: int) -> None:
        count = bisect_left(self.offsets, before)
        del self.offsets[:count], self.records[:count], self.owners[:count]


class VirtualLog:
    """shows_aborted: readers of what is committed get aborted records, too, as from the embedded
    broker. can_trim: as in `Transport`.
    """

    def __init__(self, *, shows_aborted: bool, can_trim: bool) -> None:
        self.shows_aborted = shows_aborted
        self.can_trim = can_trim
        self.topics: dict[str, list[Partition]] = {}
        self.writers: dict[str, _Writer] = {}
        self.on_visible: Callable[[], None] = lambda: None
        """Called when a transaction has ended."""

    def partition(self, topic: str, number: int = 0) -> Partition:
        if topic not in self.topics:
            raise UnknownTopicError(f"there is no topic {topic!r}")
        return self.topics[topic][number]

    def read(
        self, topic: str, number: int, start: int, limit: int, *, committed: bool
    ) -> tuple[list[Record], int]:
        """Visible records from `start` on, and where the next read begins."""
        partition = self.partition(topic, number)
        found: list[Record] = []
        for index in range(bisect_left(partition.offsets, start), len(partition.offsets)):
            owner = partition.owners[index]
            if committed and owner is not None:
                if owner.state == "open":
                    return found, partition.offsets[index]
                if owner.state == "aborted" and not self.shows_aborted:
                    continue
            found.append(partition.records[index])
            if len(found) == limit:
                return found, partition.offsets[index] + 1
        return found, max(start, partition.end)

    def writer_of(self, topic: str, offset: int) -> object:
        """Who wrote this record; None: nobody with a transactional id."""
        partition = self.partition(topic)
        owner = partition.owners[bisect_left(partition.offsets, offset)]
        return None if owner is None else owner.writer

    def end_transaction(
        self, transaction: Transaction, state: Literal["committed", "aborted"]
    ) -> None:
        if transaction.state == "open":
            transaction.state = state
            for partition in transaction.touched:
                partition.end += 1  # the marker
            self.on_visible()


class VirtualTransport:
    """The log as one server process sees it."""

    def __init__(self, log: VirtualLog, process: Process, hazard: Hazard) -> None:
        self.log = log
        self.process = process
        self._hazard = hazard

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        if self.process.killed:
            raise Killed
        self._hazard(self.process, f"before {what}")
        yield
        self._hazard(self.process, f"after {what}")

    @property
    def can_trim(self) -> bool:
        return self.log.can_trim

    @property
    def wakes_readers(self) -> bool:
        return True

    def create_topics(self, specs: Sequence[TopicSpec]) -> frozenset[str]:
        with self.doing("create topics"):
            missing = [spec for spec in specs if spec.name not in self.log.topics]
            for spec in missing:
                self.log.topics[spec.name] = [Partition() for _ in range(spec.partitions)]
        return frozenset(spec.name for spec in missing)

    def delete_topics(self, names: Iterable[str]) -> None:
        with self.doing("delete topics"):
            for name in names:
                self.log.topics.pop(name, None)

    def trim(self, topic: str, partition: int, before_offset: int) -> None:
        with self.doing("trim"):
            self.log.partition(topic, partition).drop(before_offset)

    def partitions(self, topic: str, timeout_s: float = 0.0) -> int | None:
        del timeout_s
        return len(self.log.topics[topic]) if topic in self.log.topics else None

    def reader(
        self,
        topic: str,
        *,
        partition: int = 0,
        start: int | None = 0,
        dense: bool = False,
        committed: bool = False,
        wait_s: float = 0.02,
    ) -> _Reader:
        del dense, wait_s
        return _Reader(self, topic, partition, start, committed=committed)

    def bulk_reader(self, chunk_bytes: int) -> _BulkReader:
        del chunk_bytes
        return _BulkReader(self.log)

    def writer(self, *, transactional_id: str | None = None) -> _Writer:
        with self.doing("open writer"):
            writer = _Writer(self, transactional_id)
            if transactional_id is not None:
                older = self.log.writers.get(transactional_id)
                self.log.writers[transactional_id] = writer
                if older is not None and older.current is not None:
                    self.log.end_transaction(older.current, "aborted")
        return writer

    def close(self) -> None:
        """The log lives on."""


@dataclass(frozen=True)
class _Done:
    offset: int

    def result(self, timeout_s: float) -> int:
        del timeout_s
        return self.offset


class _Writer:
    def __init__(self, transport: VirtualTransport, transactional_id: str | None) -> None:
        self._transport = transport
        self._id = transactional_id
        self.current: Transaction | None = None

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> _Done:
        log = self._transport.log
        with self._transport.doing(f"write to {topic.rpartition('.')[2]}"):
            self._check_owner()
            offset = log.partition(topic, partition).append(key, bytes(value), self.current)
        return _Done(offset)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._check_owner()
        self.current = Transaction(self)
        try:
            yield
            with self._transport.doing("commit"):
                self._check_owner()
                self._transport.log.end_transaction(self.current, "committed")
        except Exception:
            self._transport.log.end_transaction(self.current, "aborted")
            raise
        # A process that is killed aborts nothing: the transaction stays open until it is fenced.
        self.current = None

    def _check_owner(self) -> None:
        if self._id is not None and self._transport.log.writers.get(self._id) is not self:
            raise FencedError(f"a newer writer has taken over {self._id!r}")

    def forget(self, topic: str) -> None:
        """No client library here."""

    def flush(self, timeout_s: float) -> None:
        """Everything is on the log as soon as it is sent."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Nothing is held."""


class ClientWriter:
    """A client's producer. What is sent to a deleted topic is acknowledged with offset 0, as by
    the embedded broker.
    """

    def __init__(self, log: VirtualLog) -> None:
        self._log = log

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> _Done:
        if topic not in self._log.topics:
            return _Done(0)
        return _Done(self._log.partition(topic, partition).append(key, bytes(value), None))

    def transaction(self) -> AbstractContextManager[None]:
        raise NotImplementedError("clients have no transactions")

    def forget(self, topic: str) -> None:
        """No client library here."""

    def flush(self, timeout_s: float) -> None:
        """Everything is on the log as soon as it is sent."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Nothing is held."""


class _Reader:
    def __init__(
        self,
        transport: VirtualTransport,
        topic: str,
        partition: int,
        start: int | None,
        *,
        committed: bool,
    ) -> None:
        self._transport = transport
        self._topic = topic
        self._number = partition
        self._committed = committed
        transport.log.partition(topic, partition)
        self._position = self.end_offset() if start is None else start

    @property
    def position(self) -> int:
        return self._position

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        found = self._read(max_records)
        if not found:
            self._transport.process.wait(timeout_s)
            found = self._read(max_records)
        return found

    def _read(self, limit: int) -> list[Record]:
        found, self._position = self._transport.log.read(
            self._topic, self._number, self._position, limit, committed=self._committed
        )
        return found

    def seek(self, offset: int) -> None:
        self._position = offset

    def end_offset(self) -> int:
        return self._transport.log.partition(self._topic, self._number).end

    def close(self) -> None:
        """Nothing is held."""


class _BulkReader:
    def __init__(self, log: VirtualLog) -> None:
        self._log = log

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        del timeout_s
        for offset in offsets:
            try:
                found, _ = self._log.read(topic, partition, offset, 1, committed=False)
            except UnknownTopicError as error:
                raise BulkMissingError(str(error)) from error
            if not found or found[0].offset != offset:
                raise BulkMissingError(f"{topic}/{partition} has no record at offset {offset}")
            yield found[0].value

    def close(self) -> None:
        """Nothing is held."""
