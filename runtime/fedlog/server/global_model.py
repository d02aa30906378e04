"""The global model: one buffer that is at once the arrays, the wire payload and the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlog.learning.weights import Array
from fedlog.telemetry.run_folder import replacing
from fedlog.transport.base import Bytes, Transport
from fedlog.transport.bulk import download
from fedlog.wire.bulk import BulkManifest, raw_digest
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode


class GlobalModel:
    """A version of the model. `weights` are writable views of `payload`, so that a new version is
    made in place, and published and saved without a copy.
    """

    def __init__(self, payload: bytearray, limits: Limits, *, version: int = 0) -> None:
        """`payload`: tensors as `fedlog.wire.tensors` writes them; owned by this object from now
        on. Raises WireError.
        """
        self.payload = payload
        self.version = version
        self.weights: dict[str, Array] = {}
        whole = np.frombuffer(payload, dtype=np.uint8)
        start = whole.ctypes.data
        for name, view in decode(payload, limits).items():
            offset = view.ctypes.data - start if view.size else 0
            self.weights[name] = np.ndarray(view.shape, view.dtype, payload, offset)
        self.digest = raw_digest([payload])

    @classmethod
    def load(cls, path: Path) -> GlobalModel:
        payload = bytearray(path.stat().st_size)
        with path.open("rb") as file:
            file.readinto(payload)
        return cls(payload, Limits.for_model(len(payload)))

    @classmethod
    def read(
        cls,
        transport: Transport,
        manifest: BulkManifest,
        inline: Bytes,
        *,
        version: int,
        chunk_bytes: int,
        timeout_s: float,
    ) -> GlobalModel:
        """A version from the log. Raises WireError and TransportError."""
        payload = bytearray(manifest.size)
        reader = None if manifest.inline else transport.bulk_reader(chunk_bytes)
        try:
            download(
                reader,
                manifest,
                inline,
                limits=Limits.for_model(manifest.size),
                into=payload,
                timeout_s=timeout_s,
            ).release()
        finally:
            if reader is not None:
                reader.close()
        return cls(payload, Limits.for_model(manifest.size), version=version)

    @property
    def size_bytes(self) -> int:
        return len(self.payload)

    def copy(self) -> GlobalModel:
        return GlobalModel(
            bytearray(self.payload), Limits.for_model(self.size_bytes), version=self.version
        )

    def advance(self) -> None:
        """The weights have been changed in place: this is the next version."""
        self.version += 1
        self.digest = raw_digest([self.payload])

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            file.write(self.payload)
