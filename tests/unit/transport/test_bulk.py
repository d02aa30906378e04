from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from fedlog.transport.base import BulkReader, Bytes, Pending, TopicSpec, Writer
from fedlog.transport.bulk import MAX_IN_FLIGHT, download, upload
from fedlog.transport.errors import BulkMissingError, RecordTooLargeError, TransportError
from fedlog.transport.memory import MemoryTransport
from fedlog.wire.bulk import BulkManifest, raw_digest
from fedlog.wire.errors import DigestMismatchError, LimitExceededError, WireError
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode, encode

LIMITS = Limits(max_payload_bytes=10_000_000)
TOPIC = "updates"
CHUNK = 1000


@pytest.fixture
def log() -> MemoryTransport:
    log = MemoryTransport(max_message_bytes=CHUNK)
    log.create_topics([TopicSpec(TOPIC, partitions=2)])
    return log


def buffers(seed: int = 0) -> list[Bytes]:
    generator = np.random.default_rng(seed)
    return [generator.bytes(n) for n in (5, 1700, 1, 40_000, 295)]


def put(log: MemoryTransport, payload: list[Bytes], **options: Any) -> BulkManifest:
    manifest, inline = upload(
        log.writer(),
        payload,
        **{
            "topic": TOPIC,
            "partition": 1,
            "chunk_bytes": CHUNK,
            "inline_bytes": 0,
            "timeout_s": 5,
            **options,
        },
    )
    assert inline == b""
    return manifest


def get(log: MemoryTransport, manifest: BulkManifest, inline: Bytes = b"", **options: Any) -> bytes:
    reader = log.bulk_reader(CHUNK)
    return bytes(
        download(reader, manifest, inline, **{"limits": LIMITS, "timeout_s": 5, **options})
    )


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_payload_passes_through_the_log(log: MemoryTransport, codec: str):
    payload = [*buffers(), bytes(3000)]  # some that zstd cannot shrink, and some that it can
    manifest = put(log, payload, codec=codec)
    assert manifest.size == sum(map(len, payload))
    assert (manifest.encoded_size < manifest.size) == (codec == "zstd")
    assert (manifest.topic, manifest.partition) == (TOPIC, 1)
    assert get(log, manifest) == b"".join(payload)


def test_tensors_pass_through_the_log_into_one_reused_buffer(log: MemoryTransport):
    into = bytearray(50_000)
    for seed in (1, 2):
        weights = {"w": np.random.default_rng(seed).standard_normal((100, 7))}
        manifest = put(log, encode(weights))
        reader = log.bulk_reader(CHUNK)
        view = download(reader, manifest, b"", limits=LIMITS, into=into, timeout_s=5)
        assert view.readonly
        assert view.obj is into
        found = decode(view, LIMITS)["w"]
        assert np.shares_memory(found, np.frombuffer(into, np.uint8))
        np.testing.assert_array_equal(found, weights["w"])


def test_a_buffer_that_is_too_small_is_not_used(log: MemoryTransport):
    into = bytearray(10)
    assert get(log, put(log, buffers()), into=into) == b"".join(buffers())
    assert into == bytes(10)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_small_payload_travels_beside_its_manifest(log: MemoryTransport, codec: Any):
    manifest, inline = upload(
        log.writer(), [b"ab", b"c" * 98], topic=TOPIC, partition=0, chunk_bytes=CHUNK,
        codec=codec, inline_bytes=100, timeout_s=5,
    )  # fmt: skip
    assert manifest.inline
    assert log.reader(TOPIC, partition=0).end_offset() == 0
    assert download(None, manifest, inline, limits=LIMITS, timeout_s=5) == b"ab" + b"c" * 98
    with pytest.raises(DigestMismatchError):
        get(log, manifest, inline[:-1] + b"x")
    with pytest.raises(WireError):
        get(log, manifest, b"")


def test_a_payload_above_the_inline_size_does_not(log: MemoryTransport):
    manifest, inline = upload(
        log.writer(), [b"x" * 101], topic=TOPIC, partition=0, chunk_bytes=CHUNK,
        inline_bytes=100, timeout_s=5,
    )  # fmt: skip
    assert not manifest.inline
    assert inline == b""


def test_chunks_between_those_of_others_are_named_by_runs(log: MemoryTransport):
    writer = log.writer()
    writer.send(TOPIC, b"another client's", partition=1)

    def interrupt(_: int) -> None:
        writer.send(TOPIC, b"another client's", partition=1)

    manifest = put(log, [bytes(2500)], on_first_chunk=interrupt)
    assert manifest.runs == ((1, 1), (3, 2))
    assert get(log, manifest) == bytes(2500)


def test_a_model_carries_its_identity_and_it_is_verified(log: MemoryTransport):
    identity = raw_digest(buffers())
    manifest = put(log, buffers(), raw_digest=identity)
    assert manifest.raw_digest == identity
    assert get(log, manifest) == b"".join(buffers())


def test_an_encoded_size_that_is_not_true_is_refused(log: MemoryTransport):
    manifest = put(log, buffers()).model_copy(update={"encoded_size": 5})
    with pytest.raises(WireError, match="manifest names 5"):
        get(log, manifest)


