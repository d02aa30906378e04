"""Reading one partition from its first record to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fedlog.transport.base import Record, Transport

_POLL_S = 0.25
_QUIET_S = 2.0
_BATCH = 100


def read_all(transport: Transport, topic: str, *, committed: bool = False) -> Iterator[Record]:
    """What one partition holds now, from the first record that is there. Raises TransportError."""
    reader = transport.reader(topic, start=0, committed=committed)
    try:
        end = reader.end_offset()
        # The end of a transaction takes an offset that no reader gets to see, and an open one hides
        # what follows: time ends this.
        deadline = time.monotonic() + _QUIET_S
        while reader.position < end and time.monotonic() < deadline:
            for record in reader.poll(_POLL_S, _BATCH):
                if record.offset >= end:
                    return
                yield record
                deadline = time.monotonic() + _QUIET_S
    finally:
        reader.close()
