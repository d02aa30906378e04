"""What is fuzzed: one function of bytes per decoder. Each must return, or raise its typed errors.

Every target checks a property beside "does not crash": what was accepted is consistent, bounded,
and survives being written again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedlog.job.environment import apply_environment, classic_overrides
from fedlog.job.errors import JobError
from fedlog.job.loading import dump, loads
from fedlog.learning.errors import LearningError
from fedlog.learning.mean import WeightedMean
from fedlog.rounds.events import UpdateArrived
from fedlog.server.intake import Intake
from fedlog.server.refusals import Refusals
from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import read_metrics
from fedlog.telemetry.status import MAX_REFUSALS, Status
from fedlog.transport.base import Record
from fedlog.transport.bulk import download
from fedlog.transport.errors import TransportError
from fedlog.wire import records, tensors
from fedlog.wire.bulk import (
    BulkManifest,
    build_manifest,
    check_manifest,
    chunk_digest,
    decode_chunk_into,
    raw_digest,
)
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits
from fedlog.wire.updates import decode_update

RUN = "fedlog.default.digits.manual"
LIMITS = Limits(max_payload_bytes=2**20, max_header_bytes=2**16)
JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: digits}
spec:
  task: {entrypoint: "fedlog.tasks.digits:task", parameters: {model: sklearn}}
  rounds: 10
  clients: [{name: site, replicas: 10}]
"""
MODEL = {"w": np.zeros((3, 2), np.float32), "steps": np.zeros(1, np.int64)}


class _Log:
    """A bulk reader whose record at offset n is byte n and the seven after it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        del topic, partition, timeout_s
        for offset in offsets:
            if offset >= len(self._data):
                return
            yield self._data[offset : offset + 8]

    def close(self) -> None:
        pass


def record(data: bytes) -> None:
    """A frame of any small record."""
    try:
        found, payload = records.decode(data)
    except WireError:
        return
    again, inline = records.decode(records.encode(found, payload))
    assert again == found
    assert inline == payload


def events(data: bytes) -> None:
    """Frames, each behind its length in three bytes, as a server takes them from `events`."""
    told = Refusals()
    intake = Intake(RUN, told)
    offset = 0
    while data:
        size = int.from_bytes(data[:3], "little")
        value, data = data[3 : 3 + size], data[3 + size :]
        event = intake.take(Record(offset, 0, None, value))
        if isinstance(event, UpdateArrived):
            intake.manifest(event.offset)
        offset += 1
    assert len(told.recent()) <= MAX_REFUSALS
    assert sum(intake.refusals.values()) == sum(told.totals.values())


def manifest(data: bytes) -> None:
    """JSON of a manifest, a zero byte, the log that its runs point to."""
    text, _, log = data.partition(b"\0")
    try:
        found = BulkManifest.model_validate_json(text)
    except ValidationError:
        return
    with contextlib.suppress(WireError):
        assert len(check_manifest(found, LIMITS)) == found.chunk_count
    with contextlib.suppress(WireError, TransportError):
        payload = download(_Log(log), found, log, limits=LIMITS, timeout_s=5)
        assert len(payload) == found.size <= LIMITS.max_payload_bytes


def chunk(data: bytes) -> None:
    """Three bytes of the raw size that is expected, then a chunk with either codec."""
    size, encoded = int.from_bytes(data[:3], "little") % (2**20), data[3:]
    for codec in ("none", "zstd"):
        target = bytearray(size)
        with contextlib.suppress(WireError):
            decode_chunk_into(memoryview(target), encoded, codec)
            assert codec != "none" or target == encoded


def tensor(data: bytes) -> None:
    """A payload of tensors."""
    with contextlib.suppress(WireError):
        tensors.read_metadata(data, LIMITS)
    try:
        found = tensors.decode(data, LIMITS)
    except WireError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(data)
    again = b"".join(tensors.encode(found))
    for name, array in tensors.decode(again, Limits(max_payload_bytes=len(again))).items():
        assert array.tobytes() == found[name].tobytes()
        assert (array.shape, array.dtype) == (found[name].shape, found[name].dtype)


def update(data: bytes) -> None:
    """A whole update with the digests that it should have: chunk, tensors, views, fold."""
    codec = "zstd" if data[:1] == b"z" else "none"
    size, encoded = int.from_bytes(data[1:4], "little") or 1, data[4:]
    if not encoded:
        return
    claim = build_manifest(
        codec=codec,
        size=size,
        encoded_size=len(encoded),
        chunk_bytes=size,
        digests=[chunk_digest(encoded)],
        raw_digest=raw_digest([encoded]) if codec == "none" else None,
    )
    mean = WeightedMean(MODEL, partial=data[:1] == b"p")
    try:
        payload = download(None, claim, encoded, limits=LIMITS, timeout_s=5)
        mean.fold(decode_update(payload, LIMITS, client="site/0", examples=3))
    except (WireError, LearningError):
        assert mean.updates == 0
    else:
        assert mean.updates == 1


def job(data: bytes) -> None:
    """The text of a job file."""
    with contextlib.suppress(JobError):
        found = loads(data.decode(errors="replace"))
        assert loads(dump(found)).job == found.job


def environment(data: bytes) -> None:
    """Values of the environment, and overrides of the command line, between zero bytes."""
    values = [part.decode(errors="replace") for part in data.split(b"\0")]
    names = ("BOOTSTRAP_SERVERS", "MODEL_TOPIC", "UPDATE_TOPIC", "REDUCED_DATA_SIZE")
    environ = dict(zip(names, values, strict=False))
    with contextlib.suppress(JobError):
        overrides = [*classic_overrides(environ), *values[len(names) :]]
        apply_environment(loads(JOB, overrides=overrides).job, environ)


_FOLDER = Path(tempfile.gettempdir()) / f"fedlog-fuzz-{os.getpid()}"


def report(data: bytes) -> None:
    """What a status poller and the report command read: /status, result.json, metrics.jsonl."""
    with contextlib.suppress(ValidationError):
        status = Status.model_validate_json(data)
        assert Status.model_validate_json(status.model_dump_json()) == status
    _FOLDER.mkdir(exist_ok=True)
    path = _FOLDER / "file"
    try:
        path.write_bytes(data)
        with contextlib.suppress(RunFolderError):
            numbers = [found.round for found in read_metrics(path)]
            assert numbers == sorted(set(numbers))
        with contextlib.suppress(RunFolderError):
            Result.load(path)
    finally:
        path.unlink()
        _FOLDER.rmdir()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (record, events, manifest, chunk, tensor, update, job, environment, report)
}
