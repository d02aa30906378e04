"""Holds every transport to the words of fedlog/transport/base.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from fedlog.transport.base import Reader, Record, TopicSpec, Transport
from fedlog.transport.errors import (
    BulkMissingError,
    FencedError,
    RecordTooLargeError,
    TransportError,
    UnknownTopicError,
)
from fedlog.transport.kafka import KafkaTransport

WAIT_S = 20.0
LIMIT = 900_000

Connect = Callable[[], Transport]
Name = Callable[[str], str]


@pytest.fixture
def topic(transport: Transport, new_name: Name) -> str:
    name = new_name("topic")
    assert transport.create_topics([TopicSpec(name, partitions=2)]) == {name}
    return name


apache_alone = pytest.mark.parametrize(
    "connect", [pytest.param("apache_kafka", id="apache")], indirect=True
)


@pytest.fixture
def hides_aborted(request: pytest.FixtureRequest) -> bool:
    """Tansu shows aborted and open transactions to committed readers."""
    return "embedded" not in request.node.callspec.id


def read(reader: Reader, count: int) -> list[Record]:
    """Exactly `count` records, then nothing."""
    deadline = time.monotonic() + WAIT_S
    records: list[Record] = []
    while len(records) < count and time.monotonic() < deadline:
        records += reader.poll(0.2)
    records += reader.poll(0.1)
    assert len(records) == count
    return records


def values(records: Sequence[Record]) -> list[bytes]:
    return [record.value for record in records]


# ---- topics --------------------------------------------------------------------------------------


def test_creating_topics_names_only_those_that_this_call_created(
    connect: Connect, new_name: Name
) -> None:
    ours, theirs = connect(), connect()
    first, second = new_name("first"), new_name("second")
    assert theirs.create_topics([TopicSpec(first, partitions=3)]) == {first}
    assert ours.create_topics([TopicSpec(first), TopicSpec(second, compacted=True)]) == {second}
    assert ours.partitions(first) == 3
    assert ours.create_topics([TopicSpec(first), TopicSpec(second)]) == frozenset()
    assert ours.create_topics([]) == frozenset()


def test_deleting_topics_ignores_absent_ones(
    transport: Transport, topic: str, new_name: Name
) -> None:
    transport.delete_topics([topic, new_name("absent")])
    deadline = time.monotonic() + WAIT_S
    while transport.partitions(topic) is not None and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert transport.partitions(topic) is None
    transport.delete_topics([topic])
    transport.delete_topics([])


def test_partitions_waits_for_a_topic_to_appear(connect: Connect, new_name: Name) -> None:
    name = new_name("late")
    transport = connect()
    assert transport.partitions(name) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transport.partitions, name, WAIT_S)
        connect().create_topics([TopicSpec(name, partitions=4)])
        assert waiting.result(WAIT_S) == 4


def test_a_missing_topic_is_an_error_soon_and_nothing_creates_it(
    transport: Transport, new_name: Name
) -> None:
    name = new_name("missing")
    writer = transport.writer()
    started = time.monotonic()
    with pytest.raises(UnknownTopicError, match="missing"):
        writer.send(name, b"value")
    with pytest.raises(UnknownTopicError, match="missing"):
        transport.reader(name)
    with pytest.raises(BulkMissingError):
        list(transport.bulk_reader(LIMIT).read(name, 0, [0], WAIT_S))
    assert time.monotonic() - started < 10
    assert transport.partitions(name) is None


def test_a_missing_partition_is_an_error(transport: Transport, topic: str) -> None:
    with pytest.raises(UnknownTopicError, match="2 partitions"):
        transport.writer().send(topic, b"value", partition=2)
    with pytest.raises(UnknownTopicError, match="2 partitions"):
        transport.reader(topic, partition=2)


# ---- writing and reading -------------------------------------------------------------------------


def test_records_come_back_in_order_with_key_value_and_time(
    transport: Transport, topic: str
) -> None:
    before = time.time() * 1000
    floats = np.array([1.0, -2.5], np.float32)
    sent = [b"bytes", bytearray(b"array"), memoryview(b"view"), memoryview(floats), b""]
    writer = transport.writer()
    pending = [writer.send(topic, value, partition=1, key=b"k") for value in sent]
    assert [each.result(WAIT_S) for each in pending] == [0, 1, 2, 3, 4]
    records = read(transport.reader(topic, partition=1), 5)
    assert values(records) == [b"bytes", b"array", b"view", floats.tobytes(), b""]
    assert [record.offset for record in records] == [0, 1, 2, 3, 4]
    assert {record.key for record in records} == {b"k"}
    assert all(before - 5 <= record.timestamp_ms <= time.time() * 1000 + 5 for record in records)
    assert read(transport.reader(topic, partition=0), 0) == []


def test_a_reader_starts_where_it_is_told(transport: Transport, topic: str) -> None:
    writer = transport.writer()
    for number in range(5):
        writer.send(topic, b"%d" % number)
    writer.flush(WAIT_S)
    middle, end = transport.reader(topic, start=3), transport.reader(topic, start=None)
    assert (middle.position, end.position) == (3, 5)
    assert middle.end_offset() == end.end_offset() == 5
    assert values(read(middle, 2)) == [b"3", b"4"]
    writer.send(topic, b"5").result(WAIT_S)
    assert values(read(end, 1)) == [b"5"]
    assert end.position == 6
    end.seek(1)
    assert end.position == 1
    assert values(read(end, 5)) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_reader_past_the_end_waits_for_the_log_to_get_there(
    transport: Transport, topic: str
) -> None:
    reader = transport.reader(topic, start=2)
    assert reader.poll(0.2) == []
    writer = transport.writer()
    for number in range(3):
        writer.send(topic, b"%d" % number).result(WAIT_S)
    assert values(read(reader, 1)) == [b"2"]


def test_poll_gives_at_most_what_was_asked_for_and_keeps_its_time(
    transport: Transport, topic: str
) -> None:
    writer = transport.writer()
    for number in range(5):
        writer.send(topic, b"%d" % number)
    writer.flush(WAIT_S)
    reader = transport.reader(topic, dense=True)
    got: list[list[bytes]] = []
    deadline = time.monotonic() + WAIT_S
    while sum(map(len, got)) < 5 and time.monotonic() < deadline:
        got.append(values(reader.poll(1.0, max_records=2)))
    assert all(len(batch) <= 2 for batch in got)
    assert [value for batch in got for value in batch] == [b"0", b"1", b"2", b"3", b"4"]
    started = time.monotonic()
    assert reader.poll(0.3) == []
    assert 0.25 < time.monotonic() - started < 2


def test_a_reader_sees_what_is_written_while_it_waits(connect: Connect, new_name: Name) -> None:
    topic = new_name("topic")
    transport = connect()
    transport.create_topics([TopicSpec(topic)])
    reader = transport.reader(topic, start=None, dense=True, wait_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.poll, WAIT_S)
        connect().writer().send(topic, b"now").result(WAIT_S)
        assert values(waiting.result(WAIT_S)) == [b"now"]


def test_the_largest_record_passes_and_a_larger_one_names_the_cure(
    transport: Transport, topic: str
) -> None:
    largest = bytes(LIMIT)
    writer = transport.writer()
    assert writer.send(topic, largest).result(WAIT_S) == 0
    with pytest.raises(RecordTooLargeError, match="maxMessageBytes"):
        writer.send(topic, bytes(LIMIT + 1))
    assert writer.send(topic, b"after").result(WAIT_S) == 1
    assert values(read(transport.reader(topic), 2)) == [largest, b"after"]
    assert list(transport.bulk_reader(LIMIT).read(topic, 0, [0, 1], WAIT_S)) == [largest, b"after"]


def test_a_writer_serves_several_threads(transport: Transport, topic: str) -> None:
    writer = transport.writer()

    def send(thread: int) -> None:
        for number in range(200):
            writer.send(topic, b"%d/%d" % (thread, number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    writer.flush(WAIT_S)
    got = values(read(transport.reader(topic, dense=True), 1600))
    for thread in range(8):
        mine = [value for value in got if value.startswith(b"%d/" % thread)]
        assert mine == [b"%d/%d" % (thread, number) for number in range(200)]


# ---- transactions --------------------------------------------------------------------------------


def test_a_transaction_appears_as_one(
    transport: Transport, new_name: Name, hides_aborted: bool
) -> None:
    journal, control = new_name("journal"), new_name("control")
    transport.create_topics([TopicSpec(journal, compacted=True), TopicSpec(control)])
    writer = transport.writer(transactional_id=new_name("id"))
    reader = transport.reader(control, committed=True)
    with writer.transaction():
        writer.send(journal, b"head", key=b"head").result(WAIT_S)
        writer.send(control, b"announced").result(WAIT_S)
        if hides_aborted:
            assert reader.poll(0.3) == []
    assert values(read(reader, 1)) == [b"announced"]
    assert values(read(transport.reader(journal, committed=True), 1)) == [b"head"]
    with writer.transaction():
        writer.send(control, b"closed")
    assert values(read(reader, 1)) == [b"closed"]


def test_nothing_of_a_failed_transaction_appears(
    transport: Transport, topic: str, new_name: Name, hides_aborted: bool
) -> None:
    writer = transport.writer(transactional_id=new_name("id"))

    def fail() -> None:
        with writer.transaction():
            writer.send(topic, b"aborted").result(WAIT_S)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with writer.transaction():
        writer.send(topic, b"committed").result(WAIT_S)
    expected = [b"committed"] if hides_aborted else [b"aborted", b"committed"]
    assert values(read(transport.reader(topic, committed=True), len(expected))) == expected


def test_an_end_under_an_open_transaction_is_never_below_what_was_read(
    transport: Transport, topic: str, new_name: Name
) -> None:
    plain = transport.writer()
    for number in range(3):
        plain.send(topic, b"%d" % number).result(WAIT_S)
    reader = transport.reader(topic)
    read(reader, 3)
    writer = transport.writer(transactional_id=new_name("id"))
    with writer.transaction():
        writer.send(topic, b"open").result(WAIT_S)
        assert reader.end_offset() >= 3
    plain.send(topic, b"after").result(WAIT_S)
    assert reader.end_offset() >= 5


def test_transactions_need_a_transactional_writer(
    transport: Transport, topic: str, new_name: Name
) -> None:
    with pytest.raises(TransportError, match="transactional id"), transport.writer().transaction():
        pass
    with pytest.raises(TransportError, match=r"transaction\(\)"):
        transport.writer(transactional_id=new_name("id")).send(topic, b"outside")


def test_a_newer_writer_fences_the_older_one(connect: Connect, topic: str, new_name: Name) -> None:
    older = connect().writer(transactional_id=new_name("id"))
    with older.transaction():
        older.send(topic, b"older")
    newer = connect().writer(transactional_id=new_name("id"))

    def again() -> None:
        with older.transaction():
            older.send(topic, b"zombie")

    for _ in range(2):
        with pytest.raises(FencedError):
            again()
    with newer.transaction():
        newer.send(topic, b"newer").result(WAIT_S)
    records = values(read_all(connect(), topic))
    assert records == [b"older", b"newer"]


def test_a_writer_fenced_inside_a_transaction_does_not_fence_back(
    connect: Connect, topic: str, new_name: Name, hides_aborted: bool
) -> None:
    older = connect().writer(transactional_id=new_name("id"))

    def overtaken() -> None:
        with older.transaction():
            older.send(topic, b"before").result(WAIT_S)
            newer.append(connect().writer(transactional_id=new_name("id")))
            older.send(topic, b"zombie").result(WAIT_S)

    newer: list = []
    with pytest.raises(FencedError):
        overtaken()
    for number in range(3):
        with newer[0].transaction():
            newer[0].send(topic, b"newer %d" % number).result(WAIT_S)
    got = values(read_all(connect(), topic))
    assert got[-3:] == [b"newer 0", b"newer 1", b"newer 2"]
    if hides_aborted:
        assert len(got) == 3


def read_all(transport: Transport, topic: str) -> list[Record]:
    """What a committed reader finds until nothing comes for a second."""
    reader = transport.reader(topic, committed=True)
    records: list[Record] = []
    while got := reader.poll(1.0):
        records += got
    return records


# ---- bulk and trimming ---------------------------------------------------------------------------


def test_bulk_reads_exactly_the_offsets_asked_for(transport: Transport, topic: str) -> None:
    writer = transport.writer()
    chunks = [bytes([number]) * 50_000 for number in range(60)]
    for chunk in chunks:
        writer.send(topic, chunk, partition=1)
    writer.flush(WAIT_S)
    reader = transport.bulk_reader(50_000)
    for wanted in (range(60), range(1, 60, 3), [0, 1, 2, 9, 20, 21, 59], [], [59]):
        got = list(reader.read(topic, 1, wanted, WAIT_S))
        assert got == [chunks[offset] for offset in wanted]


def test_bulk_that_is_not_there_is_named(transport: Transport, topic: str) -> None:
    writer = transport.writer()
    for number in range(3):
        writer.send(topic, b"%d" % number)
    writer.flush(WAIT_S)
    reader = transport.bulk_reader(100)
    reading = iter(reader.read(topic, 0, [1, 2, 3], WAIT_S))
    assert [next(reading), next(reading)] == [b"1", b"2"]
    with pytest.raises(BulkMissingError, match="offset 3"):
        next(reading)
    with pytest.raises(BulkMissingError, match="offset 77"):
        list(reader.read(topic, 0, [77], WAIT_S))
    transport.delete_topics([topic])
    with pytest.raises(BulkMissingError):
        list(reader.read(topic, 0, [0], WAIT_S))


def test_trimming_deletes_below_the_offset_where_the_broker_can(
    transport: Transport, topic: str, request: pytest.FixtureRequest
) -> None:
    writer = transport.writer()
    for number in range(5):
        writer.send(topic, b"%d" % number)
    writer.flush(WAIT_S)
    assert transport.can_trim is ("embedded" not in request.node.callspec.id)
    if not transport.can_trim:
        with pytest.raises(TransportError, match="cannot delete records"):
            transport.trim(topic, 0, 3)
        assert len(read(transport.reader(topic), 5)) == 5  # and the log is as well as before
        return
    early = transport.reader(topic, dense=True)
    transport.trim(topic, 0, 3)
    for reader in (early, transport.reader(topic, dense=True)):
        assert values(read(reader, 2)) == [b"3", b"4"]
    with pytest.raises(BulkMissingError):
        list(transport.bulk_reader(100).read(topic, 0, [2, 3], WAIT_S))
    assert transport.reader(topic, start=None).position == 5


def test_a_compacted_topic_is_not_trimmed(transport: Transport, new_name: Name) -> None:
    name = new_name("journal")
    transport.create_topics([TopicSpec(name, compacted=True)])
    transport.writer().send(name, b"value", key=b"key").result(WAIT_S)
    with pytest.raises(TransportError):
        transport.trim(name, 0, 1)
    assert values(read(transport.reader(name), 1)) == [b"value"]


# ---- Kafka alone ---------------------------------------------------------------------------------


@apache_alone  # the only one that tells a topic's settings
@pytest.mark.apache_kafka
def test_topics_have_the_settings_of_the_protocol(
    transport: Transport, topic: str, new_name: Name
) -> None:
    assert isinstance(transport, KafkaTransport)
    journal = new_name("journal")
    transport.create_topics([TopicSpec(journal, compacted=True, segment_bytes=2**24)])
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in (topic, journal)]
    told = transport._connection.call("asking", lambda admin: admin.describe_configs(asked))
    settings = {
        name: {key: found["value"] for key, found in configs.items()}
        for name, configs in told["topic"].items()
    }
    common = {
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "unclean.leader.election.enable": "false",
        "compression.type": "uncompressed",
        "file.delete.delay.ms": "1000",
    }
    assert settings == {
        topic: common | {"cleanup.policy": "delete"},
        journal: common | {"cleanup.policy": "compact", "segment.bytes": str(2**24)},
    }


def test_a_writer_that_forgot_a_topic_rests_when_the_topic_is_gone(
    transport: Transport, new_name: Name
) -> None:
    old, new = new_name("old"), new_name("new")
    transport.create_topics([TopicSpec(old), TopicSpec(new)])
    writer = transport.writer()
    writer.send(old, b"x").result(10)
    writer.forget(old)
    transport.delete_topics([old])
    for _ in range(3):
        writer.send(new, b"y").result(10)
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < began + 1:
        time.sleep(0.1)
    busy_share = (time.process_time() - cpu) / (time.monotonic() - began)
    assert busy_share < 0.2  # 0.6 and more where the library looks for the topic's leader
    writer.close()
