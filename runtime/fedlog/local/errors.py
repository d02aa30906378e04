"""Errors of a run on one machine: LocalError is the root.

LocalError
├── NotEnoughMemoryError   the embedded broker would not fit into memory
├── NotResumableError      the log of the run is gone, or somebody is at work with it
├── ProcessDiedError       the server, or so many clients that no quorum is left, ended by itself
└── TaskProcessError       the task's first model could not be made, or its last one saved
"""

from fedlog import exit_codes
from fedlog.errors import FedlogError


class LocalError(FedlogError):
    """A run on this machine could not start or go on.

    exit_code: what the command ends with.
    """

    exit_code = exit_codes.FAILED


class NotEnoughMemoryError(LocalError):
    """What the run would hold at once does not fit; nothing was started."""


class NotResumableError(LocalError):
    """A run cannot go on, from here and now."""

    exit_code = exit_codes.USAGE


class ProcessDiedError(LocalError):
    """A process without which the run cannot go on has ended."""

    def __init__(self, message: str, exit_code: int = exit_codes.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TaskProcessError(LocalError):
    """A short-lived process that loads the task failed; its last lines are in the message."""

    exit_code = exit_codes.TASK
