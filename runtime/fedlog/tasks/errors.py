"""Errors of tasks: TaskError is the root.

TaskError
├── EntrypointError   the entrypoint names nothing that can be used as a task
└── DataError         the data is not there, or not as expected
"""

from fedlog.errors import FedlogError


class TaskError(FedlogError):
    """The user's task or its data cannot be used."""


class EntrypointError(TaskError):
    """The entrypoint cannot be loaded."""


class DataError(TaskError):
    """The data of a task is missing or unusable."""
