"""The classic environment variables that change a job; they beat the file, a flag beats them.

BOOTSTRAP_SERVERS   address of the broker, `host:port[,host:port…]`
MODEL_TOPIC         name of the topic for models
UPDATE_TOPIC        name of the topic for updates
CLIENT_ID           a name for people; who a client is, is its group and index
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from fedlog.job.errors import JobError, Problem
from fedlog.job.model import FederatedJob, Kafka

BOOTSTRAP_SERVERS: Final = "BOOTSTRAP_SERVERS"
MODEL_TOPIC: Final = "MODEL_TOPIC"
UPDATE_TOPIC: Final = "UPDATE_TOPIC"
CLIENT_ID: Final = "CLIENT_ID"
DEFAULT_BOOTSTRAP_SERVERS: Final = "localhost:9094"


def apply_environment(
    job: FederatedJob, environment: Mapping[str, str] = os.environ
) -> FederatedJob:
    """The job under the variables that are set and not empty; the broker has its default.

    Raises JobError for a value that the job does not allow.
    """
    kafka = job.spec.kafka
    topics = kafka.topics.model_dump()
    for variable, field in ((MODEL_TOPIC, "model"), (UPDATE_TOPIC, "updates")):
        if environment.get(variable):
            topics[field] = environment[variable]
    servers = environment.get(BOOTSTRAP_SERVERS) or kafka.bootstrap_servers
    try:
        changed = Kafka.model_validate(
            kafka.model_dump()
            | {"topics": topics, "bootstrap_servers": servers or DEFAULT_BOOTSTRAP_SERVERS}
        )
    except ValidationError as error:
        names = {"model": MODEL_TOPIC, "updates": UPDATE_TOPIC}
        problems = []
        for detail in error.errors(include_url=False):
            variable = names.get(str(detail["loc"][-1]), BOOTSTRAP_SERVERS)
            found = repr(detail["input"])
            problems.append(Problem("", found, detail["msg"], "", f"${variable}"))
        raise JobError(problems) from None
    return job.model_copy(update={"spec": job.spec.model_copy(update={"kafka": changed})})
