"""Bulk payloads: a model or an update cut into chunks, and the manifest that commits them.

Specification, version 1
------------------------
The raw payload (`fedlog.wire.tensors`) of `size` bytes, at least 1, is cut every `chunk_bytes`
bytes; every chunk but the last has that many. With codec ``none`` a chunk travels as it is; with
``zstd`` each chunk is one zstd frame of its own that must declare its content size. The value of
one Kafka record is exactly one (encoded) chunk.

``digests`` holds the SHA-256 of every encoded chunk, 32 bytes each, concatenated, in base64.
``digest`` is the lower-case hex SHA-256 of that concatenation (before base64): the identity of
the encoded payload. ``encoded_size`` is the sum of the encoded chunks' sizes. ``raw_digest`` is the
same construction as ``digest`` over the raw chunks with ``chunk_bytes`` fixed at 1 MiB (2**20), so
that it does not depend on how a payload travels: it is the identity of a model version. An update
has none.

Chunks lie in one partition; ``runs`` lists them as ``[first offset, count]`` in ascending order.
A payload of at most INLINE_BYTES travels in the record of its manifest instead: then ``topic`` is
None, ``runs`` is empty and the record's payload is the one encoded chunk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import zstandard
from pydantic import BaseModel, ConfigDict, Field

from fedlog.wire.errors import DigestMismatchError, LimitExceededError, WireError
from fedlog.wire.limits import Limits

INLINE_BYTES = 65_536
DIGEST_BLOCK_BYTES = 2**20
DIGEST_BYTES = 32
MAX_OFFSET = 2**63 - 1
ZSTD_LEVEL = 1  # trained float32 weights hardly shrink: higher levels only take longer

Bytes = bytes | bytearray | memoryview
Codec = Literal["none", "zstd"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
Size = Annotated[int, Field(ge=1, le=MAX_OFFSET)]
TopicName = Annotated[str, Field(max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")]
Partition = Annotated[int, Field(ge=0, le=2**31 - 1)]


class BulkManifest(BaseModel):
    """Names the chunks of one payload; see the module for the meaning of each field.

    A manifest that was read is a claim until `check_manifest` has passed it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    codec: Codec = "none"
    size: Size
    encoded_size: Size
    chunk_bytes: Size
    digest: Digest
    raw_digest: Digest | None = None
    digests: str
    topic: TopicName | None = None
    partition: Partition = 0
    runs: tuple[tuple[Offset, Size], ...] = ()

    @property
    def inline(self) -> bool:
        return self.topic is None

    @property
    def chunk_count(self) -> int:
        return -(-self.size // self.chunk_bytes)

    def chunk_size(self, index: int) -> int:
        """Bytes of the raw chunk with this index."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def offsets(self) -> Iterator[int]:
        """Where the chunks lie, in order."""
        for first, count in self.runs:
            yield from range(first, first + count)


# ---- chunks --------------------------------------------------------------------------------------


def split(buffers: Iterable[Bytes], chunk_bytes: int) -> Iterator[Bytes]:
    """Cut the concatenation of the buffers into chunks of `chunk_bytes`; the last may be shorter.

    A chunk inside one buffer is a view of it; one that spans buffers is a copy of that chunk.
    """
    pieces: list[memoryview] = []
    room = chunk_bytes
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            piece, view = view[:room], view[room:]
            pieces.append(piece)
            room -= len(piece)
            if room == 0:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces, room = [], chunk_bytes
    if pieces:
        yield pieces[0] if len(pieces) == 1 else b"".join(pieces)


def raw_chunk_bytes(record_bytes: int, codec: Codec) -> int:
    """The largest raw chunk whose encoded form is at most `record_bytes`, whatever it holds."""
    if codec == "none":
        return record_bytes
    # A frame that does not shrink takes up to 18 bytes, and 3 more for each block of 128 KiB.
    return max(1, record_bytes - 64 - (record_bytes >> 12))


def largest_encoded(raw_bytes: int) -> int:
    """The most that a raw chunk of this size takes when it travels, with any codec."""
    return raw_bytes + 64 + (raw_bytes >> 12)


def encode_chunk(chunk: Bytes, codec: Codec) -> Bytes:
    """The chunk as it travels; with codec none the very same buffer."""
    if codec == "none":
        return chunk
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(chunk)


def decode_chunk_into(target: memoryview, encoded: Bytes, codec: Codec) -> None:
    """Write the raw chunk to `target`, which has exactly its size.

    Raises WireError when the chunk has another size. A frame that declares another size, or is
    followed by anything, is refused before a byte is decompressed.
    """
    if codec == "none":
        raw = encoded
    else:
        try:
            declared = zstandard.frame_content_size(encoded)
            if declared != len(target):
                raise WireError(f"a zstd chunk declares {declared} bytes, expected {len(target)}")
            raw = zstandard.ZstdDecompressor().decompress(encoded, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(f"a chunk is not one zstd frame: {error}") from None
    if len(raw) != len(target):
        raise WireError(f"a chunk has {len(raw)} bytes, expected {len(target)}")
    target[:] = raw


# ---- digests -------------------------------------------------------------------------------------


def chunk_digest(encoded: Bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(encoded).digest()


def digest_of(digests: Iterable[bytes]) -> str:
    """The digest of a payload from the digests of its chunks."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


class RawDigest:
    """Computes `raw_digest` while the raw payload passes by in pieces of any size."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._block = hashlib.sha256()
        self._room = DIGEST_BLOCK_BYTES

    def update(self, piece: Bytes) -> None:
        view = memoryview(piece)
        while view:
            part, view = view[: self._room], view[self._room :]
            self._block.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._close_block()

    def _close_block(self) -> None:
        self._digests.append(self._block.digest())
        self._block = hashlib.sha256()
        self._room = DIGEST_BLOCK_BYTES

    def hexdigest(self) -> str:
        """The digest of everything so far, which ends here: nothing may follow."""
        if self._room < DIGEST_BLOCK_BYTES:
            self._close_block()
        return digest_of(self._digests)


def raw_digest(buffers: Iterable[Bytes]) -> str:
    """The identity of the payload that the buffers make together."""
    digest = RawDigest()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


# ---- manifests -----------------------------------------------------------------------------------


def build_manifest(
    *,
    codec: Codec,
    size: int,
    encoded_size: int,
    chunk_bytes: int,
    digests: Sequence[bytes],
    raw_digest: str | None = None,
    topic: str | None = None,
    partition: int = 0,
    offsets: Iterable[int] = (),
) -> BulkManifest:
    """The manifest of chunks that lie at these ascending offsets, or inline without a topic.

    Raises WireError when counts or offsets do not fit together.
    """
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((offset, 1))
    manifest = BulkManifest(
        codec=codec,
        size=size,
        encoded_size=encoded_size,
        chunk_bytes=chunk_bytes,
        digest=digest_of(digests),
        raw_digest=raw_digest,
        digests=base64.b64encode(b"".join(digests)).decode(),
        topic=topic,
        partition=partition,
        runs=tuple(runs),
    )
    check_manifest(manifest, Limits(max_payload_bytes=size))
    return manifest


def check_manifest(manifest: BulkManifest, limits: Limits) -> list[bytes]:
    """The digests of the chunks, one per chunk. Raises WireError unless everything fits together.

    Afterwards: the size is within the limits; there are as many digests and offsets as chunks;
    offsets ascend; `digest` is the digest of the digests.
    """
    if manifest.size > limits.max_payload_bytes:
        raise LimitExceededError(
            f"a payload of {manifest.size} bytes; {limits.max_payload_bytes} are allowed"
        )
    try:
        joined = base64.b64decode(manifest.digests, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("the digests of a manifest are not base64") from None
    count = manifest.chunk_count
    if len(joined) != count * DIGEST_BYTES:
        raise WireError(
            f"a manifest of {count} chunks has {len(joined)} bytes of digests, "
            f"expected {count * DIGEST_BYTES}"
        )
    if hashlib.sha256(joined).hexdigest() != manifest.digest:
        raise DigestMismatchError("a manifest's digest is not the digest of its digests")

    if manifest.inline:
        if count != 1 or manifest.runs:
            raise WireError("a manifest without a topic names chunks on the log")
    elif sum(length for _, length in manifest.runs) != count:
        raise WireError(f"the runs of a manifest do not name its {count} chunks")
    end = 0
    for first, length in manifest.runs:
        if first < end:
            raise WireError("the runs of a manifest do not ascend")
        end = first + length
    if end > MAX_OFFSET:
        raise WireError("the runs of a manifest end beyond the largest offset")
    return [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]
