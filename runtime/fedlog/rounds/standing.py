"""Where a run stands, as its journal tells it: what an engine needs to go on from there.

It is the state of the moment at which the current version was made, and besides what has been
asked of whom since (`work`). All that happened since then is on `events`, and is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedlog.rounds.actions import Announce, FoldUpdate
from fedlog.rounds.membership import Joining


@dataclass(frozen=True)
class OpenWork:
    """What the open phase asks for. `announce` names everybody who was asked so far, and what is
    left of the deadline.
    """

    announce: Announce
    wanted: int
    retries: int = 0


@dataclass(frozen=True)
class Judgement:
    """How the decisive metric stood; `value` is that of the best version."""

    version: int | None = None
    value: float | None = None
    without_better: int = 0


@dataclass(frozen=True)
class Standing:
    """digests: of the current version and those before it that late updates may name. asked:
    clients by round, as far back. accepted: client -> the last round of which a version has its
    update. late: updates that wait for the next version. finishing: client -> the closed round
    that it still trains for. deadline_s, active_s: what is left of the phase's and of the run's
    deadline; None: as at the beginning. outcome: once the run has ended.
    """

    version: int
    digests: Mapping[int, str]
    members: Mapping[str, tuple[Joining, ...]] = field(default_factory=dict)
    asked: Mapping[int, frozenset[str]] = field(default_factory=dict)
    accepted: Mapping[str, int] = field(default_factory=dict)
    participation: Mapping[str, int] = field(default_factory=dict)
    late: tuple[FoldUpdate, ...] = ()
    finishing: Mapping[str, int] = field(default_factory=dict)
    judgement: Judgement = Judgement()
    work: OpenWork | None = None
    deadline_s: float | None = None
    active_s: float | None = None
    stop_reason: str = ""
    outcome: Literal["Complete", "Failed"] | None = None
