"""Exit codes of every `fedlog` command; documented in docs/reference/exit-codes.md."""

OK = 0
"""Done. A client: it read the server's stop. A server or `run`: the job is Complete."""
FAILED = 1
"""The job ended as Failed; the reason is printed."""
USAGE = 2
"""The command line or the job file is wrong; nothing was started."""
TASK = 3
"""The task or its data cannot be used; starting again does not help."""
REPLACED = 4
"""Another process took over this client's or this server's identity."""
UNAVAILABLE = 69
"""No broker, or no word from the server, within the deadline; starting again may help."""
DENIED = 77
"""Kafka refuses the certificate, the password or a right; starting again does not help."""
INTERRUPTED = 130
"""Ctrl-C."""
TERMINATED = 143
"""SIGTERM."""
