"""The environment variables that tasks obey, each read here and nowhere else.

FEDLOG_THREADS            upper bound for the threads of numerical libraries in this process
TF_CPP_MIN_LOG_LEVEL      TensorFlow's own; 2 (errors only) unless it is set
USE_LIGHTWEIGHT_MODEL     true selects a built-in task's lightweight model
REDUCED_DATA_SIZE         number of training examples per client of a built-in task
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from fedlog.tasks.errors import ParameterError

_THREADS = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
"""What libraries read when they are loaded, or, TensorFlow, when it first computes."""

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


def prepare_tensorflow() -> None:
    """Settings that TensorFlow and Keras read when they are imported; call it before that."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "FEDLOG_THREADS" in os.environ:
        count = _positive("FEDLOG_THREADS", os.environ["FEDLOG_THREADS"])
        # Once is enough, and TensorFlow refuses a bound after it has computed.
        if "tensorflow" not in sys.modules:
            limit_threads(count)


def limit_threads(count: int) -> None:
    """Let numerical libraries use at most `count` threads (>= 1) in each of their pools.

    TensorFlow reads its bound when it first computes: call this before. BLAS and OpenMP are bounded
    at once where they are loaded (numpy's are), and when they come where they are not.
    """
    for name in _THREADS:
        os.environ[name] = str(count)
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        # Imported but not used yet; afterwards TensorFlow raises RuntimeError, which tells.
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
    from threadpoolctl import threadpool_limits

    threadpool_limits(count)


def lightweight(parameters: Mapping[str, Any]) -> bool:
    """Whether the lightweight model is wanted: `model: lightweight`, or the environment."""
    if "model" in parameters:
        return bool(parameters["model"] == "lightweight")
    value = os.environ.get("USE_LIGHTWEIGHT_MODEL", "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise ParameterError(f"USE_LIGHTWEIGHT_MODEL is {value!r}, allowed is true or false")
    return value in _TRUE


def reduced_data_size(parameters: Mapping[str, Any]) -> int | None:
    """Training examples per client, at most: `reducedDataSize`, or the environment; None: all."""
    if "reducedDataSize" in parameters:
        return _positive("reducedDataSize", parameters["reducedDataSize"])
    value = os.environ.get("REDUCED_DATA_SIZE", "").strip()
    return _positive("REDUCED_DATA_SIZE", value) if value else None


def _positive(name: str, value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ParameterError(f"{name} is {value!r}, allowed is a whole number of at least 1")
    return int(text)
