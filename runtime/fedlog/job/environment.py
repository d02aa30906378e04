"""The classic environment variables that change a job; they beat the file, a flag beats them.

BOOTSTRAP_SERVERS       address of the broker, `host:port[,host:port…]`
MODEL_TOPIC             name of the topic for models
UPDATE_TOPIC            name of the topic for updates
CLIENT_ID               a name for people; who a client is, is its group and index
USE_LIGHTWEIGHT_MODEL   1: the task's small model
REDUCED_DATA_SIZE       1: REDUCED_EXAMPLES training examples per client; a larger number: so many

A secured Kafka, by the names that Kafka's images and clients use:

KAFKA_SECURITY_PROTOCOL       PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
KAFKA_SASL_MECHANISM          SCRAM-SHA-512, SCRAM-SHA-256 or OAUTHBEARER
KAFKA_SASL_USERNAME           user
KAFKA_SASL_PASSWORD           password; it stays in the environment and never enters the job
KAFKA_SASL_PASSWORD_FILE      file with the password
KAFKA_SASL_OAUTH_TOKEN_FILE   file with the token
KAFKA_SSL_CAFILE              PEM file of the brokers' CA
KAFKA_SSL_CERTFILE            PEM file of the client's certificate
KAFKA_SSL_KEYFILE             PEM file of its key

Light to import: commands name the defaults in their help.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fedlog.job.model import FederatedJob

BOOTSTRAP_SERVERS: Final = "BOOTSTRAP_SERVERS"
MODEL_TOPIC: Final = "MODEL_TOPIC"
UPDATE_TOPIC: Final = "UPDATE_TOPIC"
CLIENT_ID: Final = "CLIENT_ID"
USE_LIGHTWEIGHT_MODEL: Final = "USE_LIGHTWEIGHT_MODEL"
REDUCED_DATA_SIZE: Final = "REDUCED_DATA_SIZE"

KAFKA_SECURITY_PROTOCOL: Final = "KAFKA_SECURITY_PROTOCOL"
KAFKA_SASL_MECHANISM: Final = "KAFKA_SASL_MECHANISM"
KAFKA_SASL_USERNAME: Final = "KAFKA_SASL_USERNAME"
KAFKA_SASL_PASSWORD: Final = "KAFKA_SASL_PASSWORD"  # noqa: S105 - the variable's name
KAFKA_SASL_PASSWORD_FILE: Final = "KAFKA_SASL_PASSWORD_FILE"  # noqa: S105 - the variable's name
KAFKA_SASL_OAUTH_TOKEN_FILE: Final = "KAFKA_SASL_OAUTH_TOKEN_FILE"  # noqa: S105 - a name, too
KAFKA_SSL_CAFILE: Final = "KAFKA_SSL_CAFILE"
KAFKA_SSL_CERTFILE: Final = "KAFKA_SSL_CERTFILE"
KAFKA_SSL_KEYFILE: Final = "KAFKA_SSL_KEYFILE"

_AUTHENTICATION_FILES = {
    "passwordFile": KAFKA_SASL_PASSWORD_FILE,
    "tokenFile": KAFKA_SASL_OAUTH_TOKEN_FILE,
    "caFile": KAFKA_SSL_CAFILE,
    "certificateFile": KAFKA_SSL_CERTFILE,
    "keyFile": KAFKA_SSL_KEYFILE,
}
AUTHENTICATION_VARIABLES: Final = frozenset(
    {
        KAFKA_SECURITY_PROTOCOL,
        KAFKA_SASL_MECHANISM,
        KAFKA_SASL_USERNAME,
        *_AUTHENTICATION_FILES.values(),
    }
)
"""Variables that change spec.kafka.authentication."""

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = {
    "SCRAM-SHA-512": "ScramSha512",
    "SCRAM-SHA-256": "ScramSha256",
    "OAUTHBEARER": "OAuthBearer",
}
"""Kafka's names of what the job's `type` names."""

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
    if environ.get(KAFKA_SECURITY_PROTOCOL, "").upper() == "PLAINTEXT":
        overrides.append("spec.kafka.authentication={}")
    overrides += [
        f"spec.kafka.authentication.{field}={json.dumps(value)}"
        for field, value in authentication_fields(environ).items()
    ]
    return overrides


def authentication_fields(environ: Mapping[str, str]) -> dict[str, Any]:
    """Fields of spec.kafka.authentication under the variables that are set and not empty.

    What is not said follows from the rest: a user alone means ScramSha512, a certificate Tls, a
    token OAuthBearer. PLAINTEXT stands for no authentication at all, whatever else is set. Paths
    become absolute: they start from the current folder. Raises JobError for an unknown name.
    """
    protocol = _known(environ, KAFKA_SECURITY_PROTOCOL, PROTOCOLS)
    mechanism = _known(environ, KAFKA_SASL_MECHANISM, tuple(MECHANISMS))
    if protocol == "PLAINTEXT":
        return {"type": "None", "tls": False}
    fields: dict[str, Any] = {
        field: str(Path(environ[variable]).absolute())
        for field, variable in _AUTHENTICATION_FILES.items()
        if environ.get(variable)
    }
    if user := environ.get(KAFKA_SASL_USERNAME):
        fields["username"] = user
    if protocol:
        fields["tls"] = protocol.endswith("SSL")
    if protocol != "SSL" and mechanism:
        fields["type"] = MECHANISMS[mechanism]
    elif protocol != "SSL" and "tokenFile" in fields:
        fields["type"] = "OAuthBearer"
    elif protocol.startswith("SASL") or "username" in fields:
        fields["type"] = "ScramSha512"
    elif "certificateFile" in fields:
        fields["type"] = "Tls"
    return fields


def _known(environ: Mapping[str, str], variable: str, allowed: tuple[str, ...]) -> str:
    from fedlog.job.errors import JobError, Problem

    found = environ.get(variable, "").upper()
    if found and found not in allowed:
        raise JobError([Problem("", f'"{found}"', ", ".join(allowed), "", f"${variable}")])
    return found


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
    fields = authentication_fields(environment)
    plain = environment.get(KAFKA_SECURITY_PROTOCOL, "").upper() == "PLAINTEXT"
    authentication = {} if plain else kafka.authentication.model_dump(by_alias=True)
    try:
        changed = Kafka.model_validate(
            kafka.model_dump(exclude={"authentication"})
            | {
                "topics": topics,
                "bootstrap_servers": servers or DEFAULT_BOOTSTRAP_SERVERS,
                "authentication": authentication | fields,
            }
        )
    except ValidationError as error:
        names = {
            "model": MODEL_TOPIC,
            "updates": UPDATE_TOPIC,
            "authentication": KAFKA_SECURITY_PROTOCOL,
        }
        problems = []
        for detail in error.errors(include_url=False):
            variable = names.get(str(detail["loc"][-1]), BOOTSTRAP_SERVERS)
            found = repr(detail["input"])
            problems.append(Problem("", found, detail["msg"], "", f"${variable}"))
        raise JobError(problems) from None
    return job.model_copy(update={"spec": job.spec.model_copy(update={"kafka": changed})})
