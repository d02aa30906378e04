from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlog.wire.bulk import (
    BulkManifest,
    build_manifest,
    check_manifest,
    chunk_digest,
    decode_chunk_into,
    encode_chunk,
    raw_chunk_bytes,
    raw_digest,
    split,
)
from fedlog.wire.errors import DigestMismatchError, LimitExceededError, WireError
from fedlog.wire.limits import Limits

LIMITS = Limits(max_payload_bytes=1000)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_chunks_are_the_payload_cut_at_every_chunk_size(buffers: list[bytes], size: int):
    whole = b"".join(buffers)
    expected = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert [bytes(chunk) for chunk in split(buffers, size)] == expected


def test_a_chunk_inside_one_buffer_is_not_copied():
    buffer = bytearray(b"abcdef")
    first, second = split([buffer], 4)
    buffer[:] = b"ABCDEF"
    assert (bytes(first), bytes(second)) == (b"ABCD", b"EF")


@settings(deadline=None)
@given(st.binary(max_size=5000), st.sampled_from(["none", "zstd"]))
def test_what_is_encoded_is_decoded(raw: bytes, codec: Any):
    target = bytearray(len(raw))
    decode_chunk_into(memoryview(target), encode_chunk(raw, codec), codec)
    assert bytes(target) == raw


