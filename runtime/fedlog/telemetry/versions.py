"""Which versions are at work: for `/status`, `fedlog_info`, result.json and the report."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "fedlog",
    "numpy",
    "kafka-python",
    "scikit-learn",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
)


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return (*found, ("platform", f"{platform.system()} {platform.machine()}"))


def installed_versions() -> dict[str, str]:
    """Name -> version of Python, Fedlog and the libraries that are installed; imports none."""
    return dict(_installed())
