"""Following one partition: assign and seek, no consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import OffsetSpec

from fedlog.transport.base import Record
from fedlog.transport.dense import DenseOrder
from fedlog.transport.errors import UnknownTopicError
from fedlog.transport.kafka.connection import RECORD_OVERHEAD_BYTES, Connection

log = logging.getLogger(__name__)

_PAUSE_S = 0.05


def end_offset(connection: Connection, topic: str, partition: int) -> int:
    """What the broker says is the next offset; open transactions count (K), or give 0 (T)."""
    at = TopicPartition(topic, partition)
    offset: int = connection.call(
        f"asking for the end of {topic}",
        lambda admin: admin.list_partition_offsets({at: OffsetSpec.LATEST})[at].offset,
    )
    return offset


class KafkaReader:
    """One consumer, one partition.

    It holds at most two fetches of the size of one largest record each, whatever the partition
    holds.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        partition: int,
        *,
        start: int | None,
        dense: bool,
        committed: bool,
        wait_s: float,
    ) -> None:
        self._connection = connection
        self._at = TopicPartition(topic, partition)
        fetch_bytes = max(connection.max_message_bytes, 1_000_000) + RECORD_OVERHEAD_BYTES
        self._consumer = connection.open(
            KafkaConsumer,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed" if committed else "read_uncommitted",
            fetch_max_wait_ms=round(wait_s * 1000),
            fetch_max_bytes=fetch_bytes,
            max_partition_fetch_bytes=fetch_bytes,
            enable_incremental_fetch_sessions=False,  # they pay for many partitions only
            metrics_enabled=False,
        )
        self._consumer.assign([self._at])
        self._seen = 0
        position = self.end_offset() if start is None else start
        self._position = position
        self._order = DenseOrder(str(self), position) if dense else None
        self._retry_at = 0.0
        self._lost_at: float | None = None
        self._consumer.seek(self._at, position)

    def __str__(self) -> str:
        return f"{self._at.topic}/{self._at.partition}"

    @property
    def position(self) -> int:
        return self._position

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            pause_s = min(self._retry_at - time.monotonic(), left_s)
            if pause_s > 0:
                time.sleep(pause_s)
                continue
            records = self._fetch(max(left_s, 0.0), max_records)
            if records and self._order is not None:
                records, back = self._order.accept(records)
                if back is not None:
                    self._consumer.seek(self._at, back.offset)
                    self._retry_at = time.monotonic() + back.pause_s
            if records:
                self._position = records[-1].offset + 1
                self._seen = max(self._seen, self._position)
                return records
            if left_s <= 0:
                return []

    def seek(self, offset: int) -> None:
        self._position = offset
        self._retry_at = 0.0
        if self._order is not None:
            self._order.seek(offset)
        self._consumer.seek(self._at, offset)

    def end_offset(self) -> int:
        """The next offset. Tansu says 0 while a transaction is open on the partition; so this is
        never less than what the reader has seen.
        """
        told = end_offset(self._connection, self._at.topic, self._at.partition)
        return max(told, self._seen, self._consumer.highwater(self._at) or 0)

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def _fetch(self, timeout_s: float, max_records: int) -> list[Record]:
        try:
            fetched = self._consumer.poll(timeout_s * 1000, max_records).get(self._at, [])
        except kafka_errors.OffsetOutOfRangeError:
            self._return_into_range()
            return []
        except kafka_errors.KafkaError as error:
            translated = self._connection.translated(error, f"reading {self}")
            if not translated.retriable:
                raise translated from error
            time.sleep(min(_PAUSE_S, timeout_s))
            fetched = []
        if not fetched:
            self._watch()
            return []
        self._lost_at = None
        return [Record(r.offset, r.timestamp, r.key, r.value or b"") for r in fetched]

    def _return_into_range(self) -> None:
        at = self._at
        first = self._connection.call(
            f"asking for the start of {self}",
            lambda admin: admin.list_partition_offsets({at: OffsetSpec.EARLIEST})[at].offset,
        )
        if self._position < first:
            log.info("%s: offsets %d to %d are trimmed", self, self._position, first - 1)
            self.seek(first)
        else:  # past the end: it may still grow to there
            self._retry_at = time.monotonic() + _PAUSE_S

    def _watch(self) -> None:
        """Notice that the broker or the topic is away for longer than the deadline."""
        leader = self._consumer._cluster.leader_for_partition(self._at)
        if leader is not None and self._consumer._client.connected(leader):
            if self._lost_at is not None:
                self._lost_at = None
            return
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > self._connection.deadline_s:
            self._lost_at = None
            topics = self._connection.call(
                f"reading {self}", lambda admin: admin.describe_topics([self._at.topic])
            )
            if topics and topics[0]["error_code"] == 0:
                raise self._connection.unavailable(f"reading {self}")
            raise UnknownTopicError(f"topic {self._at.topic!r} is gone")
