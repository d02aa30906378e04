"""How flags, the classic environment variables and the job file go together for a command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS, classic_overrides

if TYPE_CHECKING:
    from fedlog.job.loading import JobFile


def read_job(
    path: Path, environ: Mapping[str, str], overrides: Sequence[str], base: Path | None = None
) -> JobFile:
    """The job file under the variables and then the `--set` options; `base` for relative paths."""
    from fedlog.job.loading import load

    job_file = load(path, overrides=[*classic_overrides(environ), *overrides])
    return job_file if base is None else replace(job_file, path=base / path.name)


def broker_address(given: str | None, job_file: JobFile) -> str:
    """The flag or variable, else the job's, else the default."""
    return given or job_file.job.spec.kafka.bootstrap_servers or DEFAULT_BOOTSTRAP_SERVERS


def quiet_tensorflow() -> None:
    """TensorFlow's start-up messages say nothing about a job: TF_CPP_MIN_LOG_LEVEL is 2 unless
    the environment says otherwise. Must come before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
