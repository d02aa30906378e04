"""The small records of the log: who joined, what is announced, what was committed.

Specification, version 1
------------------------
The value of a Kafka record on ``control``, ``events`` and ``journal`` is one frame::

    bytes 0..3    ASCII "FLR1"
    bytes 4..7    length H of the header, unsigned 32-bit little-endian, at most 16 MiB
    next H        the header: one UTF-8 JSON object, padded at its end with spaces (0x20) so that
                  8 + H is a multiple of 8 and the payload is aligned
    the rest      the payload: one encoded bulk chunk, not empty, when the header's manifest is
                  inline (`fedlog.wire.bulk`), else empty

The header's ``type`` names one of the classes below; its other members are that class's fields.
Unknown members are ignored, unknown types are refused. ``run`` is the run that a record belongs
to; a reader refuses records of another run. Figures (`metrics`) are finite and at most 1e100 in
absolute value, so that their sums and means stay finite. Times are durations in seconds; nobody's
wall clock is compared with anybody else's. A client's identity is ``group/index``.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from fedlog.wire.bulk import (
    DIGEST_BYTES,
    INLINE_BYTES,
    BulkManifest,
    Bytes,
    Digest,
    Offset,
    Partition,
    TopicName,
    largest_encoded,
)
from fedlog.wire.errors import LimitExceededError, UnsupportedVersionError, WireError

MAGIC = b"FLR1"
MAX_HEADER_BYTES = 16 * 2**20
_ALIGNMENT = 8
_MAX_DESCRIBED_ERRORS = 100
_MAX_DESCRIPTION = 500
_PREFIX = struct.Struct("<4sI")

ClientId = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?/(0|[1-9][0-9]{0,5})$")
]
Incarnation = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
RunId = Annotated[str, Field(min_length=1, max_length=200)]
Round = Annotated[int, Field(ge=0, le=1_000_000)]
Examples = Annotated[int, Field(ge=1, le=2**53)]
Epoch = Annotated[int, Field(ge=1, le=2**53)]
Reason = Annotated[str, Field(max_length=2000)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
MAX_METRIC = 1e100
"""Largest absolute value of a figure: sums and weighted means of such values stay finite."""
MetricValue = Annotated[float, Field(ge=-MAX_METRIC, le=MAX_METRIC)]
Metrics = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=63)], MetricValue], Field(max_length=64)
]


class SmallRecord(BaseModel):
    """What every small record has."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    run: RunId


# ---- client -> server, on `events` ---------------------------------------------------------------


class ClientRecord(SmallRecord):
    """Sent by one incarnation (process lifetime) of one client."""

    client: ClientId
    incarnation: Incarnation


class Joined(ClientRecord):
    """Asks for a welcome; sent again until there is one."""

    type: Literal["joined"] = "joined"
    label: Annotated[str, Field(max_length=253)] = ""


class Heartbeat(ClientRecord):
    """The client is alive. `round` is the round that it works on, or None."""

    type: Literal["heartbeat"] = "heartbeat"
    round: Round | None = None


class Uploading(ClientRecord):
    """Chunks of an update are being written, the first one at `first_offset`."""

    type: Literal["uploading"] = "uploading"
    round: Round
    base: Digest
    topic: TopicName
    partition: Partition
    first_offset: Offset


class Updated(ClientRecord):
    """The manifest of an update: it commits the chunks. The record's offset is its name.

    metrics: figures of the training (`loss` …) and, with the prefix ``local_``, of the trained
    model on the client's own test data. seconds: how long the training took.
    """

    type: Literal["updated"] = "updated"
    round: Round
    base: Digest
    examples: Examples
    metrics: Metrics = {}
    seconds: Seconds = 0.0
    bulk: BulkManifest


class Evaluated(ClientRecord):
    """Figures of one version of the global model on a test set of `examples` examples."""

    type: Literal["evaluated"] = "evaluated"
    version: Round
    digest: Digest
    test_set: Literal["HeldOut", "Clients"]
    examples: Examples
    metrics: Metrics


class Failed(ClientRecord):
    """The client could not do the work of a round; it stays in the job."""

    type: Literal["failed"] = "failed"
    round: Round
    reason: Reason


class Left(ClientRecord):
    """The client goes; it may come back as another incarnation."""

    type: Literal["left"] = "left"
    reason: Reason = ""


# ---- server -> clients, on `control` -------------------------------------------------------------


class ServerRecord(SmallRecord):
    """Sent by the server of one epoch; readers drop those of an older epoch than they have seen."""

    epoch: Epoch


class Welcome(ServerRecord):
    """Answers joined: these incarnations are members.

    clients: client -> incarnation. committed: client -> the last round in which its update was
    committed or is accepted so far (absent: none). announcement: offset on control of the current
    announcement (None: there is none yet).
    """

    type: Literal["welcome"] = "welcome"
    clients: dict[ClientId, Incarnation]
    committed: dict[ClientId, Round] = {}
    announcement: Offset | None = None


