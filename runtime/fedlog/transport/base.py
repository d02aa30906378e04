"""What Fedlog asks of a log: topics, readers, writers. Kafka and memory both give it.

One contract suite (`tests/integration/test_transport_contract.py`) holds every implementation to
this module's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class TopicSpec:
    """A topic as the protocol wants it; every other setting is the same for all topics.

    segment_bytes: size of the files that a broker keeps a partition in (None: as it likes). It
    deletes and compacts whole files only, and never the one that is written to.
    """

    name: str
    partitions: int = 1
    compacted: bool = False
    segment_bytes: int | None = None


class Record(NamedTuple):
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes


class Pending(Protocol):
    """A record on its way."""

    def result(self, timeout_s: float) -> int:
        """Wait until the log has it and return its offset. Raises TransportError."""


class Writer(Protocol):
    """An idempotent producer; safe to use from several threads."""

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> Pending:
        """Start sending one record. `value` must not change until the result is there.

        Raises UnknownTopicError when the topic does not exist (it is never created by this),
        RecordTooLargeError when the value exceeds the configured message size.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Records sent inside appear to committed readers together, or not at all on an error.

        Only for a writer that was opened with a transactional id. Raises FencedError when a
        newer writer with that id exists.
        """

    def forget(self, topic: str) -> None:
        """Nothing more will be sent to this topic, and all that was sent is acknowledged.

        A client library goes on asking for the leaders of topics that it once wrote to; where such
        a topic is deleted, it asks without a pause.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until everything sent so far is on the log."""

    def close(self, timeout_s: float = 5.0) -> None: ...


class Reader(Protocol):
    """Follows one partition from a position of its own; never a consumer group.

    Not safe to use from several threads.
    """

    @property
    def position(self) -> int:
        """The offset of the next record that `poll` looks for."""

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        """The next records in offset order; empty when none came within the time.

        A dense reader returns every offset exactly once: when the broker skips one it goes back
        for it, and passes over it (with a warning that names it) only after bounded tries.
        Reconnects by itself with bounded backoff; raises TransportError when the broker stays
        away longer than the transport's deadline.
        """

    def seek(self, offset: int) -> None: ...

    def end_offset(self) -> int:
        """The offset that the next record on this partition will get."""

    def close(self) -> None: ...


class BulkReader(Protocol):
    """Random reads of records whose offsets are known; one per thread."""

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        """The values at exactly these ascending offsets, in order.

        Seeks per run of consecutive offsets, so that what lies between is not fetched. Raises
        BulkMissingError when an offset is not there (trimmed, or the topic is gone).
        """

    def close(self) -> None: ...


class Transport(Protocol):
    """A connection to one log."""

    @property
    def can_trim(self) -> bool:
        """Whether `trim` works (DeleteRecords); if not, bulk topics come in generations."""

    @property
    def wakes_readers(self) -> bool:
        """Whether a fetch that waits ends as soon as a record comes (see `transport.pace`)."""

    def create_topics(self, specs: Sequence[TopicSpec]) -> frozenset[str]:
        """Create what is missing and return the names created by this very call.

        A topic that exists already is left as it is and not in the result. Never implied by any
        other call.
        """

    def delete_topics(self, names: Iterable[str]) -> None:
        """Delete topics; the caller vouches that its run created them. Absent ones are fine."""

    def trim(self, topic: str, partition: int, before_offset: int) -> None:
        """Delete the records below the offset; only where `can_trim`."""

    def partitions(self, topic: str, timeout_s: float = 0.0) -> int | None:
        """How many partitions the topic has; None while it does not exist.

        Waits up to `timeout_s` for the topic to appear.
        """

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
        """A reader at offset `start` (None: the end). `wait_s` is how long a fetch may linger at
        the broker: short while something is expected, long when idle.

        `dense` for topics without transactions; `committed` hides open and aborted transactions
        where the broker can.
        """

    def bulk_reader(self, chunk_bytes: int) -> BulkReader: ...

    def writer(self, *, transactional_id: str | None = None) -> Writer:
        """A new producer. With an id, older producers of that id are fenced before this returns."""

    def close(self) -> None: ...
