from __future__ import annotations

from typing import Any

import pytest

from fedlog.job.model import FederatedJob
from fedlog.transport.base import TopicSpec
from fedlog.transport.topics import (
    TopicNames,
    run_id,
    segment_bytes,
    topic_names,
    topic_specs,
)

MIB = 2**20


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
    small = 16 * MIB
    assert topic_specs(job(topics={"partitions": 7}), names, 100 * MIB) == [
        TopicSpec("r.control", segment_bytes=small),
        TopicSpec("r.model", segment_bytes=100 * MIB),
        TopicSpec("r.updates", partitions=7, segment_bytes=100 * MIB),
        TopicSpec("r.events", segment_bytes=small),
        TopicSpec("r.journal", compacted=True, segment_bytes=small),
    ]


@pytest.mark.parametrize(
    ("message", "payload", "expected"),
    [
        pytest.param(900_000, 1000, 16 * MIB, id="not many small ones"),
        pytest.param(900_000, 40 * MIB, 40 * MIB, id="one payload"),
        pytest.param(900_000, 4000 * MIB, 256 * MIB, id="not too large"),
        pytest.param(100 * MIB, 1000, 400 * MIB, id="several messages"),
        pytest.param(1000 * MIB, 1000, 2**31 - 1, id="what Kafka allows"),
    ],
)
def test_files_of_a_partition_hold_a_payload_and_several_messages(
    message: int, payload: int, expected: int
) -> None:
    assert segment_bytes(message, payload) == expected
