"""What the engine wants done, in order. The server does it and reports back as events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedlog.job.model import TestSet


@dataclass(frozen=True)
class WelcomeClient:
    """Tell this incarnation that it is a member. committed: the last round in which its update is
    accepted or being folded; None when there is none. fresh: it has not been one before.
    """

    client: str
    incarnation: str
    committed: int | None
    fresh: bool = True


@dataclass(frozen=True)
class Announce:
    """Ask `cohort` for work on `version`.

    training: train (round = version + 1); else only evaluate (round = version). evaluate: measure
    the version on the clients' test data. evaluator: the evaluator measures it, too.
    """

    round: int
    version: int
    cohort: tuple[str, ...]
    training: bool
    evaluate: bool
    evaluator: bool
    deadline_s: float


@dataclass(frozen=True)
class FoldUpdate:
    """Read the manifest at `offset` and its chunks, verify, add; answer UpdateFolded or
    UpdateRefused. Folds are done in the order in which they are asked for.
    """

    client: str
    offset: int
    examples: int
    round: int


@dataclass(frozen=True)
class TakeCut:
    """Ask for the end offset of `events`; answer CutTaken."""


@dataclass(frozen=True)
class Figures:
    """Means over `examples` test examples of `clients` clients, weighted by examples."""

    clients: int
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """A version's figures on one test set are complete. best: no earlier version was better on the
    decisive test set.
    """

    version: int
    test_set: TestSet
    figures: Figures
    best: bool


@dataclass(frozen=True)
class CommitRound:
    """Make version `round` from these updates (all folded, in this order), journal it, say that
    the round is closed, announce `following` (its base is the new version) in one transaction, and
    answer RoundCommitted.

    unanswered: clients of the cohort that are neither accepted on time nor refused. reupload:
    clients whose late update has lost its chunks, and may be written again.
    """

    round: int
    accepted: tuple[FoldUpdate, ...]
    refused: Mapping[str, str]
    unanswered: tuple[str, ...]
    reupload: tuple[str, ...]
    lost: tuple[str, ...]
    selected: int
    wanted: int
    late: int
    below_quorum: bool
    following: Announce | None


@dataclass(frozen=True)
class Refuse:
    """A record does not count; for counters, logs and the status.

    offset: of the manifest that is refused; None where it is not about a manifest.
    """

    client: str
    reason: str
    offset: int | None = None


@dataclass(frozen=True)
class Notice:
    """Something that a person should read in the log and the status."""

    message: str
    level: Literal["info", "warning"] = field(default="info")


@dataclass(frozen=True)
class Finish:
    """The job has ended; tell everybody."""

    outcome: Literal["Complete", "Failed"]
    reason: str
    message: str


Action = (
    WelcomeClient
    | Announce
    | FoldUpdate
    | TakeCut
    | Measured
    | CommitRound
    | Refuse
    | Notice
    | Finish
)
