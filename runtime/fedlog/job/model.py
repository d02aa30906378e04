"""The FederatedJob, v1alpha1: one document for the laptop, the cluster, the CLI and the docs.

Every field has a description, a default where one is sensible, and bounds. Decimal numbers are
strings, as Kubernetes style asks (a CRD has no floats), so that one file means the same
everywhere; `Decimal` fields accept nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from fedlog.job.spelling import did_you_mean

GROUP: Final = "fedlog.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "fedlog.dev/v1alpha1"
KIND: Final = "FederatedJob"

LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DECIMAL_PATTERN = r"^[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$"
TOPIC_PATTERN = r"^[a-zA-Z0-9_-][a-zA-Z0-9._-]*$"
_ADDRESS = r"(\[[0-9a-fA-F:.]+\]|[^\s,:\[\]]+):[0-9]{1,5}"
SERVERS_PATTERN = rf"^{_ADDRESS}(, *{_ADDRESS})*$"
ENTRYPOINT_PATTERN = r"^([^:\s][^:]*\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*$"
UID_PATTERN = r"^[-a-z0-9]+$"


class Finding(NamedTuple):
    """One thing that is wrong with a document although every field by itself is right.

    at: path of the field, relative to the object that was checked, in the document's own words.
    found, allowed: what stands there and what may; suggestion: the cure, where there is one.
    """

    at: tuple[str | int, ...]
    found: str
    allowed: str
    suggestion: str = ""


def _refuse(findings: Sequence[Finding]) -> None:
    """All findings in one error: pydantic takes one per object, a person wants them all."""
    if findings:
        text = "; ".join(
            f"{'.'.join(map(str, f.at))} is {f.found}, allowed is {f.allowed}" for f in findings
        )
        raise PydanticCustomError("findings", "{text}", {"text": text, "findings": findings})


def _decimal_text(value: object) -> object:
    # From Python a Decimal is welcome; from a document only text is.
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str) and re.fullmatch(DECIMAL_PATTERN, value, re.ASCII):
        return Decimal(value)
    raise PydanticCustomError(
        "decimal_string",
        'a decimal is written as text, in quotes: "0.1"',
    )


DecimalString = Annotated[
    Decimal,
    BeforeValidator(
        _decimal_text,
        json_schema_input_type=Annotated[str, Field(pattern=DECIMAL_PATTERN)],
    ),
]


class Document(BaseModel):
    """Camel case outside, snake case inside; unknown fields are errors; values do not change."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Metadata(Document):
    """The part of Kubernetes' metadata that matters here; the rest is accepted and left alone."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=LABEL_PATTERN)]
    """Name of the job; it is part of every topic's name."""
    namespace: Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL_PATTERN)] = "default"
    """Namespace of the job; part of every topic's name as well."""
    uid: Annotated[str, Field(min_length=1, max_length=36, pattern=UID_PATTERN)] | None = None
    """Given by Kubernetes; its first eight characters tell two runs of one name apart."""
    labels: dict[str, str] = {}
    """Labels; Fedlog does not read them."""
    annotations: dict[str, str] = {}
    """Annotations; Fedlog does not read them."""


class TaskSource(Document):
    """Where the task's module comes from when it is not installed."""

    config_map: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of a ConfigMap whose keys are file names; on a laptop it is a second document of the
    same YAML file."""


class TaskSpec(Document):
    """What is learned: the user's own code."""

    entrypoint: Annotated[str, Field(min_length=3, max_length=253, pattern=ENTRYPOINT_PATTERN)]
    """`package.module:attribute`, or `path/to/file.py:attribute` relative to the job file or to
    the ConfigMap's folder. The attribute is a Task."""
    source: TaskSource | None = None
    """Where the module comes from when it is neither installed nor beside the job file."""
    parameters: dict[str, Any] = {}
    """Handed to the task as they are."""


class PartitionerName(StrEnum):
    """Partitioners by their names in Flower Datasets."""

    IID = "Iid"
    DIRICHLET = "Dirichlet"
    SHARD = "Shard"
    PATHOLOGICAL = "Pathological"
    SIZE = "Size"
    NATURAL_ID = "NaturalId"


