"""A blocking connection to one broker, for whoever follows a log.

The library's own clients keep an event loop in a thread of its own; handing each request to it and
back costs four times the CPU of the request itself, which counts where many processes wait for
small records on few cores. This uses the library's messages, and a plain socket.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.metadata import MetadataRequest, MetadataResponse

Address = tuple[str, int]

_DEFAULT_PORT = 9092
_FETCH_VERSION = 12  # the last one that names topics by name; (K) since 2.7
_METADATA_VERSION = 7
_SIZE_BYTES = 4
_ANSWERS = {FetchRequest.API_KEY: FetchResponse, MetadataRequest.API_KEY: MetadataResponse}


class BrokerSocket:
    """One request at a time. Every method raises KafkaConnectionError once the broker is away."""

    def __init__(
        self, address: Address, *, client_id: str, timeout_s: float, max_answer_bytes: int
    ) -> None:
        self.address = address
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._correlation = 0
        self._asked: Any = None
        with _connection_errors():
            self._socket = _connected(address, timeout_s)
        self._expect(_SIZE_BYTES)

    def ask(self, request: Any) -> None:
        """Send a request; its answer comes from `answer`."""
        self._correlation = (self._correlation + 1) % 2**31
        request.with_header(correlation_id=self._correlation, client_id=self._client_id)
        self._asked = request
        with _connection_errors():
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(request.encode(framed=True, header=True))

    def answer(self, timeout_s: float) -> Any | None:
        """The answer; None while it is not complete. Then this may be called again."""
        deadline = time.monotonic() + timeout_s
        while self._received < len(self._buffer) or len(self._buffer) == _SIZE_BYTES:
            if self._received == _SIZE_BYTES == len(self._buffer):
                size = int.from_bytes(self._buffer)
                if not _SIZE_BYTES < size <= self._max_answer_bytes:
                    raise kafka_errors.KafkaProtocolError(f"an answer of {size} bytes")
                self._expect(size)
            with _connection_errors():
                try:
                    self._socket.settimeout(max(deadline - time.monotonic(), 0.0))
                    count = self._socket.recv_into(memoryview(self._buffer)[self._received :])
                except (TimeoutError, BlockingIOError):
                    return None
            if count == 0:
                raise kafka_errors.KafkaConnectionError(f"{self.address} has closed the connection")
            self._received += count
        body, asked = self._buffer, self._asked
        self._expect(_SIZE_BYTES)
        response = _ANSWERS[asked.API_KEY].decode(body, version=asked.API_VERSION, header=True)
        if response.header.correlation_id != self._correlation:
            raise kafka_errors.CorrelationIdError(f"{self.address} answers another request")
        return response

    def close(self) -> None:
        self._socket.close()

    def _expect(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._received = 0


def fetch_request(
    at: TopicPartition, offset: int, *, max_bytes: int, wait_s: float, committed: bool
) -> FetchRequest:
    """Records of one partition from `offset` on."""
    topic = FetchRequest.FetchTopic
    partition = topic.FetchPartition(
        partition=at.partition,
        current_leader_epoch=-1,
        fetch_offset=offset,
        last_fetched_epoch=-1,
        partition_max_bytes=max_bytes,
    )
    return FetchRequest(
        max_wait_ms=max(round(wait_s * 1000), 1),  # (T) answers nothing at all with 0
        min_bytes=1,
        max_bytes=max_bytes,
        isolation_level=int(committed),
        session_id=0,
        session_epoch=-1,
        topics=[topic(topic=at.topic, partitions=[partition])],
        forgotten_topics_data=[],
        rack_id="",
        version=_FETCH_VERSION,
    )


def addresses(bootstrap_servers: str) -> list[Address]:
    """The addresses in a text like `host:port,[v6]:port,host`."""
    found = []
    for part in bootstrap_servers.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not colon or port.endswith("]"):
            host, port = part.strip(), str(_DEFAULT_PORT)
        found.append((host.strip("[]"), int(port)))
    return found


def connect_to_leader(
    at: TopicPartition,
    known: Iterable[Address],
    *,
    client_id: str,
    timeout_s: float,
    max_answer_bytes: int,
) -> tuple[BrokerSocket, list[Address]]:
    """A connection to whoever leads the partition, and the addresses of all brokers.

    Asks the `known` brokers in turn, each for at most `timeout_s`; creates no topic. Raises the
    last one's KafkaError.
    """

    def connect(address: Address) -> BrokerSocket:
        return BrokerSocket(
            address,
            client_id=client_id,
            timeout_s=timeout_s,
            max_answer_bytes=max_answer_bytes,
        )

    problem: kafka_errors.KafkaError = kafka_errors.KafkaConnectionError("no broker is known")
    for address in known:
        try:
            broker = connect(address)
        except kafka_errors.KafkaError as error:
            problem = error
            continue
        try:
            leader, brokers = _leader(broker, at, timeout_s)
        except kafka_errors.KafkaError as error:
            broker.close()
            problem = error
            continue
        if leader == address:
            return broker, brokers
        broker.close()
        return connect(leader), brokers
    raise problem


def _leader(
    broker: BrokerSocket, at: TopicPartition, timeout_s: float
) -> tuple[Address, list[Address]]:
    topic = MetadataRequest.MetadataRequestTopic(name=at.topic)
    broker.ask(
        MetadataRequest(topics=[topic], allow_auto_topic_creation=False, version=_METADATA_VERSION)
    )
    response = broker.answer(timeout_s)
    if response is None:
        raise kafka_errors.KafkaTimeoutError(f"no answer from {broker.address}")
    brokers = {each.node_id: (each.host, each.port) for each in response.brokers}
    for topic in response.topics:
        if topic.error_code:
            raise kafka_errors.for_code(topic.error_code)(at.topic)
        for partition in topic.partitions:
            if partition.partition_index == at.partition and partition.leader_id in brokers:
                return brokers[partition.leader_id], list(brokers.values())
    raise kafka_errors.LeaderNotAvailableError(f"{at.topic}/{at.partition}")


def _connected(address: Address, timeout_s: float) -> socket.socket:
    """The one place where a connection begins: encryption and authentication belong here."""
    connected = socket.create_connection(address, timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise kafka_errors.KafkaConnectionError(str(error)) from error
