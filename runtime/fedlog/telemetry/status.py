"""What a server says about its run: the JSON of `/status` and the lines of `metrics.jsonl`.

Specification, version 1
------------------------
`/status` answers one `Status`; `metrics.jsonl` holds one `RoundReport` a line. Names are snake
case, as in Prometheus and in the log's records (camel case is the job document's alone). Readers
ignore members that they do not know; a member changes its meaning only with `version`.

Bytes are counted at the server: *up* is what clients sent to it, *down* is what it published (one
broadcast is counted once, whatever the number of readers). Durations are seconds on the server's
monotonic clock; nothing here is a wall-clock time. Metrics are finite: a reader may rely on it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedlog.rounds.phase import Phase

HISTORY = 20
"""Rounds in `Status.history`."""
MAX_CLIENTS = 1000
"""Clients listed in `Status.clients` and `RoundReport.participants`."""
MAX_WAITING = 50
"""Clients listed in `Status.waiting_for`."""
MAX_REFUSALS = 50
"""Entries in `Status.refusals`."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Metrics = dict[str, float]
TestSetName = Literal["HeldOut", "Clients"]


class ClientState(StrEnum):
    """What a client is doing, as far as the server has heard."""

    JOINED = "joined"
    TRAINING = "training"
    UPLOADED = "uploaded"
    IDLE = "idle"
    LOST = "lost"
    LEFT = "left"


class Told(BaseModel):
    """Values that are told, never changed; unknown members are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Evaluation(Told):
    """Figures of one version of the global model on one test set."""

    version: Count
    """The version that was measured; 0 is the initial model."""
    examples: Count
    """Test examples behind the figures, over all clients that measured."""
    clients: Count
    """Clients that measured."""
    metrics: Metrics
    """Means weighted by test examples, by the names that the task gives them."""


class RoundReport(Told):
    """One round that is over. Round r makes version r; round 0 stands for the initial model."""

    round: Count
    """Number of the round, from 1."""
    version: Count
    """Version of the model that the round made."""
    digest: str
    """Digest of that version."""
    seconds: Seconds
    """From the announcement to the commit."""
    wanted: Count = 0
    """Updates that were wanted."""
    selected: Count = 0
    """Clients that were asked, over-selection and substitutes included."""
    accepted: Count = 0
    """Updates that are in the version, late ones included."""
    late: Count = 0
    """Updates in the version that were trained in an earlier round."""
    refused: dict[str, Count] = {}
    """Updates that were refused: reason -> number."""
    refused_records: dict[str, Count] = {}
    """Other records on the events topic that did not count, since the round before: reason ->
    number (malformed, of another run, from nobody's client, late evaluations)."""
    lost: Count = 0
    """Clients of the cohort that were lost before they sent an update."""
    participants: Annotated[tuple[str, ...], Field(max_length=MAX_CLIENTS)] = ()
    """Clients whose updates are in the version, in the order of folding; at most 1,000."""
    train_metrics: Metrics = {}
    """Figures of the clients' training, weighted by training examples."""
    evaluations: dict[TestSetName, Evaluation] = {}
    """Figures of the version that the round made, by test set."""
    bytes_up: Count = 0
    """Encoded bytes of the updates that are in the version."""
    bytes_down: Count = 0
    """Encoded bytes of the models that were published."""
    bytes_raw_up: Count = 0
    """Bytes of the same updates before encoding."""
    bytes_raw_down: Count = 0
    """Bytes of the same models before encoding."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate of the clients in this round."""
    aggregation_seconds: Seconds = 0.0
    """Time spent on reading, checking and folding updates."""
    adapted: dict[str, Count] = {}
    """Accepted updates of clients with another model: Cut (something of every tensor) or Partial
    (nothing of some tensors) -> number."""

    def metric(self, name: str, test_set: TestSetName) -> float | None:
        """A figure of this round's version, or None where it was not measured."""
        evaluation = self.evaluations.get(test_set)
        return None if evaluation is None else evaluation.metrics.get(name)


class ClientStatus(Told):
    """One client as the server sees it."""

    id: str
    """`group/index`."""
    state: ClientState
    """joined, training, uploaded, idle, lost or left."""
    round: Count | None = None
    """The round that it works on, or worked on last."""
    last_seen_s: Seconds
    """Seconds since its last record."""


class Refusal(Told):
    """Records that one sender wrote and that did not count, for one reason."""

    reason: str
    """A stable word: malformed, too-large, digest, other-run, not-a-member, quota, unfit …"""
    client: str
    """Who the record says it is from, or `unknown` where it cannot be read. Nothing proves it."""
    topic: str
    """events or journal."""
    offset: Count
    """Offset of the latest one."""
    count: Annotated[int, Field(ge=1)] = 1
    """How many."""


class Status(Told):
    """A run, now."""

    version: Literal[1] = 1
    """Version of this document."""
    run: str
    """Identity of the run."""
    job: str
    """Name of the job."""
    namespace: str = "default"
    """Namespace of the job."""
    epoch: Annotated[int, Field(ge=1)] = 1
    """Number of the server: 1 is the first, each that takes over adds 1."""
    phase: Phase
    """Joining, Training, Closing, Evaluating, Complete or Failed."""
    round: Count = 0
    """The round that is going on, or the last one; 0 before the first."""
    rounds: Count
    """Rounds that the job asks for."""
    clients_desired: Count = 0
    """Clients that the job has."""
    clients_joined: Count = 0
    """Clients that have joined and are neither lost nor gone."""
    clients_lost: Count = 0
    """Clients that are lost now."""
    waiting_for: Annotated[tuple[str, ...], Field(max_length=MAX_WAITING)] = ()
    """Clients that the round, or the start, waits for; at most 50."""
    deadline_s: Seconds | None = None
    """Seconds until the wait ends, or None where nothing is waited for."""
    metrics: dict[TestSetName, Metrics] = {}
    """The latest figures, by test set."""
    history: Annotated[tuple[RoundReport, ...], Field(max_length=HISTORY)] = ()
    """The last 20 rounds, oldest first. A round's evaluations may come one round later."""
    clients: Annotated[tuple[ClientStatus, ...], Field(max_length=MAX_CLIENTS)] = ()
    """Clients; at most 1,000."""
    refusals: Annotated[tuple[Refusal, ...], Field(max_length=MAX_REFUSALS)] = ()
    """What this server refused, by reason and sender, the latest last; at most 50 entries."""
    bytes_up: Count = 0
    """Encoded bytes of the updates in all versions: the sum over the reports."""
    bytes_down: Count = 0
    """Encoded bytes of the published models: the sum over the reports, round 0 included."""
    eta_s: Seconds | None = None
    """Seconds until the last round is expected to be over, or None where there is no telling."""
    message: str = ""
    """One sentence for people: what is going on, or why it ended."""
    seconds: Seconds = 0.0
    """Seconds since the server started."""
    versions: dict[str, str] = {}
    """Versions of what runs: fedlog, python, numpy …"""