PARTITIONER_PARAMETERS: Mapping[PartitionerName, Mapping[str, bool]] = {
    PartitionerName.IID: {},
    PartitionerName.DIRICHLET: {"alpha": True, "minPartitionSize": False},
    PartitionerName.SHARD: {"shardsPerPartition": True},
    PartitionerName.PATHOLOGICAL: {"classesPerPartition": True},
    PartitionerName.SIZE: {"sizes": True},
    PartitionerName.NATURAL_ID: {"column": True},
}
"""The parameters of each partitioner, True where one is required; it checks the values itself."""


class Partitioning(Document):
    """How a data set that every client can read is divided, for experiments.

    Left out where each site has its own data: then the task reads what is at the client's path.
    """

    name: PartitionerName
    """Iid, Dirichlet, Shard, Pathological, Size or NaturalId."""
    parameters: dict[str, Any] = {}
    """Dirichlet: alpha, minPartitionSize. Shard: shardsPerPartition. Pathological:
    classesPerPartition. Size: sizes. NaturalId: column."""

    @model_validator(mode="after")
    def _known_parameters(self) -> Self:
        known = PARTITIONER_PARAMETERS[self.name]
        allowed = f"for {self.name.value}: {', '.join(known) or 'no parameters'}"
        unknown = [name for name in self.parameters if name not in known]
        missing = [
            name for name, required in known.items() if required and name not in self.parameters
        ]
        _refuse(
            [
                Finding(
                    ("parameters", name),
                    f'"{name}", an unknown parameter',
                    allowed,
                    did_you_mean(name, list(known)),
                )
                for name in unknown
            ]
            + [
                Finding(("parameters",), f"no {name}", allowed, f"parameters: {{{name}: …}}")
                for name in missing
            ]
        )
        return self


class Mode(StrEnum):
    """Which direction of a metric is better."""

    MAX = "Max"
    MIN = "Min"


class TestSet(StrEnum):
    """Which data a figure was measured on."""

    HELD_OUT = "HeldOut"
    CLIENTS = "Clients"


class StopWhen(Document):
    """When to stop before all rounds are done."""

    metric: Annotated[str, Field(min_length=1, max_length=63)] = "accuracy"
    """Metric to watch, as the task names it."""
    mode: Mode = Mode.MAX
    """Max when more is better, Min when less is."""
    test_set: TestSet | None = None
    """Which test set decides: HeldOut or Clients. Default: HeldOut where there is one."""
    value: DecimalString | None = None
    """Stop once the metric is at least (Max) or at most (Min) this."""
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Stop after this many evaluations in a row without a better value."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.value is None and self.patience is None:
            _refuse(
                [
                    Finding(
                        (),
                        "neither value nor patience, so it would never stop",
                        "value, patience or both",
                        'add value: "0.95" or patience: 5, or remove stopWhen',
                    )
                ]
            )
        return self


class ClientData(Document):
    """Where a group of clients finds its data."""

    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Folder or file with the data, relative to the job file; handed to the task."""


class HeldOut(Document):
    """An evaluator client with data of its own, which no client trains on."""

    data: ClientData = ClientData()
    """Where the evaluator finds the held-out data."""


class Evaluation(Document):
    """When and on what the global model is measured. The last model always is."""

    every: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Evaluate every k-th version of the model; 0 means only the last one."""
    held_out: HeldOut | None = None
    """Adds one evaluator client that measures on held-out data."""


class Schedule(StrEnum):
    """How the learning rate changes from round to round."""

    CONSTANT = "Constant"
    STEP = "Step"
    EXPONENTIAL = "Exponential"
    COSINE = "Cosine"


class LearningRateSchedule(Document):
    """The learning rate of round r, r = 0 for the first.

    Constant: lr. Step: lr * factor^floor(r / every). Exponential: lr * factor^r.
    Cosine: lr * (floor + (1 - floor) * (1 + cos(pi r / rounds)) / 2).
    """

    name: Schedule = Schedule.CONSTANT
    """Constant, Step, Exponential or Cosine."""
    factor: Annotated[DecimalString, Field(gt=0, le=1)] = Decimal("0.5")
    """Step and Exponential: what the rate is multiplied by."""
    every: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Step: rounds between two steps."""
    floor: Annotated[DecimalString, Field(ge=0, le=1)] = Decimal("0")
    """Cosine: the share of the rate that is left at the end."""


class Training(Document):
    """What a client does in one round."""

    local_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the client's training data per round."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Examples per optimizer step."""
    learning_rate: Annotated[DecimalString, Field(gt=0, le=1000)] = Decimal("0.01")
    """Learning rate of the client's optimizer in the first round."""
    schedule: LearningRateSchedule = LearningRateSchedule()
    """How the learning rate changes from round to round."""


