"""The brokers that integration tests run against, one of each per test process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlog.transport.apache import ApacheKafka
from fedlog.transport.base import Transport
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.embedded import EmbeddedBroker
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.kafka.security import PLAINTEXT
from fedlog.transport.memory import MemoryTransport
from integration.secured import SecuredKafka, everything

REPOSITORY = Path(__file__).parents[2]

KAFKA_BROKERS = [
    pytest.param("embedded_broker", id="embedded"),
    pytest.param("apache_kafka", id="apache", marks=pytest.mark.apache_kafka),
]


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    jars = Path(os.environ.get("FEDLOG_KAFKA_JARS", REPOSITORY / ".cache/kafka/libs"))
    if not any(jars.glob("kafka_*.jar")):
        message = f"no Apache Kafka in {jars}: run `make kafka`, or set FEDLOG_KAFKA_JARS"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return jars


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(kafka_jars: Path) -> Iterator[ApacheKafka]:
    with ApacheKafka(kafka_jars) as broker:
        yield broker


@pytest.fixture(scope="session")
def secured_kafka(
    kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecuredKafka]:
    """TLS, SCRAM and ACLs; the user `operator` may do everything."""
    kafka = SecuredKafka(kafka_jars, tmp_path_factory.mktemp("secured"))
    with kafka.broker:
        kafka.allow("operator", everything())
        yield kafka


@pytest.fixture(params=KAFKA_BROKERS)
def broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each real broker in turn."""
    found: BrokerProcess = request.getfixturevalue(request.param)
    return found


@pytest.fixture(
    params=[
        pytest.param("memory", id="memory"),
        *KAFKA_BROKERS,
        pytest.param("secured_kafka", id="secured", marks=pytest.mark.apache_kafka),
    ]
)
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[], Transport]]:
    """Makes connections to one log: memory, each real broker, one over TLS with a password whose
    sessions end every few seconds; closed after the test.
    """
    made: list[Transport] = []
    if request.param == "memory":
        log = MemoryTransport()
        yield lambda: log
    else:
        broker = request.getfixturevalue(request.param)
        address, security = (
            (broker.sasl, broker.scram("operator"))
            if isinstance(broker, SecuredKafka)
            else (broker.bootstrap_servers, PLAINTEXT)
        )

        def another() -> Transport:
            made.append(KafkaTransport(address, deadline_s=20, security=security))
            return made[-1]

        yield another
        for transport in made:
            transport.close()


@pytest.fixture
def transport(connect: Callable[[], Transport]) -> Transport:
    return connect()


@pytest.fixture
def new_name() -> Callable[[str], str]:
    """Topic names and ids that no other test has."""
    prefix = f"test.{uuid.uuid4().hex[:8]}"
    return lambda name: f"{prefix}.{name}"
