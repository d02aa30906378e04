"""No topic is made by accident, and none that this run did not create is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from fedlog.transport.base import TopicSpec
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.errors import BulkMissingError, UnknownTopicError
from fedlog.transport.kafka import KafkaTransport

WAIT_S = 20.0

Name = Callable[[str], str]


@pytest.fixture
def transport(broker: BrokerProcess) -> Iterator[KafkaTransport]:
    transport = KafkaTransport(broker.bootstrap_servers, deadline_s=WAIT_S)
    yield transport
    transport.close()


@pytest.fixture
def topics(broker: BrokerProcess) -> Iterator[Callable[[], set[str]]]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    # Kafka's own topics (__transaction_state) come with the first transaction.
    yield lambda: {name for name in admin.list_topics() if not name.startswith("__")}
    admin.close()


def contents(transport: KafkaTransport, topic: str) -> list[bytes]:
    reader = transport.reader(topic)
    found = []
    while reader.position < reader.end_offset():
        found += [record.value for record in reader.poll(1.0)]
    reader.close()
    return found


def test_topics_that_were_there_before_keep_their_records_and_partitions(
    transport: KafkaTransport, topics: Callable[[], set[str]], new_name: Name
) -> None:
    foreign, ours_from_before, new = new_name("orders"), new_name("run.events"), new_name("run.new")
    before = transport.create_topics([TopicSpec(foreign), TopicSpec(ours_from_before)])
    writer = transport.writer()
    for topic in before:
        for number in range(3):
            writer.send(topic, b"%d" % number)
    writer.flush(WAIT_S)
    known = topics()

    created = transport.create_topics(
        [TopicSpec(ours_from_before, partitions=4, compacted=True), TopicSpec(new)]
    )
    assert created == {new}
    assert topics() == known | {new}
    writer.send(new, b"value").result(WAIT_S)
    if transport.can_trim:
        transport.trim(new, 0, 1)
    transport.delete_topics(created)

    assert before <= topics()
    for topic in before:
        assert transport.partitions(topic) == 1
        assert contents(transport, topic) == [b"0", b"1", b"2"]


def test_nothing_but_create_topics_creates_topics(
    transport: KafkaTransport, topics: Callable[[], set[str]], new_name: Name
) -> None:
    there, missing = new_name("there"), new_name("missing")
    transport.create_topics([TopicSpec(there)])
    known = topics()
    writer = transport.writer()
    server = transport.writer(transactional_id=new_name("id"))
    with pytest.raises(UnknownTopicError):
        writer.send(missing, b"value")
    with pytest.raises(UnknownTopicError), server.transaction():
        server.send(missing, b"value")
    for start in (0, None):
        with pytest.raises(UnknownTopicError):
            transport.reader(missing, start=start)
    with pytest.raises(BulkMissingError):
        list(transport.bulk_reader(1000).read(missing, 0, [0], WAIT_S))
    assert transport.partitions(missing, 0.2) is None
    transport.delete_topics([missing])

    reader = transport.reader(there)
    writer.send(there, b"value").result(WAIT_S)
    assert reader.poll(WAIT_S)
    transport.delete_topics([there])
    reader.poll(0.5)
    with pytest.raises(UnknownTopicError):
        reader.end_offset()
    assert topics() == known - {there}


def test_no_client_of_the_library_that_we_open_creates_topics(
    broker: BrokerProcess,
    transport: KafkaTransport,
    topics: Callable[[], set[str]],
    new_name: Name,
) -> None:
    known = topics()
    producer = transport._connection.open(KafkaProducer, max_block_ms=500)
    with pytest.raises(kafka_errors.KafkaError):
        producer.partitions_for(new_name("by-producer"))
    producer.close()
    consumer = transport._connection.open(KafkaConsumer, group_id=None)
    consumer.assign([TopicPartition(new_name("by-consumer"), 0)])
    consumer.seek(TopicPartition(new_name("by-consumer"), 0), 0)
    assert consumer.poll(500) == {}
    consumer.close()
    assert topics() == known

    bare = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, max_block_ms=5000)
    name = new_name("by-a-bare-producer")
    bare.send(name, b"value").get(WAIT_S)
    bare.close()
    assert topics() == known | {name}  # the broker would have
