"""Data files inside installed packages, found without importing the package: that takes seconds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedlog.tasks.errors import DataError


def package_file(package: str, relative: str, install: str) -> Path:
    """Path of a file in an installed package. Raises DataError; `install` is the cure."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder, relative)
        if path.is_file():
            return path
    where = f"{folders[0]}/{relative}" if folders else "which is not installed"
    raise DataError(f"data of the package {package} not found ({where}): {install}")
