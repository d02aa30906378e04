"""Makes a job's first model: `python -m fedlog.tasks.initial JOB.yaml --base DIR --output FILE`.

A process of its own, because making a model may load TensorFlow, which the server never does. It
writes a safetensors file in the model's own order: the task's fresh weights for the job's seed,
or those of spec.initialModel. Ends with `exit_codes.TASK` and a message where the task or
that file cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedlog import exit_codes
from fedlog.errors import FedlogError
from fedlog.job.errors import JobError
from fedlog.job.loading import JobFile, load
from fedlog.learning.weights import Weights, size_bytes
from fedlog.tasks.base import Learner
from fedlog.tasks.errors import ModelError
from fedlog.tasks.loading import load_task
from fedlog.tasks.user_code import described
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode, encode

RUN_MODEL = "model.safetensors"
"""Name of the last model in a run folder."""
_SHOWN = 5


def initial_weights(job_file: JobFile, base: Path) -> Weights:
    """The weights of version 0. base: folder that relative paths in the job start from.

    Raises TaskError.
    """
    spec = job_file.job.spec
    task = load_task(spec.task, base=base, config_maps=job_file.config_maps)
    learner = task.model(spec.task.parameters, spec.seed)
    own = learner.weights()
    if spec.initial_model is None:
        return own
    path = (base / spec.initial_model).resolve()
    given = _read(path, learner, size_bytes(own))
    differences = _differences(own, given)
    if differences:
        more = len(differences) - _SHOWN
        raise ModelError(
            f"spec.initialModel: {path} does not fit the task's model:"
            + "".join(f"\n  - {line}" for line in differences[:_SHOWN])
            + (f"\n  - and {more} more" if more > 0 else "")
        )
    return {name: given[name] for name in own}


def write(weights: Weights, path: Path) -> None:
    """A safetensors file, put in place in one step: a reader never sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        for buffer in encode(weights):
            file.write(buffer)
    part.replace(path)


def _read(path: Path, learner: Learner, model_bytes: int) -> Weights:
    if path.is_dir():
        return _read(path / RUN_MODEL, learner, model_bytes)
    if not path.is_file():
        raise ModelError(
            f"spec.initialModel: {path} is not there; allowed is a .safetensors or .keras file, "
            f"or a run folder with {RUN_MODEL}, relative to the job file"
        )
    if path.suffix == ".keras":
        return _read_keras(path, learner)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"spec.initialModel: {path.name} ends with {path.suffix or 'nothing'}, allowed: "
            ".safetensors, .keras or a run folder"
        )
    try:
        # Twice the model: another precision is then reported as such, not as too large.
        return decode(path.read_bytes(), Limits.for_model(2 * model_bytes))
    except WireError as error:
        raise ModelError(f"spec.initialModel: {path} cannot be used: {error}") from error


def _read_keras(path: Path, learner: Learner) -> Weights:
    from fedlog.tasks.keras import KerasLearner, import_keras, named_variables

    if not isinstance(learner, KerasLearner):
        raise ModelError(
            f"spec.initialModel: {path.name} is a Keras file, and the task's model is none: "
            "give a .safetensors file"
        )
    try:
        model: Any = import_keras().models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"spec.initialModel: Keras cannot read {path}: {first}") from error
    own, found = learner.weights(), named_variables(model)
    # A file may have been made by other code that named its layers otherwise: where the number of
    # tensors is the same they are taken in their order, and shapes tell whether that was right.
    names = own if len(own) == len(found) else found
    return {name: np.array(v.numpy()) for name, v in zip(names, found.values(), strict=True)}


def _differences(expected: Weights, found: Weights) -> list[str]:
    """One line per tensor that does not fit."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is not in the task's model" for name in found if name not in expected]
    for name, array in expected.items():
        other = found.get(name)
        if other is None:
            continue
        if (array.shape, array.dtype) != (other.shape, other.dtype):
            lines.append(
                f"{name} is {other.dtype}{list(other.shape)}, the task's model has "
                f"{array.dtype}{list(array.shape)}"
            )
        elif array.dtype.kind == "f" and not np.isfinite(other).all():
            lines.append(f"{name} holds NaN or infinity")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: OK, USAGE for the job file, TASK for everything about the task."""
    parser = argparse.ArgumentParser(
        prog="python -m fedlog.tasks.initial", description="Make the first model of a job."
    )
    parser.add_argument("job", type=Path, help="the job file")
    parser.add_argument("--base", type=Path, help="folder of relative paths; default: the file's")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        job_file = load(options.job)
        write(initial_weights(job_file, options.base or job_file.base), options.output)
    except JobError as error:
        return _fail(str(error), exit_codes.USAGE)
    except FedlogError as error:
        return _fail(str(error), exit_codes.TASK)
    except Exception as error:  # noqa: BLE001  (the user's own code: anything may come)
        return _fail(f"the task failed to make its model: {described(error)}", exit_codes.TASK)
    return exit_codes.OK


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)  # noqa: T201  (a command: its output is its answer)
    return code


if __name__ == "__main__":
    sys.exit(main())