@pytest.mark.parametrize("size", [70_000, 131_072, 900_000])
def test_a_chunk_that_does_not_shrink_still_fits_its_record(size: int):
    blocks = -(-size // 32)
    noise = b"".join(hashlib.sha256(i.to_bytes(4, "little")).digest() for i in range(blocks))
    raw = noise[: raw_chunk_bytes(size, "zstd")]
    encoded = encode_chunk(raw, "zstd")
    assert len(raw) < len(encoded) <= size
    assert raw_chunk_bytes(size, "none") == size


def frame_without_size(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(raw)


@pytest.mark.parametrize(
    ("encoded", "codec"),
    [
        pytest.param(b"12345", "none", id="shorter"),
        pytest.param(b"1234567", "none", id="longer"),
        pytest.param(b"123456", "zstd", id="not zstd"),
        pytest.param(b"", "zstd", id="empty"),
        pytest.param(zstandard.compress(b"12345"), "zstd", id="frame of another size"),
        pytest.param(frame_without_size(b"123456"), "zstd", id="no size declared"),
        pytest.param(zstandard.compress(b"123456") * 2, "zstd", id="two frames"),
        pytest.param(zstandard.compress(b"123456")[:-1], "zstd", id="cut"),
        pytest.param(zstandard.compress(b"123456") + b"x", "zstd", id="tail"),
    ],
)
def test_a_chunk_that_is_not_what_it_claims_is_refused(encoded: bytes, codec: Any):
    with pytest.raises(WireError):
        decode_chunk_into(memoryview(bytearray(6)), encoded, codec)


def test_a_bomb_is_refused_without_being_decompressed():
    bomb = zstandard.compress(bytes(2**26))
    assert len(bomb) < 10_000
    with pytest.raises(WireError, match="declares"):
        decode_chunk_into(memoryview(bytearray(900)), bomb, "zstd")


def test_a_bomb_that_lies_about_its_size_is_refused():
    # The frame header of 900 bytes before the blocks of 64 MiB: FCS field of 4 bytes at index 5.
    bomb = bytearray(zstandard.compress(bytes(2**26)))
    assert int.from_bytes(bomb[6:10], "little") == 2**26
    bomb[6:10] = (900).to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(bomb)) == 900
    with pytest.raises(WireError):
        decode_chunk_into(memoryview(bytearray(900)), bytes(bomb), "zstd")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_decoded(garbage: bytes):
    for candidate in (garbage, b"\x28\xb5\x2f\xfd" + garbage):
        try:
            decode_chunk_into(memoryview(bytearray(10)), candidate, "zstd")
        except WireError:
            continue


def test_raw_digest_is_that_of_blocks_of_one_mebibyte():
    payload = bytes(range(256)) * 8192 + b"tail"  # 2 MiB and 4 bytes
    blocks = [payload[: 2**20], payload[2**20 : 2**21], b"tail"]
    joined = b"".join(hashlib.sha256(block).digest() for block in blocks)
    expected = hashlib.sha256(joined).hexdigest()
    assert raw_digest([payload]) == expected
    assert raw_digest([payload[:100], b"", payload[100 : 2**20 + 5], payload[2**20 + 5 :]]) == (
        expected
    )
    assert raw_digest([payload[:-1]]) != expected


CHUNKS = [b"aaaa", b"bbbb", b"cc"]


def manifest(**changes: Any) -> BulkManifest:
    good = build_manifest(
        codec="none",
        size=10,
        encoded_size=10,
        chunk_bytes=4,
        digests=[chunk_digest(chunk) for chunk in CHUNKS],
        raw_digest=raw_digest(CHUNKS),
        topic="updates",
        partition=1,
        offsets=[5, 6, 9],
    )
    return good.model_copy(update=changes)


def test_golden_manifest():
    joined = b"".join(hashlib.sha256(chunk).digest() for chunk in CHUNKS)
    assert manifest().model_dump() == {
        "codec": "none",
        "size": 10,
        "encoded_size": 10,
        "chunk_bytes": 4,
        "digest": hashlib.sha256(joined).hexdigest(),
        "raw_digest": hashlib.sha256(hashlib.sha256(b"aaaabbbbcc").digest()).hexdigest(),
        "digests": base64.b64encode(joined).decode(),
        "topic": "updates",
        "partition": 1,
        "runs": ((5, 2), (9, 1)),
    }
    assert check_manifest(manifest(), LIMITS) == [chunk_digest(chunk) for chunk in CHUNKS]
    assert list(manifest().offsets()) == [5, 6, 9]
    assert [manifest().chunk_size(i) for i in range(3)] == [4, 4, 2]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"size": 12 + 1}, id="more chunks than digests"),
        pytest.param({"size": 8}, id="fewer chunks than digests"),
        pytest.param({"chunk_bytes": 1}, id="smaller chunks"),
        pytest.param({"digests": "!"}, id="not base64"),
        pytest.param({"digests": "é"}, id="not ascii"),
        pytest.param({"digests": ""}, id="no digests"),
        pytest.param({"digests": base64.b64encode(bytes(95)).decode()}, id="part of a digest"),
        pytest.param({"runs": ((5, 2),)}, id="fewer offsets"),
        pytest.param({"runs": ((5, 4),)}, id="more offsets"),
        pytest.param({"runs": ((5, 2), (6, 1))}, id="overlap"),
        pytest.param({"runs": ((9, 1), (5, 2))}, id="descending"),
        pytest.param({"runs": ()}, id="no offsets"),
        pytest.param({"runs": ((2**63 - 2, 3),)}, id="beyond the largest offset"),
        pytest.param({"topic": None, "runs": ()}, id="inline with several chunks"),
        pytest.param({"topic": None}, id="inline with offsets"),
    ],
)
def test_a_manifest_that_does_not_fit_together_is_refused(changes: dict[str, Any]):
    with pytest.raises(WireError):
        check_manifest(manifest(**changes), LIMITS)


def test_a_wrong_digest_of_the_digests_is_refused_as_such():
    with pytest.raises(DigestMismatchError):
        check_manifest(manifest(digest="0" * 64), LIMITS)


def test_a_payload_above_the_limit_is_refused_as_such():
    with pytest.raises(LimitExceededError):
        check_manifest(manifest(), Limits(max_payload_bytes=9))


@settings(deadline=None)
@given(
    st.builds(
        BulkManifest,
        size=st.integers(1, 2**63 - 1),
        chunk_bytes=st.integers(1, 2**63 - 1),
        digest=st.just("0" * 64),
        raw_digest=st.just("0" * 64),
        digests=st.one_of(st.text(), st.binary().map(lambda b: base64.b64encode(b).decode())),
        topic=st.one_of(st.none(), st.just("t")),
        runs=st.lists(
            st.tuples(st.integers(0, 2**63 - 1), st.integers(1, 2**63 - 1)), max_size=4
        ).map(tuple),
    )
)
def test_no_manifest_of_garbage_passes(garbage: BulkManifest):
    with pytest.raises(WireError):
        check_manifest(garbage, Limits(max_payload_bytes=2**63))
