"""How long a person waits before anything happens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TRIES = 5


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def measure() -> dict[str, float]:
    """import_s: `import fedlog` over an empty interpreter."""
    empty = statistics.median(_seconds("pass") for _ in range(TRIES))
    imported = statistics.median(_seconds("import fedlog") for _ in range(TRIES))
    return {"import_s": imported - empty}


if __name__ == "__main__":
    print(measure())
