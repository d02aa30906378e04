"""What a decoder accepts at most: everything read is hostile until validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Limits:
    """Upper bounds of one payload; above any of them a decoder raises LimitExceededError.

    max_payload_bytes: the whole payload, decompressed. max_header_bytes: its JSON header (parsing
    takes up to 30 times as much memory for a moment). max_name_bytes: a tensor's name in UTF-8.
    """

    max_payload_bytes: int
    max_header_bytes: int = 2 * 2**20
    max_tensors: int = 10_000
    max_rank: int = 16
    max_name_bytes: int = 512

    @classmethod
    def for_model(cls, size_bytes: int) -> Self:
        """Limits for payloads with the tensors of a model, whose arrays have `size_bytes`."""
        return cls(max_payload_bytes=size_bytes + 8 + cls.max_header_bytes)
