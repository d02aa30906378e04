"""Errors of the server.

ServerError
├── InitialModelError  the first model could not be made
├── ReplayError        there is nothing to replay, or not the round that was asked for
└── TerminatedError    SIGTERM or SIGINT: no verdict
"""

from fedlog.errors import FedlogError


class ServerError(FedlogError):
    """The server cannot go on."""


class InitialModelError(ServerError):
    """The task could not make the first model."""


class ReplayError(ServerError):
    """The log does not have what is to be replayed."""


class TerminatedError(ServerError):
    """Somebody asked the process to end; the run is not over by that.

    exit_code: TERMINATED or INTERRUPTED of `fedlog.exit_codes`.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
