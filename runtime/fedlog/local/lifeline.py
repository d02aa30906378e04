"""Children that die with their parent, however the parent dies.

The parent names itself in the child's environment; the child asks for its own end. So no code of
ours runs between fork and exec (which is unsafe in a process with threads, such as a notebook's
kernel), and a parent that died before the child could ask is noticed, too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "FEDLOG_PARENT_PID"

_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """End this process when the one named in FEDLOG_PARENT_PID ends; without it, do nothing.

    Linux: the kernel kills. Elsewhere a thread looks once a second whether this process has been
    handed to another parent.
    """
    # Removed, so that the children of a child are not tied to their grandparent.
    text = os.environ.pop(PARENT_VARIABLE, "")
    if not text.isdecimal():
        return
    parent = int(text)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="lifeline").start()
    if os.getppid() != parent:  # it died before the request was in place
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
