from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedlog.transport.base import TopicSpec
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.kafka import KafkaTransport

PROCESSES = 32
RECORDS = 3125  # of each process: 100,000 in all
DEADLINE_S = 150.0


def test_a_reader_that_follows_32_writing_processes_gets_each_record_once_in_order(
    broker: BrokerProcess, new_name: Callable[[str], str]
) -> None:
    topic = new_name("events")
    transport = KafkaTransport(broker.bootstrap_servers)
    transport.create_topics([TopicSpec(topic)])
    reader = transport.reader(topic, dense=True)
    writers = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("write_numbers.py")),
            broker.bootstrap_servers,
            topic,
            str(PROCESSES),
            str(RECORDS),
        ]
    )
    try:
        offsets: list[int] = []
        values: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(offsets) < PROCESSES * RECORDS and time.monotonic() < deadline:
            records = reader.poll(1.0, max_records=5000)
            offsets += [record.offset for record in records]
            values += [record.value for record in records]
            assert writers.poll() in (None, 0)
        assert writers.wait(DEADLINE_S) == 0
    finally:
        writers.kill()
        writers.wait()
    assert reader.poll(0.5) == []
    assert reader.end_offset() == PROCESSES * RECORDS
    transport.close()

    assert offsets == list(range(PROCESSES * RECORDS))
    pairs = np.array([struct.unpack("<II", value) for value in values])
    for process in range(PROCESSES):
        numbers = pairs[pairs[:, 0] == process, 1]
        assert numbers.tolist() == list(range(RECORDS))
