"""What another program writes never stands in the way of what lies behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError

from fedlog.transport.base import Record, TopicSpec
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.errors import TransportError
from fedlog.transport.kafka import KafkaTransport
from processes import until

MIB = 2**20
POISON: dict[str, tuple[dict[str, Any], bytes]] = {
    "gzip that unpacks to 64 MiB": ({"compression_type": "gzip"}, bytes(64 * MIB)),
    "zstd that unpacks to 64 MiB": ({"compression_type": "zstd"}, bytes(64 * MIB)),
    "a record of 20 MiB": ({}, os.urandom(20 * MIB)),
    "no value": ({}, b""),
}


@pytest.fixture
def log(broker: BrokerProcess) -> Iterator[KafkaTransport]:
    transport = KafkaTransport(broker.bootstrap_servers, deadline_s=10)
    yield transport
    transport.close()


def write(broker: BrokerProcess, topic: str, poison: str) -> None:
    """As a program without our bounds; the broker may refuse it."""
    settings, value = POISON[poison]
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, max_request_size=128 * MIB, **settings
    )
    try:
        producer.send(topic, value or None, key=b"key", partition=0).get(20)
    except KafkaError:
        pass
    finally:
        producer.close()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
def test_a_reader_goes_on_behind_it(
    broker: BrokerProcess,
    log: KafkaTransport,
    new_name: Callable[[str], str],
    poison: str,
    dense: bool,
) -> None:
    topic = new_name("log")
    log.create_topics([TopicSpec(topic)])
    writer = log.writer()
    writer.send(topic, b"before").result(10)
    write(broker, topic, poison)
    writer.send(topic, b"after").result(10)

    resident = psutil.Process().memory_info().rss
    found: list[Record] = []
    reader = log.reader(topic, dense=dense)
    until(
        lambda: bool(found.extend(reader.poll(0.2)) or (found and found[-1].value == b"after")),
        "the record behind it",
        20,
    )
    assert found[0].value == b"before"
    assert [record.offset for record in found] == list(range(len(found)))
    # What was stored may be held, in a few copies for a moment; what is packed into it never is.
    assert all(len(record.value) <= 20 * MIB for record in found)
    assert psutil.Process().memory_info().rss - resident < 120 * MIB


def test_a_packed_chunk_is_never_unpacked(
    broker: BrokerProcess, log: KafkaTransport, new_name: Callable[[str], str]
) -> None:
    topic = new_name("bulk")
    log.create_topics([TopicSpec(topic)])
    write(broker, topic, "gzip that unpacks to 64 MiB")
    try:
        values = list(log.bulk_reader(70_000).read(topic, 0, [0], 3))
    except TransportError:
        return  # the broker did not take it
    assert values == [b""]
