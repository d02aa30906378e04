"""The classic environment variables that change a job; they beat the file, a flag beats them.

BOOTSTRAP_SERVERS       address of the broker, `host:port[,host:port…]`
MODEL_TOPIC             name of the topic for models
UPDATE_TOPIC            name of the topic for updates
CLIENT_ID               a name for people; who a client is, is its group and index
USE_LIGHTWEIGHT_MODEL   1: the task's small model
REDUCED_DATA_SIZE       1: REDUCED_EXAMPLES training examples per client; a larger number: so many

Light to import: commands name the defaults in their help.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fedlog.job.model import FederatedJob

BOOTSTRAP_SERVERS: Final = "BOOTSTRAP_SERVERS"
MODEL_TOPIC: Final = "MODEL_TOPIC"
UPDATE_TOPIC: Final = "UPDATE_TOPIC"
CLIENT_ID: Final = "CLIENT_ID"
USE_LIGHTWEIGHT_MODEL: Final = "USE_LIGHTWEIGHT_MODEL"
REDUCED_DATA_SIZE: Final = "REDUCED_DATA_SIZE"

DEFAULT_PORT: Final = 9094
"""`fedlog broker` listens here: server and clients look there unless they are told otherwise."""
DEFAULT_BOOTSTRAP_SERVERS: Final = f"localhost:{DEFAULT_PORT}"

REDUCED_EXAMPLES: Final = 1000
"""Training examples per client that REDUCED_DATA_SIZE=1 stands for; a larger number is itself."""

_OFF = {"", "0", "false", "no", "off"}
_ON = {"1", "true", "yes", "on"}


def classic_overrides(environ: Mapping[str, str]) -> list[str]:
    """`path=value` overrides of a job file for the variables that are set and not empty.

    BOOTSTRAP_SERVERS is not among them: it is where this process finds the broker.
    """
    overrides = []
    if environ.get(USE_LIGHTWEIGHT_MODEL, "").lower() not in _OFF:
        overrides.append("spec.task.parameters.model=lightweight")
    reduced = environ.get(REDUCED_DATA_SIZE, "").lower()
    if reduced not in _OFF:
        examples = REDUCED_EXAMPLES if reduced in _ON else reduced
        overrides.append(f"spec.task.parameters.reducedDataSize={examples}")
    for variable, field in ((MODEL_TOPIC, "model"), (UPDATE_TOPIC, "updates")):
        if topic := environ.get(variable, ""):
            overrides.append(f"spec.kafka.topics.{field}={json.dumps(topic)}")
    return overrides


def apply_environment(
    job: FederatedJob, environment: Mapping[str, str] = os.environ
) -> FederatedJob:
    """The job under the variables that are set and not empty; the broker has its default.

    Raises JobError for a value that the job does not allow.
    """
    from pydantic import ValidationError

    from fedlog.job.errors import JobError, Problem
    from fedlog.job.model import Kafka

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
