"""The last model in its library's own format; run as a short-lived process, which loads the task.

    python -m fedlog.local.saving JOB.yaml --base DIR --model model.safetensors --output model.keras

Writes nothing where the task has no `save`, or chooses not to write.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from fedlog import exit_codes
from fedlog.errors import FedlogError
from fedlog.job.loading import load
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode


def save_model(job: Path, base: Path, model: Path, output: Path) -> None:
    """Let the job's task write the weights of `model` to `output`. Raises FedlogError."""
    from fedlog.tasks.loading import load_task

    job_file = replace(load(job), path=base / job.name)
    spec = job_file.job.spec.task
    task = load_task(spec, base=job_file.base, config_maps=job_file.config_maps)
    save = getattr(task, "save", None)
    if save is not None:
        content = model.read_bytes()
        weights = decode(content, Limits.for_model(len(content)))
        save(weights, spec.parameters, str(output))


def main() -> int:
    """Exit code of the process."""
    parser = argparse.ArgumentParser(prog="fedlog.local.saving")
    parser.add_argument("job", type=Path)
    for name in ("base", "model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        save_model(**vars(arguments))
    except FedlogError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_codes.TASK
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
