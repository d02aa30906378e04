"""Writing to Kafka: idempotent, and transactional for the one server of a run."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from fedlog.transport.base import Bytes
from fedlog.transport.errors import (
    FencedError,
    RecordTooLargeError,
    TransportError,
    UnknownTopicError,
)
from fedlog.transport.kafka.connection import RECORD_OVERHEAD_BYTES, Connection

log = logging.getLogger(__name__)

_TRANSACTION_S = 300.0
"""A broker ends a transaction of its own accord after so long, and fences who began it: longer than
anybody waits for a broker (`PATIENCE_S`), and within the 15 minutes that brokers allow."""
# How long a topic that is not there may take to appear: brokers learn of a new one in a moment.
MISSING_TOPIC_S = 2.0


class KafkaWriter:
    """A producer. Small records go out at once; nothing waits for a fuller batch."""

    def __init__(
        self,
        connection: Connection,
        partitions: Callable[[str, float], int | None],
        transactional_id: str | None,
        on_close: Callable[[KafkaWriter], None],
    ) -> None:
        """`partitions(topic, timeout_s)` says how many there are, without creating any."""
        self._connection = connection
        self._count = partitions
        self._on_close = on_close
        self._id = transactional_id
        self._partitions: dict[str, int] = {}
        self._forgotten: set[str] = set()
        self._lock = threading.Lock()
        self._producer = self._open()

    def _open(self) -> KafkaProducer:
        connection = self._connection
        producer = connection.open(
            KafkaProducer,
            acks="all",
            enable_idempotence=True,
            transactional_id=self._id,
            transaction_timeout_ms=round(_TRANSACTION_S * 1000),
            linger_ms=0,
            batch_size=65_536,
            max_request_size=connection.max_message_bytes + RECORD_OVERHEAD_BYTES,
            max_block_ms=round(connection.deadline_s * 1000),
            delivery_timeout_ms=round(connection.deadline_s * 1000),
            metrics_enabled=False,
        )
        if self._id is not None:
            # A newer producer of this id has the last word. Unless told so, the library answers
            # "your epoch is old" by asking for a new epoch, and fences the newer one in turn.
            manager = producer._transaction_manager
            fenced = kafka_errors.InvalidProducerEpochError
            manager._NEEDS_EPOCH_BUMP_ERRORS = manager._NEEDS_EPOCH_BUMP_ERRORS - {fenced}
            manager._FATAL_ERRORS = manager._FATAL_ERRORS | {fenced}
            try:
                producer.init_transactions()
            except kafka_errors.KafkaError as error:
                _close(producer, 0.0)
                raise connection.explained(error, f"taking over {self._id}") from error
        return producer

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> KafkaPending:
        size = memoryview(value).nbytes
        if size > self._connection.max_message_bytes:
            raise RecordTooLargeError(
                f"a record of {size} bytes, {self._connection.max_message_bytes} are allowed: "
                "lower communication.maxMessageBytes, or raise it with the broker's "
                "message.max.bytes"
            )
        self._check_topic(topic, partition)
        if self._forgotten:
            self._sweep()
        if isinstance(value, memoryview):
            value = value.cast("B")  # the library counts a view's elements as bytes
        with self._translating(f"sending to {topic}"):
            future = self._usable().send(topic, value, key=key, partition=partition)
        return KafkaPending(self, topic, future)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        if self._id is None:
            raise TransportError("a transaction needs a writer with a transactional id")
        manager = self._producer._transaction_manager
        with self._translating("beginning a transaction"):
            self._producer.begin_transaction()
        try:
            yield
        except BaseException:
            # What went wrong inside is the news, not that the abort failed, too: records of a
            # transaction that nobody ends are dropped by the next writer of this id.
            with contextlib.suppress(TransportError):
                self._end("aborting a transaction", manager.begin_abort)
            raise
        self._end("committing a transaction", manager.begin_commit)

    def forget(self, topic: str) -> None:
        self._partitions.pop(topic, None)
        self._forgotten.add(topic)
        self._sweep()

    def _sweep(self) -> None:
        """Take forgotten topics out of the library's books.

        Its thread may be looking at an entry and put it back, empty: so again with each record.
        """
        producer = self._producer
        for topic in self._forgotten:
            producer._metadata._topics.discard(topic)
        batches = producer._accumulator._batches
        for at in list(batches):
            if at.topic in self._forgotten and not batches[at]:
                batches.pop(at, None)

    def flush(self, timeout_s: float) -> None:
        with self._translating("flushing"):
            self._producer.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        _close(self._producer, timeout_s)
        self._on_close(self)

    def exists(self, topic: str) -> bool:
        return self._count(topic, 0.0) is not None

    def _end(self, what: str, begin: Callable[[], Any]) -> None:
        # The library's commit_transaction() waits for ever; this is it with a deadline.
        with self._translating(what):
            result = begin()
            self._producer._sender.wakeup()
            if not result.wait(self._connection.deadline_s * 1000):
                raise self._connection.unavailable(what)

    def _check_topic(self, topic: str, partition: int) -> None:
        count = self._partitions.get(topic)
        if count is None:
            count = self._count(topic, MISSING_TOPIC_S)
            if count is None:
                raise UnknownTopicError(f"there is no topic {topic!r}; sending does not create it")
            self._partitions[topic] = count
            self._forgotten.discard(topic)
        if not 0 <= partition < count:
            raise UnknownTopicError(f"topic {topic!r} has {count} partitions, no {partition}")

    def _usable(self) -> KafkaProducer:
        """The producer; a new one where a refused record has broken it for good."""
        manager = self._producer._transaction_manager
        if self._id is None and manager.has_fatal_error():
            with self._lock:
                if self._producer._transaction_manager.has_fatal_error():
                    broken = self._producer
                    self._producer = self._open()
                    _close(broken, 0.0)
        return self._producer

    @contextlib.contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except (kafka_errors.KafkaError, AssertionError) as error:
            raise self.translated(error, what) from error

    def translated(self, error: BaseException, what: str) -> TransportError:
        # Once broken, the library only says that it is; the cause is with the manager.
        cause = self._producer._transaction_manager.last_error
        for candidate in (error, cause, *error.args):
            if isinstance(candidate, BaseException):
                found = self._connection.translated(candidate, what)
                if isinstance(found, FencedError):
                    return found
        if self._id is not None and isinstance(error, kafka_errors.IllegalStateError):
            return TransportError(f"{what}: a transactional writer sends inside transaction()")
        return self._connection.explained(error, what)


class KafkaPending:
    """A record on its way."""

    __slots__ = ("_future", "_topic", "_writer")

    def __init__(self, writer: KafkaWriter, topic: str, future: Any) -> None:
        self._writer = writer
        self._topic = topic
        self._future = future

    def result(self, timeout_s: float) -> int:
        try:
            return self._wait(timeout_s)
        except kafka_errors.KafkaError as error:
            raise self._writer.translated(error, f"sending to {self._topic}") from error

    def _wait(self, timeout_s: float) -> int:
        # A topic that was deleted since is retried by the library until its own deadline: when
        # nothing comes for a while, ask.
        first = min(timeout_s, MISSING_TOPIC_S)
        try:
            return int(self._future.get(first).offset)
        except kafka_errors.KafkaTimeoutError:
            if not self._future.is_done and not self._writer.exists(self._topic):
                raise UnknownTopicError(f"topic {self._topic!r} is gone") from None
            if self._future.is_done or timeout_s <= first:
                raise
        return int(self._future.get(timeout_s - first).offset)


def _close(producer: KafkaProducer, timeout_s: float) -> None:
    try:
        producer.close(timeout_s)
    except kafka_errors.KafkaError:
        # It could not deliver in time, and stays open then. Nobody waits for the rest any more.
        producer._sender.force_close()
        producer._sender.join(1.0)
        producer._closed = True
