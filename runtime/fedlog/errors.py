"""The root of every error that Fedlog raises on purpose.

FedlogError
├── fedlog.job.errors        a job file that cannot be used
├── fedlog.learning.errors   weights or updates that do not fit together
├── fedlog.wire.errors       bytes that are not what they claim to be
├── fedlog.transport.errors  a broker that does not do what was asked
├── fedlog.tasks.errors      a task or its data that cannot be used
└── fedlog.local …           a run that failed

A message names what was found, what is allowed and the next step. `retriable` says whether the
same call may succeed later without anybody changing anything.
"""


class FedlogError(Exception):
    """An error with a message for the person at the keyboard; shown without a stack trace."""

    retriable: bool = False
