"""The classic environment variables. A flag beats them, they beat the job file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

DEFAULT_BROKER = "localhost:9094"
"""Where `fedlog server` and `fedlog client` look when neither flag, variable nor job says."""

FALSE = {"", "0", "false", "no", "off"}


def classic_overrides(environ: Mapping[str, str]) -> list[str]:
    """`path=value` overrides of the job for the variables that are set and not empty."""
    overrides = []
    if environ.get("USE_LIGHTWEIGHT_MODEL", "").lower() not in FALSE:
        overrides.append("spec.task.parameters.model=lightweight")
    if reduced := environ.get("REDUCED_DATA_SIZE", ""):
        overrides.append(f"spec.task.parameters.examples={reduced}")
    if topic := environ.get("MODEL_TOPIC", ""):
        overrides.append(f"spec.kafka.topics.model={json.dumps(topic)}")
    if topic := environ.get("UPDATE_TOPIC", ""):
        overrides.append(f"spec.kafka.topics.updates={json.dumps(topic)}")
    return overrides


def quiet_tensorflow() -> None:
    """TensorFlow's start-up messages say nothing about a job: TF_CPP_MIN_LOG_LEVEL is 2 unless
    the environment says otherwise. Must come before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
