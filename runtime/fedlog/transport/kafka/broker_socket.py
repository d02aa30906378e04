"""A blocking connection to one broker, for whoever follows a log.

The library's own clients keep an event loop in a thread of its own; handing each request to it and
back costs four times the CPU of the request itself, which counts where many processes wait for
small records on few cores. This uses the library's messages, and a plain socket.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.metadata import MetadataRequest, MetadataResponse
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeRequest,
    SaslHandshakeResponse,
)

from fedlog.transport.errors import SecurityError
from fedlog.transport.kafka import refusals
from fedlog.transport.kafka.security import CredentialFiles

Address = tuple[str, int]

_DEFAULT_PORT = 9092
_FETCH_VERSION = 12  # the last one that names topics by name; (K) since 2.7
_METADATA_VERSION = 7
_SIZE_BYTES = 4
_SASL_VERSION = 1  # (K) since 1.0: the exchange travels in messages of the protocol
_MAX_SASL_STEPS = 8
_ANSWERS = {
    FetchRequest.API_KEY: FetchResponse,
    MetadataRequest.API_KEY: MetadataResponse,
    SaslHandshakeRequest.API_KEY: SaslHandshakeResponse,
    SaslAuthenticateRequest.API_KEY: SaslAuthenticateResponse,
}


class HungUpError(kafka_errors.KafkaConnectionError):  # type: ignore[misc] # no types there
    """The broker closed a connection on which it had answered nothing yet.

    It may be starting or ending; one that does so again and again wants another protocol.
    """


class BrokerSocket:
    """One request at a time. Every method raises KafkaConnectionError once the broker is away, and
    SecurityError where the broker and we do not agree on encryption or identity.
    """

    def __init__(
        self,
        address: Address,
        *,
        credentials: CredentialFiles,
        client_id: str,
        timeout_s: float,
        max_answer_bytes: int,
    ) -> None:
        """Connect, encrypt and authenticate, each step within `timeout_s`."""
        self.address = address
        self._credentials = credentials
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._correlation = 0
        self._asked: Any = None
        self._answered = False
        current = credentials.current()
        with self._connection_errors():
            self._socket = _connected(address, timeout_s)
        self._expect(_SIZE_BYTES)
        try:
            if current.context is not None:
                with self._connection_errors():
                    self._socket = current.context.wrap_socket(
                        self._socket, server_hostname=address[0].rstrip(".")
                    )
            if current.sasl:
                self._authenticate(current.mechanism(address[0]))
        except BaseException:
            self._socket.close()
            raise

    def ask(self, request: Any) -> None:
        """Send a request; its answer comes from `answer`."""
        self._correlation = (self._correlation + 1) % 2**31
        request.with_header(correlation_id=self._correlation, client_id=self._client_id)
        self._asked = request
        with self._connection_errors():
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(request.encode(framed=True, header=True))

    def answer(self, timeout_s: float) -> Any | None:
        """The answer; None while it is not complete. Then this may be called again."""
        deadline = time.monotonic() + timeout_s
        while self._received < len(self._buffer) or len(self._buffer) == _SIZE_BYTES:
            if self._received == _SIZE_BYTES == len(self._buffer):
                size = int.from_bytes(self._buffer)
                if refusals.is_tls_alert(self._buffer) and not self._answered:
                    raise refusals.wants_tls(self.address, self._credentials.security)
                if not _SIZE_BYTES < size <= self._max_answer_bytes:
                    raise kafka_errors.KafkaProtocolError(f"an answer of {size} bytes")
                self._expect(size)
            with self._connection_errors():
                try:
                    self._socket.settimeout(max(deadline - time.monotonic(), 0.0))
                    count = self._socket.recv_into(memoryview(self._buffer)[self._received :])
                except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                    return None
            if count == 0:
                raise self._hung_up()
            self._received += count
        body, asked = self._buffer, self._asked
        self._expect(_SIZE_BYTES)
        response = _ANSWERS[asked.API_KEY].decode(body, version=asked.API_VERSION, header=True)
        if response.header.correlation_id != self._correlation:
            raise kafka_errors.CorrelationIdError(f"{self.address} answers another request")
        self._answered = True
        return response

    def close(self) -> None:
        self._socket.close()

    def _expect(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._received = 0

    def _authenticate(self, mechanism: Any) -> None:
        """SASL (KIP-43, KIP-152) in the library's own words."""
        security = self._credentials.security
        hand = self._now(SaslHandshakeRequest(mechanism=security.mechanism, version=_SASL_VERSION))
        if hand.error_code:
            raise refusals.unknown_mechanism(self.address, security, hand.mechanisms)
        try:
            for _ in range(_MAX_SASL_STEPS):
                if mechanism.is_done():
                    break
                token = mechanism.auth_bytes()
                step = self._now(SaslAuthenticateRequest(auth_bytes=token, version=_SASL_VERSION))
                if step.error_code:
                    raise refusals.not_authenticated(self.address, security)
                mechanism.receive(step.auth_bytes)
        except (ValueError, KeyError) as error:
            # The other half of SCRAM: a broker proves that it knows the password, too.
            raise refusals.broker_not_authenticated(self.address, security) from error
        if not mechanism.is_authenticated():
            raise refusals.not_authenticated(self.address, security)

    def _now(self, request: Any) -> Any:
        """Ask, and wait for the answer."""
        self.ask(request)
        response = self.answer(self._timeout_s)
        if response is None:
            raise kafka_errors.KafkaTimeoutError(f"no answer from {self.address}")
        return response

    def _hung_up(self) -> kafka_errors.KafkaConnectionError:
        kind = kafka_errors.KafkaConnectionError if self._answered else HungUpError
        return kind(f"{self.address} has closed the connection")

    @contextlib.contextmanager
    def _connection_errors(self) -> Iterator[None]:
        try:
            yield
        except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError) as error:
            raise self._hung_up() from error
        except ssl.SSLError as error:
            refused = refusals.of_tls(error, self.address, self._credentials.security)
            raise refused from error
        except OSError as error:
            raise kafka_errors.KafkaConnectionError(str(error)) from error


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


