"""Many processes write numbered records to one partition: ADDRESS TOPIC PROCESSES RECORDS.

The value of a record is (process, number), two unsigned 32-bit integers. Processes are forked
before there is any thread, since importing the library in each would take longer than writing.
"""

from __future__ import annotations

import os
import struct
import sys
import traceback

from fedlog.transport.kafka import KafkaTransport


def write(address: str, topic: str, process: int, records: int) -> None:
    transport = KafkaTransport(address)
    writer = transport.writer()
    for number in range(records):
        writer.send(topic, struct.pack("<II", process, number))
        if number % 500 == 499:
            writer.flush(60)
    writer.flush(60)
    transport.close()


def main() -> int:
    address, topic, processes, records = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                write(address, topic, process, records)
                code = 0
            except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main())
