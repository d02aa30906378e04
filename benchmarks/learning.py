"""The `make run` job as a federation beside the same training as a plain loop in one process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.learning_loop import DEFAULT_JOB

THREADS = 2
ROOT = Path(__file__).parents[1]
_PLAIN = f"""
from fedlog.tasks.environment import limit_threads
limit_threads({THREADS})
from benchmarks.learning_loop import DEFAULT_JOB, load, plain_loop
print(plain_loop(load(DEFAULT_JOB))["total_s"])
"""


def measure() -> dict[str, float]:
    """learning_loop_ratio: the federation's rounds through the loop's, process start left out.

    learning_first_round_s: from the command's start to the end of its first round.
    """
    plain = subprocess.run(
        [sys.executable, "-c", _PLAIN], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    loop_s = float(plain.stdout.split()[-1])
    with tempfile.TemporaryDirectory(prefix="fedlog-bench-") as runs:
        command = [sys.executable, "-m", "fedlog", "run", str(DEFAULT_JOB), "--runs", runs, "-q"]
        began = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        first_s = 0.0
        try:
            while run.poll() is None:
                if not first_s and any('"round":1,' in line for line in _reports(runs)):
                    first_s = time.monotonic() - began
                time.sleep(0.05)
        finally:
            if run.poll() is None:
                run.terminate()
                run.wait()
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}")
        reports = {each["round"]: each for each in map(json.loads, _reports(runs))}
    seconds = sum(each["seconds"] for number, each in reports.items() if number > 0)
    return {
        "learning_s": seconds,
        "learning_loop_s": loop_s,
        "learning_loop_ratio": seconds / loop_s,
        "learning_first_round_s": first_s,
    }


def _reports(runs: str) -> list[str]:
    return [
        line
        for path in Path(runs).glob("**/metrics.jsonl")
        for line in path.read_text().replace(": ", ":").replace(", ", ",").splitlines()
    ]


if __name__ == "__main__":
    print(measure())
