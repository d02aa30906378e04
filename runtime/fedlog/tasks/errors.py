"""Errors of tasks: TaskError is the root.

TaskError
├── EntrypointError   the entrypoint names nothing that can be used as a task
├── ModelError        the model, or weights for it, cannot be used
├── ParameterError    a parameter of the task is unknown or out of range
└── DataError         the data is not there, or not as expected
    └── PartitionError   the data cannot be divided as the job asks
"""

from fedlog.errors import FedlogError


class TaskError(FedlogError):
    """The user's task or its data cannot be used."""


class EntrypointError(TaskError):
    """The entrypoint cannot be loaded."""


class ModelError(TaskError):
    """The model, or the weights meant for it, cannot be used."""


class ParameterError(TaskError):
    """A parameter in `spec.task.parameters` cannot be used."""


class DataError(TaskError):
    """The data of a task is missing or unusable."""


class PartitionError(DataError):
    """The data cannot be divided as the job asks."""