class StrategyName(StrEnum):
    """How updates become a new model."""

    FED_AVG = "FedAvg"


class StrategyParameters(Document):
    """Parameters of the strategy."""

    server_learning_rate: Annotated[DecimalString, Field(gt=0, le=100)] = Decimal("1")
    """FedAvg: the mean update is multiplied by this before it is added."""


class StrategySpec(Document):
    """How updates become a new model."""

    name: StrategyName = StrategyName.FED_AVG
    """FedAvg: the mean of the updates, weighted by training examples (McMahan et al. 2017)."""
    parameters: StrategyParameters = StrategyParameters()
    """Parameters of the strategy."""


class SelectionName(StrEnum):
    """How the cohort of a round is chosen."""

    RANDOM = "Random"


class OnTimeout(StrEnum):
    """What happens when a deadline passes with fewer clients than minClients."""

    PROCEED = "Proceed"
    RETRY = "Retry"
    FAIL = "Fail"


class LateUpdates(StrEnum):
    """What happens to an update that comes after its round was closed."""

    DISCARD = "Discard"
    FOLD_NEXT = "FoldNext"


class Participation(Document):
    """Who takes part in a round, and how long it waits."""

    clients_per_round: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Updates wanted per round. Default: every joined client."""
    fraction: Annotated[DecimalString, Field(gt=0, le=1)] | None = None
    """Updates wanted per round as a share of all clients; instead of clientsPerRound."""
    min_clients: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Quorum: fewer updates than this do not close a round by themselves."""
    selection: SelectionName = SelectionName.RANDOM
    """Random: uniform without replacement, a function of seed and round."""
    over_selection: Annotated[DecimalString, Field(ge=1, le=10)] = Decimal("1")
    """Ask this many times as many clients as wanted; the first wanted ones count."""
    join_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """How long the first round waits for all clients; then minClients are enough."""
    round_timeout_seconds: Annotated[int, Field(ge=1, le=604_800)] = 600
    """Deadline of a round, counted from its announcement."""
    heartbeat_seconds: Annotated[int, Field(ge=1, le=3600)] = 3
    """How often a client says that it is alive."""
    lost_after_seconds: Annotated[int, Field(ge=2, le=86_400)] = 15
    """A client that was silent for so long is lost: its round no longer waits for it."""
    on_timeout: OnTimeout = OnTimeout.RETRY
    """Below minClients at a deadline. Retry: announce the same work again, maxRetries times, then
    fail. Proceed: go on with what came (at least one update). Fail: end the job."""
    max_retries: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often in a row the same round is announced again below minClients."""
    late_updates: LateUpdates = LateUpdates.DISCARD
    """Discard: the client stops training when the round is closed. FoldNext: it finishes, and its
    update counts in the next version unless the client has an on-time one there."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        findings = []
        if self.clients_per_round is not None and self.fraction is not None:
            findings.append(
                Finding(
                    ("fraction",),
                    "both clientsPerRound and fraction",
                    "one of them",
                    "remove fraction or clientsPerRound",
                )
            )
        least = 2 * self.heartbeat_seconds
        if self.lost_after_seconds < least:
            findings.append(
                Finding(
                    ("lostAfterSeconds",),
                    str(self.lost_after_seconds),
                    f"at least twice heartbeatSeconds ({least})",
                    f"lostAfterSeconds: {least}",
                )
            )
        _refuse(findings)
        return self


class Compression(StrEnum):
    """Lossless compression of models and updates."""

    NONE = "None"
    ZSTD = "Zstd"


class Communication(Document):
    """How models and updates travel."""

    compression: Compression = Compression.NONE
    """None, or Zstd (lossless; trained float32 weights shrink by less than a tenth)."""
    max_message_bytes: Annotated[int, Field(ge=70_000, le=100_000_000)] = 900_000
    """Largest record that is written; models are cut into chunks of this size. Kafka's own
    default limit is 1048588 bytes."""


class DeletionPolicy(StrEnum):
    """What becomes of the topics that a run created."""

    DELETE = "Delete"
    RETAIN = "Retain"


