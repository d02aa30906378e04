"""Random reads of chunks: exactly the records that are asked for, fetched ahead.

A consumer would fetch what follows a run of chunks, too, which on a shared partition belongs to
other clients. So this sends fetch requests of its own, each as large as the chunks that it wants:
several chunks of one run at once, one chunk where runs are interleaved.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.record import MemoryRecords

from fedlog.transport.errors import BulkMissingError, TransportError
from fedlog.transport.kafka.batches import is_old, unpacked
from fedlog.transport.kafka.connection import Connection
from fedlog.transport.kafka.fetch import fetch, leader_of

WINDOW_CHUNKS = 3  # an answer is held whole; (T) never sends more than 6 of 900 kB in one
_BATCH_OVERHEAD_BYTES = 256  # a batch of one record has a header of 61 + up to 21
_REQUESTS = 4  # the library refuses the sixth on one connection
_MISSING_TRIES = 5
_PAUSE_S = 0.02
_MAX_PAUSE_S = 0.5
_WAIT_MS = 100


@dataclass
class _Window:
    """Consecutive offsets that one request asks for."""

    first: int
    count: int
    response: Any = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class KafkaBulkReader:
    """One connection of its own; what is under way is at most 2 * WINDOW_CHUNKS chunks."""

    def __init__(
        self,
        connection: Connection,
        chunk_bytes: int,
        on_close: Callable[[KafkaBulkReader], None],
    ) -> None:
        self._connection = connection
        self._on_close = on_close
        self._chunk_bytes = chunk_bytes
        self._client = connection.open(
            _bootstrapped,
            receive_message_max_bytes=2 * self._limit(WINDOW_CHUNKS) + 2**20,
        )
        self._leaders: dict[TopicPartition, int] = {}

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        """See BulkReader. `timeout_s` is how long any one chunk may take to come."""
        at = TopicPartition(topic, partition)
        asked: deque[_Window] = deque()
        for window in _windows(offsets):
            while asked and not _fits(asked, window):
                yield from self._values(at, asked.popleft(), timeout_s)
            self._ask(at, window)
            asked.append(window)
        while asked:
            yield from self._values(at, asked.popleft(), timeout_s)

    def close(self) -> None:
        self._client.close()
        self._on_close(self)

    def _limit(self, chunks: int) -> int:
        """Bytes to ask for. One chunk: less than it takes, and both brokers send just that one;
        with room for it (T) adds the next.
        """
        if chunks == 1:
            return self._chunk_bytes
        return chunks * (self._chunk_bytes + _BATCH_OVERHEAD_BYTES)

    def _ask(self, at: TopicPartition, window: _Window) -> None:
        """Send the request for a window; its answer is waited for in `_answer`."""
        window.done.clear()
        window.response = window.error = None

        def succeeded(response: Any) -> None:
            window.response = response
            window.done.set()

        def failed(error: BaseException) -> None:
            window.error = error
            window.done.set()

        future = self._client._manager.call_soon(self._fetch, at, window)
        future.add_callback(succeeded)
        future.add_errback(failed)

    async def _fetch(self, at: TopicPartition, window: _Window) -> Any:
        if at not in self._leaders:
            self._leaders[at] = await leader_of(self._client, at)
        return await fetch(
            self._client,
            self._leaders[at],
            at,
            window.first,
            max_bytes=self._limit(window.count),
            wait_ms=_WAIT_MS,
        )

    def _values(self, at: TopicPartition, window: _Window, timeout_s: float) -> Iterator[bytes]:
        """The values of one window, asked for again from the first one that is not there yet."""
        misses = 0
        failures = 0
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answer(at, window, deadline)
            except kafka_errors.KafkaError as error:
                self._leaders.pop(at, None)
                what = f"reading {at.topic}/{at.partition}"
                problem = self._connection.translated(error, what)
                if not problem.retriable or time.monotonic() > deadline:
                    raise self._connection.explained(error, what) from error
                pause_s = min(_PAUSE_S * 2**failures, _MAX_PAUSE_S)
                failures += 1
            else:
                before = window.count
                for value in _consecutive(answer, window):
                    yield value
                    deadline = time.monotonic() + timeout_s  # the caller's work is not waiting
                if window.count == 0:
                    return
                if window.count < before:  # the answer was smaller than what was asked for
                    misses = 0
                    pause_s = 0.0
                else:
                    misses += 1
                    pause_s = min(_PAUSE_S * 2**misses, _MAX_PAUSE_S)
                    if misses >= _MISSING_TRIES:
                        raise BulkMissingError(
                            f"{at.topic}/{at.partition} has no record at offset {window.first}"
                        )
            time.sleep(pause_s)
            self._ask(at, window)

    def _answer(self, at: TopicPartition, window: _Window, deadline: float) -> Any:
        if not window.done.wait(max(deadline - time.monotonic(), 0.0)):
            raise kafka_errors.KafkaTimeoutError(f"no answer for offset {window.first}")
        if window.error is not None:
            if isinstance(window.error, kafka_errors.UnknownTopicOrPartitionError):
                raise BulkMissingError(
                    f"{at.topic}/{at.partition} is not there (any more)"
                ) from window.error
            raise window.error
        kind = kafka_errors.for_code(window.response.error_code)
        if kind in (
            kafka_errors.OffsetOutOfRangeError,
            kafka_errors.UnknownTopicOrPartitionError,
        ):
            raise BulkMissingError(
                f"{at.topic}/{at.partition} has no record at offset {window.first}: {kind.__name__}"
            )
        if kind is not kafka_errors.NoError:
            raise kind(f"fetching offset {window.first}")
        return window.response


def _bootstrapped(*, kafka_client: Any, **settings: Any) -> KafkaNetClient:
    """A bare client of the library, its event loop running."""
    timeout_ms = settings.pop("bootstrap_timeout_ms")
    client = kafka_client(**settings)
    client._net.start()
    client._manager.bootstrap(timeout_ms)
    return client


def _fits(asked: Iterable[_Window], window: _Window) -> bool:
    """Whether one more request may be under way: bounded in requests and in chunks."""
    counts = [each.count for each in asked]
    return len(counts) < _REQUESTS and sum(counts) + window.count <= 2 * WINDOW_CHUNKS


def _windows(offsets: Iterable[int]) -> Iterator[_Window]:
    window: _Window | None = None
    for offset in offsets:
        if (
            window is not None
            and offset == window.first + window.count < window.first + WINDOW_CHUNKS
        ):
            window.count += 1
            continue
        if window is not None:
            if offset < window.first + window.count:
                raise TransportError(f"offsets must ascend; {offset} is not above the one before")
            yield window
        window = _Window(offset, 1)
    if window is not None:
        yield window


def _consecutive(answer: Any, window: _Window) -> Iterator[bytes]:
    """The values from the window's first offset on; the window shrinks by each.

    Checksums of batches are left out: every chunk's digest is checked by whoever asked.
    """
    if not answer.records:
        return
    for batch in MemoryRecords(answer.records):
        if not is_old(batch) and (batch.is_control_batch or batch.last_offset < window.first):
            continue
        for record in unpacked(batch, "bulk"):
            if window.count == 0 or record.offset > window.first:
                return
            if record.offset == window.first:
                window.first += 1
                window.count -= 1
                yield record.value
