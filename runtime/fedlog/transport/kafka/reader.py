"""Following one partition: assign and seek, no consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import OffsetSpec

from fedlog.transport.base import Record
from fedlog.transport.dense import DenseOrder
from fedlog.transport.errors import UnknownTopicError
from fedlog.transport.kafka.connection import Connection
from fedlog.transport.kafka.fetch import fetch, leader_of

log = logging.getLogger(__name__)

_PAUSE_S = 0.05
_ASK_WAIT_MS = 10  # (T) answers a fetch that must not wait with nothing at all


def end_offset(connection: Connection, topic: str, partition: int) -> int:
    """The offset that the next record gets; open transactions count.

    (T) names the start of the last batch when asked for the end, so a fetch there says how far
    the partition really goes.
    """
    at = TopicPartition(topic, partition)

    def ask(admin: KafkaAdminClient) -> int:
        told: int = admin.list_partition_offsets({at: OffsetSpec.LATEST})[at].offset
        mark: int = admin._manager.run(_high_watermark, admin._client, at, told)
        return max(told, mark)

    return connection.call(f"asking for the end of {topic}", ask)


async def _high_watermark(client: KafkaNetClient, at: TopicPartition, offset: int) -> int:
    leader = await leader_of(client, at)
    answer = await fetch(client, leader, at, offset, max_bytes=1, wait_ms=_ASK_WAIT_MS)
    mark: int = answer.high_watermark
    return mark


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
        on_close: Callable[[KafkaReader], None],
    ) -> None:
        self._connection = connection
        self._on_close = on_close
        self._at = TopicPartition(topic, partition)
        fetch_bytes = connection.largest_fetch_bytes
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
        return end_offset(self._connection, self._at.topic, self._at.partition)

    def close(self) -> None:
        self._consumer.close(autocommit=False)
        self._on_close(self)

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
