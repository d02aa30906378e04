"""Parameters of built-in tasks: an unknown name or value is an error, never ignored."""

from __future__ import annotations

from collections.abc import Sequence

from fedlog.job.spelling import did_you_mean
from fedlog.tasks.base import Parameters
from fedlog.tasks.errors import ParameterError

REDUCED_DATA_SIZE = "reducedDataSize"
"""Training examples per client, at most; see `fedlog.tasks.environment`."""


def check_known(parameters: Parameters, *known: str) -> None:
    """Raise ParameterError for a parameter that the task does not have."""
    for name in parameters:
        if name not in known:
            raise ParameterError(
                f"spec.task.parameters.{name} is unknown to this task, allowed: "
                f"{', '.join(known)}. {did_you_mean(name, known)}".rstrip(". ")
            )


def choice(parameters: Parameters, name: str, allowed: Sequence[str]) -> str:
    """The parameter's value, by default the first allowed one. Raises ParameterError."""
    value = parameters.get(name, allowed[0])
    if value not in allowed:
        raise ParameterError(
            f"spec.task.parameters.{name} is {value!r}, allowed: {', '.join(allowed)}"
        )
    return str(value)