class Retain(StrEnum):
    """How much of the log is kept while the job runs."""

    RESUME = "Resume"
    ALL = "All"


class Topics(Document):
    """The topics of the job."""

    model: Annotated[str, Field(min_length=1, max_length=200, pattern=TOPIC_PATTERN)] | None = None
    """Name of the topic for global models (the classic MODEL_TOPIC). Default: from the job."""
    updates: Annotated[str, Field(min_length=1, max_length=200, pattern=TOPIC_PATTERN)] | None = (
        None
    )
    """Name of the topic for updates (the classic UPDATE_TOPIC). Default: from the job."""
    replicas: Annotated[int, Field(ge=1, le=15)] = 1
    """Replication factor. With 3 or more, min.insync.replicas is 2."""
    partitions: Annotated[int, Field(ge=1, le=1000)] = 4
    """Partitions of the updates topic; a client writes to one of them."""
    retain: Retain = Retain.RESUME
    """Resume: what a restarted server or client needs; older rounds are deleted as new ones end.
    All: every round, so that the run can be replayed (`fedlog replay`)."""
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    """Delete: topics that this run created are deleted once it has ended. Retain: they stay."""

    @model_validator(mode="after")
    def _different_topics(self) -> Self:
        if self.model is not None and self.model == self.updates:
            _refuse(
                [
                    Finding(
                        ("updates",),
                        f'"{self.updates}", which is the topic for models, too',
                        "another name than model has",
                        "leave both out, and they are named after the job",
                    )
                ]
            )
        return self


class AuthenticationType(StrEnum):
    """How a process proves to Kafka who it is."""

    NONE = "None"
    TLS = "Tls"
    SCRAM_SHA_256 = "ScramSha256"
    SCRAM_SHA_512 = "ScramSha512"
    OAUTH_BEARER = "OAuthBearer"


_FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
_SCRAM = frozenset({AuthenticationType.SCRAM_SHA_256, AuthenticationType.SCRAM_SHA_512})


class Authentication(Document):
    """How processes reach a secured Kafka. A secret is never in the job: only the file with it.

    Files are read again when they change. Relative paths start from the job file's folder.
    """

    type: AuthenticationType = AuthenticationType.NONE
    """None, Tls (a client certificate), ScramSha512 or ScramSha256 (user and password), OAuthBearer
    (a token)."""
    tls: bool | None = None
    """Encrypt the connection and check the broker's certificate and name. Default: yes, but for
    type None only where caFile is given."""
    ca_file: _FilePath | None = None
    """PEM file of the authorities that sign the brokers' certificates (ca.crt of a Strimzi
    cluster). Default: the system's."""
    certificate_file: _FilePath | None = None
    """PEM file of the client's certificate and its chain (user.crt of a Strimzi user)."""
    key_file: _FilePath | None = None
    """PEM file of the certificate's private key, not encrypted (user.key). Default: it is in
    certificateFile."""
    username: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """User of ScramSha512 and ScramSha256."""
    password_file: _FilePath | None = None
    """File with the user's password (password of a Strimzi user). Default: the variable
    KAFKA_SASL_PASSWORD."""
    token_file: _FilePath | None = None
    """File with the token of OAuthBearer, which somebody else keeps fresh."""

    @model_validator(mode="after")
    def _fitting_fields(self) -> Self:
        kind = self.type
        findings = [
            Finding((field,), f"{value}", allowed, "")
            for field, value, unfit, allowed in (
                ("tls", "false", kind is AuthenticationType.TLS and self.tls is False, "true"),
                (
                    "caFile",
                    f'"{self.ca_file}" without TLS',
                    self.ca_file is not None and self.tls is False,
                    "a CA where tls is true",
                ),
                (
                    "certificateFile",
                    f'"{self.certificate_file}" without TLS',
                    self.certificate_file is not None and not self.encrypted,
                    "a certificate with type Tls, or with another type over TLS",
                ),
                (
                    "keyFile",
                    f'"{self.key_file}" without certificateFile',
                    self.key_file is not None and self.certificate_file is None,
                    "both of them",
                ),
                (
                    "username",
                    f'"{self.username}" with type {kind.value}',
                    self.username is not None and kind not in _SCRAM,
                    "a user with type ScramSha512 or ScramSha256",
                ),
                (
                    "passwordFile",
                    f'"{self.password_file}" with type {kind.value}',
                    self.password_file is not None and kind not in _SCRAM,
                    "a password with type ScramSha512 or ScramSha256",
                ),
                (
                    "tokenFile",
                    f'"{self.token_file}" with type {kind.value}',
                    self.token_file is not None and kind is not AuthenticationType.OAUTH_BEARER,
                    "a token with type OAuthBearer",
                ),
            )
            if unfit
        ]
        _refuse(findings)
        return self

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        if self.tls is None:
            return self.type is not AuthenticationType.NONE or self.ca_file is not None
        return self.tls


