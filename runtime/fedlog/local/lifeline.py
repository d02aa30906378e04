"""Children that die with their parent, however the parent dies.

    python -m fedlog.local.lifeline PARENT_PID MODULE ARGUMENTS…

runs MODULE as `python -m MODULE` would, tied to the process that started it. The child asks for its
own end, so no code of ours runs between fork and exec (which is unsafe in a process with threads,
such as a notebook's kernel), and a parent that died before the child could ask is noticed, too.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int) -> None:
    """End this process when `parent`, which started it, ends.

    Linux: the kernel kills it. Elsewhere a thread looks once a second whether this process has been
    handed to another parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="lifeline").start()
    if os.getppid() != parent:  # it died before the request was in place
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Tie, then become MODULE."""
    _, parent, module, *arguments = sys.argv
    tie_to_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