class Training(BaseModel):
    """What to do in a round of training."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    local_epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]


class Announced(ServerRecord):
    """Work: version `version` (identity `base`) is in `model`; the clients in `cohort` are asked.

    `training` is None where the model is only to be evaluated (the last version). A client that is
    named evaluates first where `evaluate` says so, then trains. `round` is version + 1 for
    training. The same (round, base) announced again is the same work; `cohort` then names those
    who are asked in addition. Updates go to `updates_topic`, partition: the client's number in the
    job modulo its partitions.
    """

    type: Literal["announced"] = "announced"
    round: Round
    version: Round
    base: Digest
    model: BulkManifest
    cohort: tuple[ClientId, ...]
    training: Training | None
    evaluate: bool
    evaluator: bool
    keep_training: bool
    deadline_s: Seconds
    updates_topic: TopicName


class Closed(ServerRecord):
    """A round is committed: `version` with identity `digest` exists.

    accepted: client -> offset of its manifest. refused: client -> the reason's word (before its
    first colon). reupload: clients whose chunks are gone and who should write them again under a
    new manifest.
    """

    type: Literal["closed"] = "closed"
    round: Round
    version: Round
    digest: Digest
    accepted: dict[ClientId, Offset]
    refused: dict[ClientId, Reason] = {}
    reupload: tuple[ClientId, ...] = ()


class Stopped(ServerRecord):
    """The run has ended; clients end with 0."""

    type: Literal["stopped"] = "stopped"
    outcome: Literal["Complete", "Failed"]
    reason: Reason
    round: Round


# ---- server -> itself, on `journal` --------------------------------------------------------------


Accepted = tuple[ClientId, Offset, Examples, Round]
"""One update in a version: client, offset of its manifest on events, examples, the round that it
was trained in. Without names: there is one for every client of a round."""

MAX_JOB_CHARACTERS = 65_536


class Started(SmallRecord):
    """Key `start`: the run has begun, with version 0 in `model`. Written once.

    job: the job as resolved, JSON without its ConfigMaps; empty where it is longer than
    MAX_JOB_CHARACTERS.
    """

    type: Literal["started"] = "started"
    digest: Digest
    model: BulkManifest
    job: Annotated[str, Field(max_length=MAX_JOB_CHARACTERS)] = ""


class MemberOf(SmallRecord):
    """Key `client/ID`: the incarnations of a client, each with the offset of its `joined` on
    events. The last is the current one; written with its welcome.
    """

    type: Literal["member"] = "member"
    client: ClientId
    incarnations: Annotated[
        tuple[tuple[Incarnation, Offset], ...], Field(min_length=1, max_length=64)
    ]


class Work(BaseModel):
    """What the open phase asks for: everybody who was asked so far, how many updates are wanted,
    and how often in a row it was announced again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    round: Round
    cohort: tuple[ClientId, ...]
    training: bool
    evaluate: bool
    evaluator: bool
    wanted: Annotated[int, Field(ge=0, le=1_000_000)]
    retries: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Judged(BaseModel):
    """How the decisive metric stood when the version was made; `value` is that of the best."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    version: Round | None = None
    value: MetricValue | None = None
    without_better: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class VersionMeasured(BaseModel):
    """Means over `examples` test examples of `clients` clients, weighted by examples."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    clients: Annotated[int, Field(ge=0)]
    examples: Annotated[int, Field(ge=0)]
    metrics: Metrics


class Head(SmallRecord):
    """Key `head`: where the run stands; all that a restarted server needs besides the log.

    events_offset: `events` below it is in the version or can never be; a new server reads from
    there. late: updates that wait for the next version. finishing: clients that still train for a
    closed round. deadline_s: what is left of the phase's deadline; active_s: of the whole run's.
    outcome, cause, reason and the last version's measured: once the run has ended.
    """

    type: Literal["head"] = "head"
    epoch: Epoch
    version: Round
    digest: Digest
    model: BulkManifest
    events_offset: Offset
    created_topics: tuple[str, ...]
    work: Work | None = None
    late: tuple[Accepted, ...] = ()
    finishing: dict[ClientId, Round] = {}
    judged: Judged = Judged()
    deadline_s: Seconds | None = None
    active_s: Seconds | None = None
    measured: dict[Literal["HeldOut", "Clients"], VersionMeasured] = {}
    stop_reason: Reason = ""
    outcome: Literal["Complete", "Failed"] | None = None
    cause: Annotated[str, Field(max_length=63)] = ""
    reason: Reason = ""


