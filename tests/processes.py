"""Waiting for processes in tests: deadlines and polling, never a sleep that hopes."""

import time
from collections.abc import Callable

import psutil


def until(condition: Callable[[], bool], what: str = "it", within_s: float = 60.0) -> None:
    """Poll until the condition holds; fail when it does not within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s:g} s"
        time.sleep(0.02)


def gone(process: int | psutil.Process) -> bool:
    """Whether the process has ended (a zombie has; a new process with its number is another)."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
