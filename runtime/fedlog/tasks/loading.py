"""From an entrypoint to a Task: an installed module, a file beside the job, or a ConfigMap.

What a user's module does wrong is said in a few lines, with the line of the user's own file.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlog.job.model import TaskSpec
from fedlog.job.spelling import did_you_mean
from fedlog.tasks.base import Task
from fedlog.tasks.environment import prepare_tensorflow
from fedlog.tasks.errors import EntrypointError, TaskError
from fedlog.tasks.user_code import described

NO_CONFIG_MAPS: Mapping[str, Mapping[str, str]] = {}
_METHODS = ("model", "data")


def load_task(
    spec: TaskSpec,
    *,
    base: Path,
    config_maps: Mapping[str, Mapping[str, str]] = NO_CONFIG_MAPS,
) -> Task:
    """The task that `spec.entrypoint` names.

    `file.py:attribute` is a path relative to `base`, the job file's folder, or to the ConfigMap
    that spec.source names; `package.module:attribute` is imported, and is looked for in `base`,
    too. config_maps: name -> file name -> content; their files are written to a private temporary
    folder that lives as long as the process. Raises EntrypointError, and TaskError where a library
    that the module needs is missing.
    """
    prepare_tensorflow()
    target, _, attribute = spec.entrypoint.rpartition(":")
    folder = base.resolve()
    if spec.source is not None:
        folder = _unpacked(spec.source.config_map, config_maps)
    if target.endswith(".py"):
        module = _import_file(folder, target, spec.entrypoint)
    else:
        module = _import_module(folder, target, spec.entrypoint)
    return _task(module, attribute, spec.entrypoint)


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Keeps ConfigMaps' folders until the process ends: a module may import its neighbours late."""


def _unpacked(name: str, config_maps: Mapping[str, Mapping[str, str]]) -> Path:
    if name not in config_maps:
        known = ", ".join(sorted(config_maps)) or "none"
        raise EntrypointError(
            f"spec.task.source.configMap is {name!r}, the job file has these ConfigMaps: {known}. "
            "Add it to the file as a document of its own, after a line with ---"
        )
    folder = tempfile.TemporaryDirectory(prefix="fedlog-task-")
    _folders.append(folder)
    path = Path(folder.name).resolve()
    for file_name, content in config_maps[name].items():
        # A key of a ConfigMap has no slash; one in a local file might.
        if Path(file_name).name != file_name or file_name in (".", ".."):
            raise EntrypointError(
                f"ConfigMap {name!r} has the key {file_name!r}, allowed is a file name"
            )
        (path / file_name).write_text(content, encoding="utf-8")
    return path


def _import_file(folder: Path, target: str, entrypoint: str) -> ModuleType:
    path = (folder / target).resolve()
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) or (
            f"Python files there: {', '.join(near[:10])}" if near else "no Python file is there"
        )
        raise EntrypointError(f"entrypoint {entrypoint!r}: no file {path}; {hint}")
    # Two jobs in one process may both have a task.py: the name tells their modules apart.
    name = f"fedlog_task_{sha256(str(path).encode()).hexdigest()[:16]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise EntrypointError(f"entrypoint {entrypoint!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    _search(path.parent)
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, TaskError) or not isinstance(error, Exception):
            raise
        raise _import_error(error, entrypoint) from error
    return module


def _import_module(folder: Path, target: str, entrypoint: str) -> ModuleType:
    _search(folder)
    try:
        return importlib.import_module(target)
    except TaskError:
        raise
    except ModuleNotFoundError as error:
        # Missing is the named module itself, or one of its parents; else it imports a missing one.
        if error.name and (target == error.name or target.startswith(f"{error.name}.")):
            raise EntrypointError(
                f"entrypoint {entrypoint!r}: there is no module {error.name!r}; "
                f"{_near_modules(error.name, folder)}"
            ) from error
        raise _import_error(error, entrypoint) from error
    except Exception as error:
        raise _import_error(error, entrypoint) from error


def _search(folder: Path) -> None:
    """Let a task import its neighbours; after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _near_modules(name: str, folder: Path) -> str:
    parent, _, _ = name.rpartition(".")
    if parent:
        package = sys.modules.get(parent)
        near = [
            f"{parent}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))
        ]
    else:
        near = [m.name for m in pkgutil.iter_modules([str(folder)])]
    where = f"in {parent}" if parent else f"beside the job file ({folder})"
    listed = ", ".join(near[:20]) or "none"
    return did_you_mean(name, near) or (
        f"modules {where}: {listed}. Install its package, or name a file: path/to/file.py:task"
    )


def _import_error(error: Exception, entrypoint: str) -> EntrypointError:
    cure = ""
    if isinstance(error, ModuleNotFoundError):
        cure = f"; install {error.name!r} where clients run, or put it beside the job file"
    return EntrypointError(
        f"entrypoint {entrypoint!r} cannot be imported: {described(error)}{cure}"
    )


def _task(module: ModuleType, attribute: str, entrypoint: str) -> Task:
    tasks = sorted(name for name, value in vars(module).items() if _is_task(value))
    if not hasattr(module, attribute):
        has = f"it has these tasks: {', '.join(tasks)}" if tasks else "it has no task"
        raise EntrypointError(
            f"entrypoint {entrypoint!r}: {module.__file__} has no {attribute!r}; {has}. "
            f"{did_you_mean(attribute, tasks) or _how_to_make_one()}"
        )
    found: Any = getattr(module, attribute)
    if not _is_task(found):
        kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        lacking = [name for name in _METHODS if not callable(getattr(found, name, None))]
        lacks = f", which lacks {' and '.join(lacking)}" if lacking else ""
        cure = (
            f"make an instance: task = {found.__name__}()"
            if isinstance(found, type) and not lacking
            else _how_to_make_one()
        )
        raise EntrypointError(
            f"entrypoint {entrypoint!r}: {attribute} is {kind}{lacks}, expected a Task; {cure}"
        )
    task: Task = found
    return task


def _is_task(value: Any) -> bool:
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in _METHODS
    )


def _how_to_make_one() -> str:
    return "a Task has model(parameters, seed) and data(partition, parameters), as KerasTask does"
