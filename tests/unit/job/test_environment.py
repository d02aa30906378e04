from __future__ import annotations

import pytest

from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS, apply_environment
from fedlog.job.errors import JobError
from fedlog.job.model import FederatedJob


def job(**kafka: object) -> FederatedJob:
    return FederatedJob.model_validate(
        {
            "metadata": {"name": "digits"},
            "spec": {
                "task": {"entrypoint": "fedlog.tasks.digits:task"},
                "rounds": 1,
                "clients": [{"name": "site", "replicas": 2}],
                "kafka": kafka,
            },
        }
    )


def test_the_variables_beat_the_file() -> None:
    environment = {
        "BOOTSTRAP_SERVERS": "broker:9092",
        "MODEL_TOPIC": "models",
        "UPDATE_TOPIC": "updates",
    }
    given = job(bootstrapServers="other:1", topics={"model": "m", "replicas": 3})
    kafka = apply_environment(given, environment).spec.kafka
    assert kafka.bootstrap_servers == "broker:9092"
    assert (kafka.topics.model, kafka.topics.updates) == ("models", "updates")
    assert kafka.topics.replicas == 3


def test_empty_variables_change_nothing() -> None:
    given = job(bootstrapServers="other:1")
    assert apply_environment(given, {"BOOTSTRAP_SERVERS": "", "MODEL_TOPIC": ""}) == given


def test_without_any_word_the_broker_is_the_classic_one() -> None:
    assert apply_environment(job(), {}).spec.kafka.bootstrap_servers == DEFAULT_BOOTSTRAP_SERVERS


def test_a_topic_name_that_kafka_does_not_allow_is_named_with_its_variable() -> None:
    with pytest.raises(JobError, match=r"\$MODEL_TOPIC") as caught:
        apply_environment(job(), {"MODEL_TOPIC": "my models"})
    assert "my models" in str(caught.value)
