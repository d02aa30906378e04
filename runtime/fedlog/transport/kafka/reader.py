"""Following one partition: assign and seek, no consumer group."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import OffsetSpec
from kafka.record import MemoryRecords

from fedlog.transport.base import Record
from fedlog.transport.dense import DenseOrder
from fedlog.transport.errors import NotAllowedError, SecurityError, UnknownTopicError
from fedlog.transport.kafka.batches import LARGEST_ANSWER_BYTES, is_old, unpacked
from fedlog.transport.kafka.broker_socket import (
    BrokerSocket,
    addresses,
    connect_to_leader,
    fetch_request,
)
from fedlog.transport.kafka.connection import Connection
from fedlog.transport.kafka.fetch import fetch, leader_of

log = logging.getLogger(__name__)

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_MAX_DOUBLINGS = 10
_LEAST_CONNECT_S = 1.0  # a poll that must be quick may take this long where it has to connect
_ANSWER_S = 0.005  # an answer that is due when the time is over is waited for
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
    """One connection, one partition, one fetch at a time.

    It holds at most one fetch, the size of one largest record, whatever the partition holds.
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
        self._committed = committed
        self._wait_s = wait_s
        self._brokers = addresses(connection.bootstrap_servers)
        self._socket: BrokerSocket | None = None
        self._asked: tuple[int, float] | None = None  # offset and time of the request under way
        self._ready: deque[Record] = deque()
        self._next = self.end_offset() if start is None else start
        self._order = DenseOrder(str(self), self._next) if dense else None
        self._retry_at = 0.0
        self._failures = 0
        self._lost_at = 0.0
        self._has_worked = False

    def __str__(self) -> str:
        return f"{self._at.topic}/{self._at.partition}"

    @property
    def position(self) -> int:
        return self._ready[0].offset if self._ready else self._next

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            left_s = max(deadline - time.monotonic(), 0.0)
            pause_s = min(self._retry_at - time.monotonic(), left_s)
            if pause_s > 0:
                time.sleep(pause_s)
            else:
                self._fetch(left_s)
            if left_s <= 0:
                break
        count = min(len(self._ready), max_records)
        return [self._ready.popleft() for _ in range(count)]

    def seek(self, offset: int) -> None:
        self._ready.clear()
        self._next = offset
        self._retry_at = 0.0
        if self._order is not None:
            self._order.seek(offset)

    def end_offset(self) -> int:
        return end_offset(self._connection, self._at.topic, self._at.partition)

    def close(self) -> None:
        self._disconnect()
        self._on_close(self)

    def _fetch(self, timeout_s: float) -> None:
        """Take what the broker has at the position, within the time."""
        try:
            answer = self._answer(timeout_s)
        except kafka_errors.OffsetOutOfRangeError:
            self._return_into_range()
        except (kafka_errors.KafkaError, SecurityError) as error:
            self._failed(error)
        else:
            if answer is not None:
                self._failures = 0
                self._has_worked = True
                self._accept(answer)

    def _answer(self, timeout_s: float) -> Any | None:
        """The answer to a fetch at the position; None while there is none."""
        if self._socket is None:
            self._socket, self._brokers = connect_to_leader(
                self._at,
                dict.fromkeys([*self._brokers, *addresses(self._connection.bootstrap_servers)]),
                credentials=self._connection.credentials,
                client_id=self._connection.client_id,
                timeout_s=min(max(timeout_s, _LEAST_CONNECT_S), self._connection.request_s),
                max_answer_bytes=max(
                    2 * self._connection.largest_fetch_bytes + 2**20, LARGEST_ANSWER_BYTES
                ),
            )
            self._asked = None
        now = time.monotonic()
        if self._asked is None:
            wait_s = min(self._wait_s, timeout_s)
            self._socket.ask(
                fetch_request(
                    self._at,
                    self._next,
                    max_bytes=self._connection.largest_fetch_bytes,
                    wait_s=wait_s,
                    committed=self._committed,
                )
            )
            self._asked = (self._next, now)
        offset, asked_at = self._asked
        give_up_at = asked_at + self._wait_s + self._connection.request_s
        response = self._socket.answer(min(timeout_s + _ANSWER_S, max(give_up_at - now, 0.0)))
        if response is None:
            if time.monotonic() >= give_up_at:
                raise kafka_errors.KafkaTimeoutError(f"no answer from {self._socket.address}")
            return None
        self._asked = None
        if offset != self._next or not response.responses:  # sought since; nothing came
            return None
        answer = response.responses[0].partitions[0]
        if answer.error_code:
            raise kafka_errors.for_code(answer.error_code)(f"fetching {self}")
        return answer

    def _accept(self, answer: Any) -> None:
        records, end = _visible(answer, self._next, committed=self._committed, name=str(self))
        if self._order is None:
            self._next = end
        else:
            records, back = self._order.accept(records)
            self._next = self._order.position
            if back is not None:
                self._retry_at = time.monotonic() + back.pause_s
        self._ready.extend(records)

    def _return_into_range(self) -> None:
        at = self._at
        first = self._connection.call(
            f"asking for the start of {self}",
            lambda admin: admin.list_partition_offsets({at: OffsetSpec.EARLIEST})[at].offset,
        )
        if self._next < first:
            log.info("%s: offsets %d to %d are trimmed", self, self._next, first - 1)
            self.seek(first)
        else:  # past the end: it may still grow to there
            self._retry_at = time.monotonic() + _PAUSE_S

    def _failed(self, error: kafka_errors.KafkaError | SecurityError) -> None:
        """Connect anew after a pause; raise once this has lasted for the deadline.

        A refusal may pass, as this transport was let in before: certificates, passwords and rights
        are not replaced everywhere in the same moment. A right that was never there does not come.
        """
        self._disconnect()
        problem = (
            error
            if isinstance(error, SecurityError)
            else self._connection.translated(error, f"reading {self}")
        )
        may_pass = isinstance(problem, SecurityError) and (
            self._has_worked or not isinstance(problem, NotAllowedError)
        )
        if not problem.retriable and not isinstance(problem, UnknownTopicError) and not may_pass:
            raise problem from error
        now = time.monotonic()
        if self._failures == 0:
            self._lost_at = now
        elif now - self._lost_at > self._connection.deadline_s:
            self._failures = 0
            raise problem from error
        self._retry_at = now + min(_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)

    def _disconnect(self) -> None:
        self._asked = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _visible(answer: Any, position: int, *, committed: bool, name: str) -> tuple[list[Record], int]:
    """What a reader at `position` sees of an answer, and the offset after all that came.

    Markers of transactions are never seen. (K) names the aborted transactions in its answer, by
    producer and first offset; what such a producer wrote from there to its marker is left out.
    """
    records: list[Record] = []
    if not answer.records:
        return records, position
    aborted = deque(
        sorted(answer.aborted_transactions or [], key=lambda each: each.first_offset)
        if committed
        else []
    )
    aborting: set[int] = set()
    end = position
    for batch in MemoryRecords(answer.records):
        if not batch.validate_crc():
            # On its way here, then: the broker checks what it stores.
            raise kafka_errors.KafkaConnectionError(f"offset {batch.base_offset} came damaged")
        if is_old(batch):
            end = max(end, batch.base_offset + 1)
            records += [each for each in unpacked(batch, name) if each.offset >= position]
            continue
        end = max(end, batch.next_offset)
        while aborted and aborted[0].first_offset <= batch.last_offset:
            aborting.add(aborted.popleft().producer_id)
        if batch.is_control_batch:
            # Whatever it is, abort or commit: the producer's transaction ends here.
            aborting.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in aborting):
            records += [each for each in unpacked(batch, name) if each.offset >= position]
    return records, end
