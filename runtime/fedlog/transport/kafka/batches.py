"""Batches of records as they come from a broker, where somebody else may have written them.

A batch that no writer of ours makes is not unpacked: each of its records reads as empty, which
whoever asked refuses as malformed, and goes on behind it. Compressed batches are such: a megabyte
becomes a gigabyte by unpacking. (What travels is compressed chunk by chunk, with its size told.)
"""

from __future__ import annotations

import logging
import struct
from typing import Any

from kafka import errors as kafka_errors

from fedlog.transport.base import Record

log = logging.getLogger(__name__)

LARGEST_ANSWER_BYTES = 128 * 2**20
"""Of one answer of a broker: (T) stores records of any size, and one that cannot be fetched would
be in the way for ever. (K) refuses what is above message.max.bytes."""
_MAGIC = 2
_MOST_EMPTY = 1000


def is_old(batch: Any) -> bool:
    """A format from before Kafka 0.11, which says less of itself."""
    return int(batch.magic) < _MAGIC


def unpacked(batch: Any, name: str) -> list[Record]:
    """The records of a batch of data. name: of the partition, for the log."""
    if is_old(batch):
        log.warning("%s: what lies at %d is of an old format", name, batch.base_offset)
        return [Record(batch.base_offset, 0, None, b"")]
    why = "they are a compressed batch"
    if batch.compression_type == batch.CODEC_NONE:
        try:
            return [Record(r.offset, r.timestamp, r.key, r.value or b"") for r in batch]
        except (kafka_errors.KafkaError, ValueError, IndexError, struct.error) as error:
            why = str(error)
    first, last = batch.base_offset, batch.next_offset - 1
    log.warning("%s: records %d to %d are not read: %s", name, first, last, why)
    offsets = [*range(first, min(last, first + _MOST_EMPTY)), last]
    return [Record(offset, 0, None, b"") for offset in offsets]
