"""Child processes of a run: started with their output in a file, told apart by name, and ended.

Each child leads a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone
(which then ends its children in order), and so that a child's own children end with it. A child
dies with this process, however that dies (`fedlog.local.lifeline`). Children are plain
subprocesses, never forks of this process or `multiprocessing`: a notebook's kernel or a script
without a main guard can start them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedlog.local.out_of_memory import kernel_kills

_TAIL_BYTES = 16_384


class Child:
    """One running or ended process."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Start ``python -m MODULE ARGUMENTS`` with this interpreter; output goes to `log`.

        environment: all of the child's, nothing is inherited besides. What a former process of
        this name wrote stays in the log, above a line.
        """
        self.name = name
        self.log = log
        self._swept = False
        self._kernel_kills = kernel_kills()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            if output.tell():
                output.write(f"---- {name} is started again, {time.ctime()} ----\n".encode())
            self._begins_at = output.tell()
            output.flush()
            self.process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [
                    sys.executable,
                    "-m",
                    "fedlog.local.lifeline",
                    str(os.getpid()),
                    module,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it.

        What it started itself is ended once it has ended.
        """
        code = self.process.poll()
        if code is not None and not self._swept:
            # At once and only once: later the number may be that of somebody else's group.
            self._swept = True
            self.signal_group(signal.SIGKILL)
        return code

    def tail(self, lines: int = 12) -> str:
        """The last lines of its own output."""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self._begins_at, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def cause(self) -> str:
        """How it ended, in a few words: `SIGKILL`, `exit code 1`."""
        code = self.exit_code
        if code is None:
            return "running"
        if code >= 0:
            return f"exit code {code}"
        if code != -signal.SIGKILL:
            return signal.Signals(-code).name
        after = kernel_kills()
        if after is not None and self._kernel_kills is not None and after > self._kernel_kills:
            return "SIGKILL; the kernel ended a process for want of memory meanwhile"
        return "SIGKILL"

    def obituary(self) -> str:
        """How it ended, for people: exit code or signal, its last lines."""
        code = self.exit_code
        if code is None:
            return f"{self.name} is running"
        if code < 0:
            how = f"was {'killed' if code == -signal.SIGKILL else 'ended'} ({self.cause()})"
        else:
            how = f"ended with exit code {code}"
        tail = self.tail()
        words = (
            f"its last lines ({self.log}):\n{tail}" if tail else f"it wrote nothing ({self.log})"
        )
        return f"{self.name} {how}; {words}"

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and everything that it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # the whole group is gone already
        except PermissionError:
            # macOS says this of a group whose only member has ended but is not yet waited for.
            self.process.send_signal(number)


def wait_all(children: Iterable[Child], timeout_s: float) -> bool:
    """Whether all of them ended within the time."""
    deadline = time.monotonic() + timeout_s
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
    return True


def end_all(children: Sequence[Child], grace_s: float = 5.0) -> None:
    """End every child that still runs: SIGTERM, `grace_s`, then SIGKILL to its whole group.

    A second Ctrl-C skips the grace; no child is left behind either way.
    """
    try:
        for child in children:
            if child.exit_code is None:
                child.signal_group(signal.SIGTERM)
        wait_all(children, grace_s)
    finally:
        for child in children:
            if child.exit_code is None:
                child.signal_group(signal.SIGKILL)
        for child in children:
            child.process.wait()