class Kafka(Document):
    """The log."""

    bootstrap_servers: (
        Annotated[str, Field(min_length=3, max_length=2000, pattern=SERVERS_PATTERN)] | None
    ) = None
    """`host:port[,host:port…]`. Default: BOOTSTRAP_SERVERS, else localhost:9094; `fedlog run` uses
    the embedded broker unless --broker or BOOTSTRAP_SERVERS is given."""
    authentication: Authentication = Authentication()
    """How processes prove who they are, and whether connections are encrypted."""
    topics: Topics = Topics()
    """The topics of the job."""


class ClientGroup(Document):
    """A named group of clients that are alike: a site, a kind of device."""

    name: Annotated[str, Field(min_length=1, max_length=15, pattern=LABEL_PATTERN)]
    """Name of the group; a client is `name/index`."""
    replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Number of clients in the group."""
    data: ClientData = ClientData()
    """Where the group's data is."""
    parameters: dict[str, Any] = {}
    """Parameters of the task for this group; each takes the place of the one of that name in
    spec.task.parameters. Where they make another model, see weightAdaptation."""


class Output(Document):
    """What is kept of the result."""

    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Folder for models and reports. Default: the run folder."""
    keep_best: bool = False
    """Also keep the version with the best value of stopWhen's metric (accuracy by default)."""
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Also keep every k-th version."""


class WeightAdaptation(StrEnum):
    """What happens where a client's model has other layers or shapes than the global one."""

    STRICT = "Strict"
    ADAPT = "Adapt"
    PARTIAL = "Partial"
    FRESH = "Fresh"


