"""Bulk payloads: a model or an update cut into chunks, and the manifest that commits them.

Specification, version 1
------------------------
The raw payload (`fedlog.wire.tensors`) of `size` bytes is cut every `chunk_bytes` bytes; every
chunk but the last has that many. With codec ``none`` a chunk travels as it is; with ``zstd`` each
chunk is one zstd frame of its own that must declare its content size. The value of one Kafka
record is exactly one (encoded) chunk.

``digests`` holds the SHA-256 of every encoded chunk, 32 bytes each, concatenated, in base64.
``digest`` is the lower-case hex SHA-256 of that concatenation (before base64): the identity of
the encoded payload. ``raw_digest`` is the same construction over the raw chunks with
``chunk_bytes`` fixed at 1 MiB (2**20), so that it does not depend on how a payload travels: it is
the identity of a model version.

Chunks lie in one partition; ``runs`` lists them as ``[first offset, count]`` in ascending order.
A payload of at most INLINE_BYTES travels in the record of its manifest instead: then ``topic`` is
None, ``runs`` is empty and the record's payload is the one encoded chunk.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

INLINE_BYTES = 65_536
DIGEST_BLOCK_BYTES = 2**20

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BulkManifest(BaseModel):
    """Names the chunks of one payload; see the module for the meaning of each field."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    codec: Literal["none", "zstd"] = "none"
    size: Annotated[int, Field(ge=0)]
    chunk_bytes: Annotated[int, Field(ge=1)]
    digest: Digest
    raw_digest: Digest
    digests: str
    topic: Annotated[str, Field(max_length=249)] | None = None
    partition: Annotated[int, Field(ge=0)] = 0
    runs: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], ...] = ()

    @property
    def inline(self) -> bool:
        return self.topic is None
