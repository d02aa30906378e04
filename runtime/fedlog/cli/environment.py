"""The classic environment variables. A flag beats them, they beat the job file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlog.job.loading import JobFile

DEFAULT_PORT = 9094
"""`fedlog broker` listens here: server and clients look at localhost:9094 unless they are told
otherwise."""

REDUCED_EXAMPLES = 1000
"""Training examples per client that REDUCED_DATA_SIZE=1 stands for; a larger number is itself."""

_OFF = {"", "0", "false", "no", "off"}
_ON = {"1", "true", "yes", "on"}


def classic_overrides(environ: Mapping[str, str]) -> list[str]:
    """`path=value` overrides of the job for the variables that are set and not empty."""
    overrides = []
    if environ.get("USE_LIGHTWEIGHT_MODEL", "").lower() not in _OFF:
        overrides.append("spec.task.parameters.model=lightweight")
    reduced = environ.get("REDUCED_DATA_SIZE", "").lower()
    if reduced not in _OFF:
        examples = REDUCED_EXAMPLES if reduced in _ON else reduced
        overrides.append(f"spec.task.parameters.reducedDataSize={examples}")
    if topic := environ.get("MODEL_TOPIC", ""):
        overrides.append(f"spec.kafka.topics.model={json.dumps(topic)}")
    if topic := environ.get("UPDATE_TOPIC", ""):
        overrides.append(f"spec.kafka.topics.updates={json.dumps(topic)}")
    return overrides


def read_job(
    path: Path, environ: Mapping[str, str], overrides: Sequence[str], base: Path | None = None
) -> JobFile:
    """The job file under the variables and then the `--set` options; `base` for relative paths."""
    from fedlog.job.loading import load

    job_file = load(path, overrides=[*classic_overrides(environ), *overrides])
    return job_file if base is None else replace(job_file, path=base / path.name)


def broker_address(given: str | None, job_file: JobFile) -> str:
    """The flag or variable, else the job's, else the default."""
    from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS

    return given or job_file.job.spec.kafka.bootstrap_servers or DEFAULT_BOOTSTRAP_SERVERS


def quiet_tensorflow() -> None:
    """TensorFlow's start-up messages say nothing about a job: TF_CPP_MIN_LOG_LEVEL is 2 unless
    the environment says otherwise. Must come before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
