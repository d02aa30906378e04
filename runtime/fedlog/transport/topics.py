"""Names of a run and of its topics, and what they are created with."""

from __future__ import annotations

from dataclasses import dataclass

from fedlog.job.model import FederatedJob
from fedlog.transport.base import TopicSpec

_UID_LENGTH = 8


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


def topic_specs(job: FederatedJob, names: TopicNames) -> list[TopicSpec]:
    """What the server of a run creates."""
    return [
        TopicSpec(names.control),
        TopicSpec(names.model),
        TopicSpec(names.updates, partitions=job.spec.kafka.topics.partitions),
        TopicSpec(names.events),
        TopicSpec(names.journal, compacted=True),
    ]
