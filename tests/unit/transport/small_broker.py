"""A broker of one topic for one test: it speaks Metadata and Fetch over a real socket, as told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.metadata import MetadataRequest, MetadataResponse
from kafka.record.memory_records import MemoryRecordsBuilder

NOT_LEADER = 6
TOPIC = "t"


class SmallBroker:
    """`records`: values from offset 0. `leader`: whom it names. `fetch_error`: its answer to a
    fetch. `silent`: it takes connections and requests and never answers; with `at_fetch` it falls
    silent at fetches alone.
    """

    def __init__(self, records: tuple[bytes, ...] = (), *, silent: bool = False) -> None:
        self.records = records
        self.silent = silent
        self.silent_at_fetch = False
        self.fetch_error = 0
        self.leader: SmallBroker = self
        self.fetches = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.address: tuple[str, int] = self._listener.getsockname()
        self._spawn(self._accept)

    @property
    def server(self) -> str:
        return "{}:{}".format(*self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        for each in [self._listener, *self._connections]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._spawn(lambda connection=connection: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while len(size := stream.read(4)) == 4:
                request = stream.read(int.from_bytes(size))
                response = None if self.silent else self._answer(request)
                if response is not None:
                    connection.sendall(len(response).to_bytes(4) + response)

    def _answer(self, request: bytes) -> bytes | None:
        key, correlation = int.from_bytes(request[:2]), request[4:8]
        if key == MetadataRequest.API_KEY:
            return correlation + self._metadata().encode()
        assert key == FetchRequest.API_KEY
        self.fetches += 1
        if self.silent_at_fetch:
            return None
        asked = FetchRequest.decode(request, version=12, header=True)
        offset = asked.topics[0].partitions[0].fetch_offset
        return correlation + b"\0" + self._fetched(offset).encode()

    def _metadata(self) -> Any:
        brokers = {id(each): each for each in (self, self.leader)}.values()
        ids = {id(each): number for number, each in enumerate(brokers, start=1)}
        topic = MetadataResponse.MetadataResponseTopic
        partition = topic.MetadataResponsePartition(
            error_code=0,
            partition_index=0,
            leader_id=ids[id(self.leader)],
            leader_epoch=0,
            replica_nodes=[1],
            isr_nodes=[1],
            offline_replicas=[],
        )
        return MetadataResponse(
            throttle_time_ms=0,
            brokers=[
                MetadataResponse.MetadataResponseBroker(
                    node_id=ids[id(each)], host=each.address[0], port=each.address[1], rack=None
                )
                for each in brokers
            ],
            cluster_id="small",
            controller_id=1,
            topics=[topic(error_code=0, name=TOPIC, is_internal=False, partitions=[partition])],
            version=7,
        )

    def _fetched(self, offset: int) -> Any:
        builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=2**20, offset=offset)
        for value in () if self.fetch_error else self.records[offset:]:
            builder.append(timestamp=1, key=None, value=value)
        builder.close()
        topic = FetchResponse.FetchableTopicResponse
        partition = topic.PartitionData(
            partition_index=0,
            error_code=self.fetch_error,
            high_watermark=len(self.records),
            last_stable_offset=len(self.records),
            log_start_offset=0,
            aborted_transactions=None,
            preferred_read_replica=-1,
            records=builder.buffer() if builder.size_in_bytes() else b"",
        )
        return FetchResponse(
            throttle_time_ms=0,
            error_code=0,
            session_id=0,
            responses=[topic(topic=TOPIC, partitions=[partition])],
            version=12,
        )