class Committed(SmallRecord):
    """Key `round/N`: the accepted set of version N in the order of folding, and what became of
    the rest: client -> the reason's word; unanswered: asked, and nothing came.

    measured: figures of version N - 1, by test set. report: what else the server says of the
    round; it is no part of the protocol. The record of a round that no head names (its server
    died in between) does not count.
    """

    type: Literal["committed"] = "committed"
    epoch: Epoch
    round: Round
    base: Digest
    digest: Digest
    accepted: tuple[Accepted, ...]
    refused: dict[ClientId, Reason] = {}
    unanswered: tuple[ClientId, ...] = ()
    measured: dict[Literal["HeldOut", "Clients"], VersionMeasured] = {}
    report: dict[str, JsonValue] = {}


EventRecord = Joined | Heartbeat | Uploading | Updated | Evaluated | Failed | Left
ControlRecord = Welcome | Announced | Closed | Stopped
JournalRecord = Started | MemberOf | Head | Committed
AnyRecord = EventRecord | ControlRecord | JournalRecord

_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="type")])


def reason_word(reason: str) -> str:
    """The word by which a reason is counted: what stands before its first colon."""
    return reason.partition(":")[0]


def encode(record: AnyRecord, payload: Bytes = b"") -> bytes:
    """One frame. `payload` is the inline chunk of the record's manifest, or empty.

    Raises WireError when the payload is missing or has no manifest, and LimitExceededError when
    the header is too long.
    """
    _check_payload(record, memoryview(payload))
    header = record.model_dump_json().encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    _check_header_size(len(header))
    return b"".join((_PREFIX.pack(MAGIC, len(header)), header, payload))


def decode(value: bytes) -> tuple[AnyRecord, memoryview]:
    """The record and its payload (a view into `value`). Raises WireError; believes nothing.

    An inline chunk is within its bound; it is checked against its manifest by who reads it.
    """
    if len(value) < _PREFIX.size:
        raise WireError(f"a record of {len(value)} bytes is shorter than its prefix")
    magic, length = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        if magic[:3] == MAGIC[:3]:
            raise UnsupportedVersionError(f"frame version {magic!r}; this Fedlog reads {MAGIC!r}")
        raise WireError(f"not a Fedlog record: it starts with {magic!r}")
    _check_header_size(length)
    end = _PREFIX.size + length
    if end > len(value):
        raise WireError(f"a header of {length} bytes in a record of {len(value)}")
    try:
        record = _ADAPTER.validate_json(value[_PREFIX.size : end])
    except ValidationError as error:
        raise WireError(f"header: {_describe(error)}") from None
    payload = memoryview(value)[end:]
    _check_payload(record, payload)
    _check_claims(record, payload)
    return record, payload


def _check_header_size(size: int) -> None:
    if size > MAX_HEADER_BYTES:
        raise LimitExceededError(f"a header of {size} bytes; {MAX_HEADER_BYTES} are allowed")


def manifest_of(record: AnyRecord) -> BulkManifest | None:
    """What the record commits or announces; None where it is about no payload."""
    match record:
        case (
            Updated(bulk=manifest)
            | Announced(model=manifest)
            | Head(model=manifest)
            | Started(model=manifest)
        ):
            return manifest
    return None


def _check_claims(record: AnyRecord, payload: memoryview) -> None:
    """What would let a record that is kept for a while take much more memory than it says."""
    manifest = manifest_of(record)
    if manifest is None:
        return
    if manifest.inline and (
        manifest.size > INLINE_BYTES or len(payload) > largest_encoded(INLINE_BYTES)
    ):
        raise LimitExceededError(
            f"{record.type}: {max(manifest.size, len(payload))} bytes inside a record; "
            f"{INLINE_BYTES} are allowed"
        )
    count = manifest.chunk_count
    digest_characters = -(-count * DIGEST_BYTES // 3) * 4
    if len(manifest.runs) > count or len(manifest.digests) != digest_characters:
        raise WireError(
            f"{record.type}: a manifest of {count} chunks has {len(manifest.runs)} runs and "
            f"{len(manifest.digests)} characters of digests"
        )


def _check_payload(record: AnyRecord, payload: memoryview) -> None:
    manifest = manifest_of(record)
    expected = manifest is not None and manifest.inline
    if expected and not payload:
        raise WireError(f"{record.type}: the manifest is inline, but there is no payload")
    if payload and not expected:
        raise WireError(f"{record.type}: {len(payload)} bytes of payload that no manifest names")


def _describe(error: ValidationError) -> str:
    """The first error in a bounded number of printable characters: keys are the sender's."""
    count = error.error_count()
    if count > _MAX_DESCRIBED_ERRORS:
        # Listing them costs seconds for a record that has one wrong member every few bytes.
        return f"{count} members are not what they should be"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    text = f"{where}: {first['msg']}"[:_MAX_DESCRIPTION]
    return "".join(character if character.isprintable() else "?" for character in text)
