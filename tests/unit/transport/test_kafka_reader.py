"""The reader over a plain socket, and the first look at brokers: changes, silence, strangers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fedlog.transport.errors import BrokerUnavailableError, EncryptionError
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.kafka.connection import Connection
from fedlog.transport.kafka.reader import KafkaReader
from fedlog.transport.kafka.security import PLAINTEXT, Security
from unit.transport.small_broker import NOT_LEADER, TOPIC, SmallBroker

DEADLINE_S = 1.0
LATE_S = 10.0


def _connection(servers: str, security: Security = PLAINTEXT) -> Connection:
    return Connection(
        servers, security=security, client_id="test", deadline_s=DEADLINE_S, max_message_bytes=1000
    )


def _reader(servers: str) -> KafkaReader:
    return KafkaReader(
        _connection(servers),
        TOPIC,
        0,
        start=0,
        dense=True,
        committed=False,
        wait_s=0.02,
        on_close=lambda _: None,
    )


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """An address that is ours and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_reader_follows_the_leadership_to_another_broker() -> None:
    with SmallBroker((b"a",)) as first, SmallBroker((b"a", b"b")) as second:
        reader = _reader(first.server)
        assert [each.value for each in reader.poll(LATE_S)] == [b"a"]
        first.leader = second
        first.fetch_error = NOT_LEADER
        assert [(each.offset, each.value) for each in reader.poll(LATE_S)] == [(1, b"b")]
        assert second.fetches > 0
        reader.close()


def test_a_reader_leaves_a_broker_that_falls_silent() -> None:
    with SmallBroker((b"a",)) as first, SmallBroker((b"a", b"b")) as second:
        reader = _reader(first.server)
        assert len(reader.poll(LATE_S)) == 1
        first.silent_at_fetch = True
        first.leader = second
        assert [each.value for each in reader.poll(LATE_S)] == [b"b"]
        reader.close()


def test_a_reader_of_a_silent_broker_ends_at_the_deadline() -> None:
    with SmallBroker((b"a",)) as broker:
        reader = _reader(broker.server)
        assert len(reader.poll(LATE_S)) == 1
        broker.silent = True
        started = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            reader.poll(LATE_S)
        assert DEADLINE_S <= time.monotonic() - started < LATE_S
        reader.close()


@pytest.mark.parametrize(
    "security",
    [
        pytest.param(PLAINTEXT, id="plain"),
        pytest.param(Security(encrypted=True), id="tls"),
        pytest.param(Security(mechanism="SCRAM-SHA-512", username="u", password="p"), id="scram"),
    ],
)
def test_a_broker_that_never_answers_is_given_up(security: Security) -> None:
    with SmallBroker(silent=True) as broker:
        transport = KafkaTransport(broker.server, security=security, deadline_s=DEADLINE_S)
        started = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match="no Kafka broker answers"):
            transport.partitions(TOPIC)
        with pytest.raises(BrokerUnavailableError):
            transport.writer()
        assert time.monotonic() - started < LATE_S
        transport.close()


def test_one_of_several_servers_is_enough(refusing_server: str) -> None:
    with SmallBroker(silent=True) as silent, SmallBroker((b"a",)) as broker:
        servers = f"{refusing_server},{silent.server},{broker.server}"
        assert _connection(servers).reach() == broker.address
        reader = _reader(servers)
        assert [each.value for each in reader.poll(LATE_S)] == [b"a"]
        reader.close()


def test_a_server_that_lets_us_in_counts_more_than_one_that_refuses() -> None:
    def alert(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(bytes([21, 3, 3, 0, 2, 2, 80]))

    with socket.create_server(("127.0.0.1", 0)) as listener, SmallBroker() as broker:
        stranger = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=alert, args=(listener,))
        thread.start()
        assert _connection(f"{stranger},{broker.server}").reach() == broker.address
        thread.join(LATE_S)
        thread = threading.Thread(target=alert, args=(listener,))
        thread.start()
        with pytest.raises(EncryptionError, match="wants TLS"):
            _connection(stranger).reach()
        thread.join(LATE_S)


def test_a_server_that_starts_late_is_waited_for(refusing_server: str) -> None:
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=refusing_server):
        _connection(refusing_server).reach()
    assert time.monotonic() - started > DEADLINE_S / 2
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        KafkaTransport(refusing_server, deadline_s=LATE_S).check()
    assert time.monotonic() - started < LATE_S / 2
