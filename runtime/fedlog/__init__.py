"""Federated learning whose only moving part between a server and its clients is a durable log.

The public API is the list in ``__all__``; everything in it is loaded when it is first used, so
that ``import fedlog`` costs nothing and never loads TensorFlow, scikit-learn or Kafka's client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlog.client import FederatedClient
    from fedlog.job.loading import load as load_job
    from fedlog.job.model import FederatedJob
    from fedlog.local.run import resume, run
    from fedlog.server import FederatedServer
    from fedlog.tasks.base import Task
    from fedlog.tasks.keras import KerasTask
    from fedlog.tasks.sklearn import SklearnTask
    from fedlog.telemetry.result import Result

    __version__: str

_HOME = {
    "FederatedClient": ("fedlog.client", "FederatedClient"),
    "FederatedJob": ("fedlog.job.model", "FederatedJob"),
    "FederatedServer": ("fedlog.server", "FederatedServer"),
    "KerasTask": ("fedlog.tasks.keras", "KerasTask"),
    "Result": ("fedlog.telemetry.result", "Result"),
    "SklearnTask": ("fedlog.tasks.sklearn", "SklearnTask"),
    "Task": ("fedlog.tasks.base", "Task"),
    "load_job": ("fedlog.job.loading", "load"),
    "resume": ("fedlog.local.run", "resume"),
    "run": ("fedlog.local.run", "run"),
}

__all__ = [
    "FederatedClient",
    "FederatedJob",
    "FederatedServer",
    "KerasTask",
    "Result",
    "SklearnTask",
    "Task",
    "__version__",
    "load_job",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fedlog")
    elif name in _HOME:
        module, attribute = _HOME[name]
        value = getattr(importlib.import_module(module), attribute)
    else:
        raise AttributeError(f"module 'fedlog' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
