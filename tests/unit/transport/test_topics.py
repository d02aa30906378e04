from __future__ import annotations

from typing import Any

from fedlog.job.model import FederatedJob
from fedlog.transport.base import TopicSpec
from fedlog.transport.topics import TopicNames, run_id, topic_names, topic_specs


def job(*, uid: str | None = None, topics: dict[str, Any] | None = None) -> FederatedJob:
    return FederatedJob.model_validate(
        {
            "apiVersion": "fedlog.dev/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "digits", "namespace": "lab", "uid": uid},
            "spec": {
                "task": {"entrypoint": "fedlog.tasks.digits:task"},
                "rounds": 1,
                "participation": {"minClients": 1},
                "clients": [{"name": "a", "replicas": 2}],
                "kafka": {"topics": topics or {}},
            },
        }
    )


def test_a_run_is_named_by_its_own_id_else_the_jobs_uid_else_manual() -> None:
    uid = "0a1b2c3d-9999-4444-8888-123456789abc"
    assert run_id(job(uid=uid), "20261124-1234") == "fedlog.lab.digits.20261124"
    assert run_id(job(uid=uid), None) == "fedlog.lab.digits.0a1b2c3d"
    assert run_id(job(), None) == "fedlog.lab.digits.manual"


def test_topics_carry_the_run_and_the_classic_names_stay_settable() -> None:
    assert topic_names(job(), "r") == TopicNames(
        "r.control", "r.model", "r.updates", "r.events", "r.journal"
    )
    classic = job(topics={"model": "model_topic", "updates": "update_topic"})
    assert topic_names(classic, "r") == TopicNames(
        "r.control", "model_topic", "update_topic", "r.events", "r.journal"
    )


def test_the_journal_is_compacted_and_updates_have_the_jobs_partitions() -> None:
    names = topic_names(job(), "r")
    assert topic_specs(job(topics={"partitions": 7}), names) == [
        TopicSpec("r.control"),
        TopicSpec("r.model"),
        TopicSpec("r.updates", partitions=7),
        TopicSpec("r.events"),
        TopicSpec("r.journal", compacted=True),
    ]
