"""What `fedlog init` writes runs at once, and learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHIN_S = 200.0


@pytest.mark.parametrize("template", ["sklearn", "keras"])
def test_a_new_job_runs_as_it_is(template: str, tmp_path: Path) -> None:
    def fedlog(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fedlog", *arguments],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "BOOTSTRAP_SERVERS"},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    written = fedlog("init", "new", "--template", template)
    assert written.returncode == 0, written.stderr
    command = written.stdout.splitlines()[-1].removeprefix("next: fedlog ")

    # Its ten rounds reach 0.87; half of them are enough to see that it learns.
    done = fedlog(*command.split(), "--set", "rounds=5")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert (result["outcome"], result["rounds"]) == ("Complete", 5)
    assert result["metrics"]["HeldOut"]["accuracy"] >= 0.8
