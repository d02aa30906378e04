"""Bulk payloads on the log: upload in chunks, download with every byte verified.

The bytes are specified in `fedlog.wire.bulk`. Neither way holds a second copy of the payload.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from fedlog.transport.base import BulkReader, Bytes, Pending, Writer
from fedlog.transport.errors import BulkMissingError, TransportError
from fedlog.wire.bulk import (
    INLINE_BYTES,
    BulkManifest,
    Codec,
    RawDigest,
    build_manifest,
    check_manifest,
    chunk_digest,
    decode_chunk_into,
    encode_chunk,
    raw_chunk_bytes,
    split,
)
from fedlog.wire.errors import DigestMismatchError, WireError
from fedlog.wire.limits import Limits

MAX_IN_FLIGHT = 16  # the producer has no bound of its own on the memory of what it sends


def upload(
    writer: Writer,
    buffers: Sequence[Bytes],
    *,
    topic: str,
    partition: int,
    chunk_bytes: int,
    codec: Codec = "none",
    inline_bytes: int = INLINE_BYTES,
    on_first_chunk: Callable[[int], None] | None = None,
    raw_digest: str | None = None,
    timeout_s: float,
) -> tuple[BulkManifest, bytes]:
    """Write a payload to the log and return its manifest, which commits it once it is sent.

    A payload of at most `inline_bytes` is not written: it is returned, encoded, beside its
    manifest, and travels in the manifest's record; otherwise the second value is empty.

    chunk_bytes: the largest value of a record. on_first_chunk: called with the offset of the first
    chunk as soon as the log has it, before further ones are sent. raw_digest: the identity of a
    model version, for its manifest. timeout_s: for the whole upload. The buffers must not change
    until this returns. Raises TransportError.
    """
    size = sum(len(buffer) for buffer in buffers)

    if size <= inline_bytes:
        payload = b"".join(buffers)
        encoded = bytes(encode_chunk(payload, codec))
        manifest = build_manifest(
            codec=codec,
            size=size,
            encoded_size=len(encoded),
            chunk_bytes=size,
            digests=[chunk_digest(encoded)],
            raw_digest=raw_digest,
        )
        return manifest, encoded

    deadline = _Deadline(timeout_s)
    in_flight: deque[Pending] = deque()
    digests: list[bytes] = []
    offsets: list[int] = []
    encoded_size = 0
    raw_chunk = raw_chunk_bytes(chunk_bytes, codec)
    for chunk in split(buffers, raw_chunk):
        encoded_chunk = encode_chunk(chunk, codec)
        in_flight.append(writer.send(topic, encoded_chunk, partition=partition))
        # The digests are computed while the chunk is on its way.
        digests.append(chunk_digest(encoded_chunk))
        encoded_size += len(encoded_chunk)
        if not offsets and on_first_chunk is not None:
            offsets.append(in_flight.popleft().result(deadline.remaining_s()))
            on_first_chunk(offsets[0])
        while len(in_flight) >= MAX_IN_FLIGHT:
            offsets.append(in_flight.popleft().result(deadline.remaining_s()))
    offsets += [pending.result(deadline.remaining_s()) for pending in in_flight]

    if any(later <= earlier for earlier, later in itertools.pairwise(offsets)):
        # Some brokers acknowledge records of a deleted topic, all with offset 0.
        raise TransportError(
            f"the chunks sent to {topic}/{partition} got offsets that do not ascend: "
            "was the topic deleted?"
        )
    manifest = build_manifest(
        codec=codec,
        size=size,
        encoded_size=encoded_size,
        chunk_bytes=raw_chunk,
        digests=digests,
        raw_digest=raw_digest,
        topic=topic,
        partition=partition,
        offsets=offsets,
    )
    return manifest, b""


def download(
    reader: BulkReader | None,
    manifest: BulkManifest,
    inline: Bytes,
    *,
    limits: Limits,
    into: bytearray | None = None,
    timeout_s: float,
) -> memoryview:
    """The raw payload that a manifest names; every size and digest is verified.

    reader: may be None where the manifest is inline. inline: the payload of the manifest's record;
    not looked at where the manifest names chunks. into: used when it is large enough, so that one
    buffer serves many downloads; the result is a read-only view of it, valid until it is used
    again. timeout_s: for the whole download; a chunk that does not come at all is waited for
    as long again.

    Raises WireError when the manifest or a byte is not what it claims to be, BulkMissingError when
    chunks are gone, TransportError otherwise. What is in `into` after an error is undefined.
    """
    digests = check_manifest(manifest, limits)
    deadline = _Deadline(timeout_s)
    buffer = into if into is not None and len(into) >= manifest.size else bytearray(manifest.size)
    payload = memoryview(buffer)[: manifest.size]
    raw = None if manifest.raw_digest is None else RawDigest()
    received = encoded_size = 0
    chunks = _encoded_chunks(reader, manifest, inline, timeout_s)
    for index, (digest, encoded) in enumerate(zip(digests, chunks, strict=False)):
        if chunk_digest(encoded) != digest:
            raise DigestMismatchError(
                f"chunk {index} of {len(digests)} does not have the digest of its manifest"
            )
        begin = index * manifest.chunk_bytes
        chunk = payload[begin : begin + manifest.chunk_size(index)]
        decode_chunk_into(chunk, encoded, manifest.codec)
        if raw is not None:
            raw.update(chunk)
        received += 1
        encoded_size += len(encoded)
        if deadline.remaining_s() == 0 and received < len(digests):
            raise TransportError(
                f"{received} of {len(digests)} chunks came within {timeout_s:g} seconds"
            )
    if received != len(digests):
        raise BulkMissingError(f"{received} of {len(digests)} chunks came")
    if encoded_size != manifest.encoded_size:
        raise WireError(
            f"the chunks have {encoded_size} bytes, the manifest names {manifest.encoded_size}"
        )
    if raw is not None and raw.hexdigest() != manifest.raw_digest:
        raise DigestMismatchError("the payload does not have the raw digest of its manifest")
    return payload.toreadonly()


def _encoded_chunks(
    reader: BulkReader | None, manifest: BulkManifest, inline: Bytes, timeout_s: float
) -> Iterator[Bytes]:
    if manifest.topic is None:
        return iter([inline])
    if reader is None:
        raise ValueError("a reader is needed for a payload on the log")
    return reader.read(manifest.topic, manifest.partition, manifest.offsets(), timeout_s)


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        return max(0.0, self._end - time.monotonic())
