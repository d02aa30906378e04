"""The least that a round of large models can cost: bare kafka-python, the same bytes.

One process plays the server: it writes a model and reads every update. The others play the workers:
each reads the model once, then writes one update per client it hosts. No digest, no decoding, no
sum; the records have the size of Fedlog's chunks and the processes its layout.

Run as a script this is one of the workers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

CHUNK_BYTES = 900_000
IN_FLIGHT = 16


def _producer(broker: str) -> Any:
    return KafkaProducer(
        bootstrap_servers=broker, acks="all", max_request_size=CHUNK_BYTES + 65_536
    )


def _write(producer: Any, topic: str, partition: int, payload: bytearray) -> None:
    view = memoryview(payload)
    waiting: deque[Any] = deque()
    for begin in range(0, len(payload), CHUNK_BYTES):
        chunk = view[begin : begin + CHUNK_BYTES]
        waiting.append(producer.send(topic, bytes(chunk), partition=partition))
        if len(waiting) >= IN_FLIGHT:
            waiting.popleft().get(60)
    while waiting:
        waiting.popleft().get(60)


def _consumer(broker: str) -> Any:
    return KafkaConsumer(
        bootstrap_servers=broker,
        fetch_max_wait_ms=20,
        max_partition_fetch_bytes=8 * CHUNK_BYTES,
        auto_offset_reset="earliest",
    )


def _read(consumer: Any, topic: str, partitions: list[int], size_bytes: int) -> None:
    consumer.assign([TopicPartition(topic, partition) for partition in partitions])
    for partition in partitions:
        consumer.seek(TopicPartition(topic, partition), 0)
    received = 0
    while received < size_bytes:
        for records in consumer.poll(timeout_ms=1000).values():
            received += sum(len(record.value) for record in records)


def worker(broker: str, prefix: str, size_bytes: int, first: int, clients: int) -> None:
    payload = bytearray(size_bytes)
    producer, consumer = _producer(broker), _consumer(broker)
    print("ready", flush=True)
    _read(consumer, f"{prefix}.model", [0], size_bytes)
    for client in range(first, first + clients):
        _write(producer, f"{prefix}.updates", client, payload)
    producer.close()


def measure(broker: str, prefix: str, size_bytes: int, layout: list[int]) -> float:
    """Seconds from the first byte of the model to the last byte of the updates.

    layout: clients per worker process.
    """
    total = sum(layout)
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics(
        [NewTopic(f"{prefix}.model", 1, 1), NewTopic(f"{prefix}.updates", total, 1)]
    )
    payload = bytearray(size_bytes)
    producer, consumer = _producer(broker), _consumer(broker)
    workers = []
    for number, clients in enumerate(layout):
        arguments = [broker, prefix, str(size_bytes), str(sum(layout[:number])), str(clients)]
        workers.append(
            subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)
        )
    try:
        for process in workers:
            assert process.stdout is not None
            process.stdout.readline()
        began = time.perf_counter()
        _write(producer, f"{prefix}.model", 0, payload)
        _read(consumer, f"{prefix}.updates", list(range(total)), size_bytes * total)
        return time.perf_counter() - began
    finally:
        for process in workers:
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()
        consumer.close()
        producer.close()
        admin.delete_topics([f"{prefix}.model", f"{prefix}.updates"])
        admin.close()


if __name__ == "__main__":
    given = sys.argv[1:]
    worker(given[0], given[1], *(int(number) for number in given[2:]))