class FailurePolicy(Document):
    """How many crashes a run survives. What may be lost without one is `participation`'s matter."""

    max_server_restarts: Annotated[int, Field(ge=0, le=1000)] = 5
    """Crashes of the server since the last finished round after which the job fails."""
    max_client_restarts: Annotated[int, Field(ge=0, le=1000)] = 5
    """Crashes of a client since its last update after which it is not started again."""
    max_lost_clients: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Clients that may be gone for good before the job fails. Default: as many as minClients can
    do without."""


EVALUATOR_GROUP = "evaluator"
"""Group of the one client that measures on evaluation.heldOut; its id is `evaluator/0`."""
MAX_CLIENTS = 100_000
"""Training clients of one job."""


class Spec(Document):
    """What is to be learned, by whom, and how."""

    task: TaskSpec
    """What is learned."""
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    """Versions of the model to make."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Everything random follows from it: initial weights, partitions, selection, shuffling."""
    initial_model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Warm start: a .safetensors or .keras file, or a run folder, relative to the job file."""
    partitioning: Partitioning | None = None
    """How a shared data set is divided among the clients; left out where sites have their own."""
    training: Training = Training()
    """What a client does in one round."""
    strategy: StrategySpec = StrategySpec()
    """How updates become a new model."""
    participation: Participation = Participation()
    """Who takes part in a round, and how long it waits."""
    evaluation: Evaluation = Evaluation()
    """When and on what the global model is measured."""
    stop_when: StopWhen | None = None
    """When to stop before all rounds are done."""
    communication: Communication = Communication()
    """How models and updates travel."""
    kafka: Kafka = Kafka()
    """The log."""
    clients: Annotated[list[ClientGroup], Field(min_length=1, max_length=1000)]
    """Named groups of clients."""
    weight_adaptation: WeightAdaptation = WeightAdaptation.STRICT
    """Where a client's model has other layers or shapes than the global one. Strict: the client
    refuses, with a report per layer. Adapt: each of its layers has a counterpart and is padded or
    cut to size. Partial: the layers that fit are exchanged, the others stay the client's own.
    Fresh: as Adapt; layers that have no counterpart start from the client's own initial weights.
    See docs/weight-adaptation.md."""
    failure_policy: FailurePolicy = FailurePolicy()
    """How many crashes a run survives."""
    output: Output = Output()
    """What is kept of the result."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """The job fails when it has not ended after so long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse([*self._group_findings(), *self._quorum_findings(), *self._evaluation_findings()])
        return self

    def _group_findings(self) -> list[Finding]:
        findings = []
        seen: set[str] = set()
        for index, group in enumerate(self.clients):
            at = ("clients", index, "name")
            if group.name in seen:
                findings.append(
                    Finding(
                        at,
                        f'"{group.name}", which an earlier group is named already',
                        "a name that no other group has",
                        "rename it, or raise replicas of the other group",
                    )
                )
            if group.name == EVALUATOR_GROUP:
                findings.append(
                    Finding(
                        at,
                        f'"{group.name}", which is reserved for evaluation.heldOut',
                        "any other name",
                    )
                )
            seen.add(group.name)
        if self.client_count > MAX_CLIENTS:
            findings.append(
                Finding(
                    ("clients",),
                    f"{self.client_count} clients in all",
                    f"at most {MAX_CLIENTS}",
                )
            )
        return findings

    def _quorum_findings(self) -> list[Finding]:
        findings = []
        quorum = self.participation.min_clients
        clients = self.client_count
        if quorum > clients:
            by_default = (
                "" if "min_clients" in self.participation.model_fields_set else " (default)"
            )
            findings.append(
                Finding(
                    ("participation", "minClients"),
                    f"{quorum}{by_default}",
                    f"at most the number of clients ({clients})",
                    f"minClients: {clients}, or raise replicas of a group",
                )
            )
        per_round = self.participation.clients_per_round
        if per_round is not None and not quorum <= per_round <= max(quorum, clients):
            findings.append(
                Finding(
                    ("participation", "clientsPerRound"),
                    str(per_round),
                    f"from minClients ({quorum}) to the number of clients ({clients})",
                )
            )
        return findings

    def _evaluation_findings(self) -> list[Finding]:
        findings = []
        if (
            self.stop_when is not None
            and self.stop_when.test_set is TestSet.HELD_OUT
            and self.evaluation.held_out is None
        ):
            findings.append(
                Finding(
                    ("stopWhen", "testSet"),
                    "HeldOut, but evaluation.heldOut is not given",
                    "Clients, or HeldOut together with evaluation.heldOut",
                    "add evaluation: {heldOut: {}}, or use testSet: Clients",
                )
            )
        needs = {"stopWhen": self.stop_when is not None, "output.keepBest": self.output.keep_best}
        users = [name for name, needed in needs.items() if needed]
        if self.evaluation.every == 0 and users:
            findings.append(
                Finding(
                    ("evaluation", "every"),
                    f"0 together with {' and '.join(users)}, which compare versions",
                    "at least 1",
                    "every: 1",
                )
            )
        return findings

    @property
    def client_count(self) -> int:
        """All training clients; the evaluator is not one."""
        return sum(group.replicas for group in self.clients)

    @property
    def decisive_test_set(self) -> TestSet:
        """The test set whose figures decide: about stopping, the best version, the headline."""
        if self.stop_when is not None and self.stop_when.test_set is not None:
            return self.stop_when.test_set
        return TestSet.CLIENTS if self.evaluation.held_out is None else TestSet.HELD_OUT

    def parameters_of(self, group: str) -> dict[str, Any]:
        """The task's parameters for the clients of a group; the evaluator has those of the task."""
        own = next((g.parameters for g in self.clients if g.name == group), {})
        return {**self.task.parameters, **own}

    def client_ids(self) -> list[str]:
        """Every training client, `group/index`, in the order of their data partitions."""
        return [f"{group.name}/{i}" for group in self.clients for i in range(group.replicas)]


class FederatedJob(Document):
    """One federated training."""

    api_version: Literal["fedlog.dev/v1alpha1"] = API_VERSION
    """Group and version of the schema."""
    kind: Literal["FederatedJob"] = KIND
    """What the document is."""
    metadata: Metadata
    """Name and namespace."""
    spec: Spec
    """What is to be learned, by whom, and how."""
