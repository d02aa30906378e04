"""What happens to the engine: records of `events` in log order, results of the server's work,
the passing of time. A record is named by its offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlog.job.model import TestSet


@dataclass(frozen=True)
class ClientJoined:
    client: str
    incarnation: str
    offset: int


@dataclass(frozen=True)
class ClientSeen:
    """A heartbeat, or any other sign of life without another meaning."""

    client: str
    incarnation: str


@dataclass(frozen=True)
class ClientLeft:
    client: str
    incarnation: str


@dataclass(frozen=True)
class UpdateArrived:
    """A manifest: `examples` > 0 training examples, trained from the version with digest `base`."""

    client: str
    incarnation: str
    offset: int
    round: int
    base: str
    examples: int


@dataclass(frozen=True)
class WorkFailed:
    client: str
    incarnation: str
    round: int
    reason: str


@dataclass(frozen=True)
class EvaluationArrived:
    client: str
    incarnation: str
    version: int
    digest: str
    test_set: TestSet
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class UpdateFolded:
    """The update whose manifest is at `offset` was verified and added to the sum."""

    offset: int


@dataclass(frozen=True)
class UpdateRefused:
    """The update at `offset` is not what it claims to be; nothing was added. missing: its chunks
    are gone, which is not the client's fault.
    """

    offset: int
    reason: str
    missing: bool = False


@dataclass(frozen=True)
class CutTaken:
    """The end of `events` when the deadline passed: what is below came in time."""

    end_offset: int


@dataclass(frozen=True)
class EventsRead:
    """`events` is processed below `position`; `at_end` when nothing was waiting there."""

    position: int
    at_end: bool


@dataclass(frozen=True)
class RoundCommitted:
    """The journal has the round; version `version` = round exists with this digest."""

    version: int
    digest: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Aborted:
    """Somebody or something outside ended the job."""

    reason: str


Event = (
    ClientJoined
    | ClientSeen
    | ClientLeft
    | UpdateArrived
    | WorkFailed
    | EvaluationArrived
    | UpdateFolded
    | UpdateRefused
    | CutTaken
    | EventsRead
    | RoundCommitted
    | Tick
    | Aborted
)