def look(broker: BrokerSocket, timeout_s: float) -> list[Address]:
    """The addresses of all brokers; proves that this one takes requests from us."""
    return _addresses(_metadata(broker, [], timeout_s))


def connect_to_leader(
    at: TopicPartition,
    known: Iterable[Address],
    *,
    credentials: CredentialFiles,
    client_id: str,
    timeout_s: float,
    max_answer_bytes: int,
) -> tuple[BrokerSocket, list[Address]]:
    """A connection to whoever leads the partition, and the addresses of all brokers.

    Asks the `known` brokers in turn, each for at most `timeout_s` a step; creates no topic. Raises
    the last one's KafkaError or SecurityError.
    """

    def connect(address: Address) -> BrokerSocket:
        return BrokerSocket(
            address,
            credentials=credentials,
            client_id=client_id,
            timeout_s=timeout_s,
            max_answer_bytes=max_answer_bytes,
        )

    problem: Exception = kafka_errors.KafkaConnectionError("no broker is known")
    for address in known:
        try:
            broker = connect(address)
        except (kafka_errors.KafkaError, SecurityError) as error:
            problem = error
            continue
        try:
            leader, brokers = _leader(broker, at, timeout_s)
        except (kafka_errors.KafkaError, SecurityError) as error:
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
    response = _metadata(broker, [topic], timeout_s)
    brokers = {each.node_id: (each.host, each.port) for each in response.brokers}
    for topic in response.topics:
        if topic.error_code:
            raise kafka_errors.for_code(topic.error_code)(at.topic)
        for partition in topic.partitions:
            if partition.partition_index == at.partition and partition.leader_id in brokers:
                return brokers[partition.leader_id], _addresses(response)
    raise kafka_errors.LeaderNotAvailableError(f"{at.topic}/{at.partition}")


def _metadata(broker: BrokerSocket, topics: list[Any], timeout_s: float) -> Any:
    broker.ask(
        MetadataRequest(topics=topics, allow_auto_topic_creation=False, version=_METADATA_VERSION)
    )
    response = broker.answer(timeout_s)
    if response is None:
        raise kafka_errors.KafkaTimeoutError(f"no answer from {broker.address}")
    return response


def _addresses(metadata: Any) -> list[Address]:
    return [(each.host, each.port) for each in metadata.brokers]


def _connected(address: Address, timeout_s: float) -> socket.socket:
    connected = socket.create_connection(address, timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