def test_the_first_chunk_is_told_before_further_ones_are_sent(log: MemoryTransport):
    log.writer().send(TOPIC, b"earlier", partition=1)
    seen = []

    def note(offset: int) -> None:
        seen.append((offset, log.reader(TOPIC, partition=1).end_offset()))

    put(log, buffers(), on_first_chunk=note)
    assert seen == [(1, 2)]


class ObservedWriter(Writer):
    """Passes everything on and counts the sends whose result nobody has asked for yet."""

    def __init__(self, inner: Writer) -> None:
        self.inner = inner
        self.in_flight = 0
        self.most = 0
        self.values: list[Bytes] = []

    def send(
        self, topic: str, value: Bytes, *, partition: int = 0, key: bytes | None = None
    ) -> Pending:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.values.append(value)
        pending = self.inner.send(topic, value, partition=partition, key=key)
        return ObservedPending(self, pending)

    def transaction(self) -> AbstractContextManager[None]:
        return self.inner.transaction()

    def flush(self, timeout_s: float) -> None:
        self.inner.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        self.inner.close(timeout_s)


class ObservedPending(Pending):
    def __init__(self, writer: ObservedWriter, inner: Pending) -> None:
        self.writer = writer
        self.inner = inner

    def result(self, timeout_s: float) -> int:
        self.writer.in_flight -= 1
        return self.inner.result(timeout_s)


def test_few_chunks_are_in_flight_and_none_inside_a_buffer_is_copied(log: MemoryTransport):
    payload = np.zeros(50 * CHUNK, np.uint8)
    writer = ObservedWriter(log.writer())
    upload(
        writer, [payload.data], topic=TOPIC, partition=0, chunk_bytes=CHUNK, timeout_s=5,
        inline_bytes=0,
    )  # fmt: skip
    assert writer.most == MAX_IN_FLIGHT
    assert writer.in_flight == 0
    assert len(writer.values) == 50
    assert all(np.shares_memory(np.frombuffer(v, np.uint8), payload) for v in writer.values)


def test_chunks_acknowledged_by_a_deleted_topic_are_not_committed(log: MemoryTransport):
    class DeletedTopic(Pending):
        def result(self, timeout_s: float) -> int:
            return 0

    class WriterToDeletedTopic(ObservedWriter):
        def send(self, *_: Any, **__: Any) -> Pending:
            return DeletedTopic()

    with pytest.raises(TransportError, match="deleted"):
        upload(
            WriterToDeletedTopic(log.writer()), buffers(), topic=TOPIC, partition=0,
            chunk_bytes=CHUNK, inline_bytes=0, timeout_s=5,
        )  # fmt: skip


def test_a_chunk_above_the_message_size_is_an_error(log: MemoryTransport):
    with pytest.raises(RecordTooLargeError):
        put(log, buffers(), chunk_bytes=CHUNK + 1)


def test_chunks_that_are_gone_are_named_as_such(log: MemoryTransport):
    manifest = put(log, buffers())
    log.trim(TOPIC, 1, before_offset=3)
    with pytest.raises(BulkMissingError):
        get(log, manifest)


class EditedReader(BulkReader):
    """Reads the log and hands on what `edit` makes of it."""

    def __init__(self, inner: BulkReader, edit: Any) -> None:
        self.inner = inner
        self.edit = edit

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        yield from self.edit(list(self.inner.read(topic, partition, offsets, timeout_s)))

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        pytest.param(lambda c: [bytes([c[0][0] ^ 1]) + c[0][1:], *c[1:]], WireError, id="bit"),
        pytest.param(lambda c: [c[1], c[0], *c[2:]], DigestMismatchError, id="order"),
        pytest.param(lambda c: [*c[:-1], c[-1][:-1]], DigestMismatchError, id="cut"),
        pytest.param(lambda c: c[:-1], BulkMissingError, id="one less"),
    ],
)
def test_what_is_not_what_the_manifest_names_is_refused(
    log: MemoryTransport, edit: Any, error: type[Exception]
):
    manifest = put(log, buffers())
    reader = EditedReader(log.bulk_reader(CHUNK), edit)
    with pytest.raises(error):
        download(reader, manifest, b"", limits=LIMITS, timeout_s=5)


def test_a_wrong_raw_digest_is_refused(log: MemoryTransport):
    manifest = put(log, buffers()).model_copy(update={"raw_digest": "0" * 64})
    with pytest.raises(DigestMismatchError, match="raw"):
        get(log, manifest)


def test_a_manifest_above_the_limit_is_refused_before_anything_is_read(log: MemoryTransport):
    manifest = put(log, buffers())
    log.delete_topics([TOPIC])
    with pytest.raises(LimitExceededError):
        get(log, manifest, limits=Limits(max_payload_bytes=manifest.size - 1))


def test_downloading_into_a_buffer_holds_no_second_copy():
    log = MemoryTransport()
    log.create_topics([TopicSpec(TOPIC)])
    payload = np.random.default_rng(0).bytes(20_000_000)
    manifest = put(log, [payload], partition=0, chunk_bytes=900_000, codec="zstd")
    into = bytearray(len(payload))
    reader = log.bulk_reader(900_000)
    tracemalloc.start()
    try:
        view = download(reader, manifest, b"", limits=Limits(len(payload)), into=into, timeout_s=60)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert view == payload
    assert peak < 3_000_000  # a chunk as it travelled, and decompressed
