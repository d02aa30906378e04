"""Names of a run and of its topics, and what they are created with."""

from __future__ import annotations

from dataclasses import dataclass

from fedlog.job.model import FederatedJob
from fedlog.transport.base import TopicSpec

_UID_LENGTH = 8
_SMALLEST_SEGMENT = 16 * 2**20
_LARGEST_SEGMENT = 256 * 2**20
_MOST_BYTES = 2**31 - 1  # segment.bytes is a signed 32-bit number


@dataclass(frozen=True)
class TopicNames:
    """The topics of one run; `log.md` of the design says who writes what to which."""

    control: str
    model: str
    updates: str
    events: str
    journal: str


def run_id(job: FederatedJob, run: str | None) -> str:
    """`fedlog.<namespace>.<name>.<uid8>`: the run's name in records, topics and transactions.

    uid8 is the start of `run`, else of the job's uid, else "manual".
    """
    uid = (run or job.metadata.uid or "manual")[:_UID_LENGTH]
    return f"fedlog.{job.metadata.namespace}.{job.metadata.name}.{uid}"


def topic_names(job: FederatedJob, run_id: str) -> TopicNames:
    """The run's topics; the job may give its own names to those for models and updates."""
    topics = job.spec.kafka.topics
    return TopicNames(
        control=f"{run_id}.control",
        model=topics.model or f"{run_id}.model",
        updates=topics.updates or f"{run_id}.updates",
        events=f"{run_id}.events",
        journal=f"{run_id}.journal",
    )


def topic_specs(
    job: FederatedJob, names: TopicNames, model_bytes: int | None = None
) -> list[TopicSpec]:
    """What the server of a run creates; without the model's size, bulk has small segments, too."""
    limit = job.spec.communication.max_message_bytes
    small = segment_bytes(limit)
    bulk = segment_bytes(limit, model_bytes or 0)
    return [
        TopicSpec(names.control, segment_bytes=small),
        TopicSpec(names.model, segment_bytes=bulk),
        TopicSpec(names.updates, partitions=job.spec.kafka.topics.partitions, segment_bytes=bulk),
        TopicSpec(names.events, segment_bytes=small),
        TopicSpec(names.journal, compacted=True, segment_bytes=small),
    ]


def segment_bytes(max_message_bytes: int, payload_bytes: int = 0) -> int:
    """How large the files of a partition are: one payload, in bounds, and several messages.

    Smaller ones would be many; in larger ones what was trimmed lies on the disk for longer.
    """
    wanted = max(_SMALLEST_SEGMENT, min(payload_bytes, _LARGEST_SEGMENT))
    return min(max(wanted, 4 * max_message_bytes), _MOST_BYTES)
