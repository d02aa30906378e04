"""From an error to what the person sees and to the exit code of the command."""

from __future__ import annotations

import sys

from fedlog import exit_codes
from fedlog.errors import FedlogError


def exit_code(error: FedlogError) -> int:
    """The code that docs/reference/exit-codes.md gives for this kind of error."""
    from fedlog.job.errors import JobError
    from fedlog.local.errors import LocalError
    from fedlog.server.errors import InitialModelError, TerminatedError
    from fedlog.tasks.errors import TaskError
    from fedlog.telemetry.errors import RunFolderError
    from fedlog.transport.errors import (
        BrokerUnavailableError,
        FencedError,
        SecurityError,
        UnknownTopicError,
    )

    match error:
        case LocalError():
            return error.exit_code
        case JobError() | RunFolderError():
            return exit_codes.USAGE
        case TaskError() | InitialModelError():
            return exit_codes.TASK
        case TerminatedError() | SecurityError():
            return error.exit_code
        case FencedError():
            return exit_codes.REPLACED
        case BrokerUnavailableError() | UnknownTopicError():
            return exit_codes.UNAVAILABLE
        case _:
            return exit_codes.FAILED


def report(message: str) -> None:
    """`error: …` on stderr, the word in red where that is a terminal."""
    word = "\x1b[1;31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    sys.stderr.write(f"{word} {message}\n")
