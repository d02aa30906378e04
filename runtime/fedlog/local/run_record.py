"""`run.json` of a run folder: what a run needs besides its job to go on after everything died."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedlog.local.errors import NotResumableError
from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.run_folder import RunFolder, write_atomically

_NAME = "run.json"


class RunRecord(BaseModel):
    """How the run was started. Nothing secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    run: str
    """Tells the run's topics apart: the end of their prefix."""
    base: Path
    """Folder that relative paths in the job start from; absolute."""
    broker: str | None
    """Address of the broker, or None: an embedded one that ended with the run."""
    workers: dict[str, tuple[str, ...]]
    """Worker process -> its clients."""
    broken_off: bool = False
    """result.json says why the run could not go on; it is not the server's verdict."""

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.path / _NAME, self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def read(cls, folder: RunFolder) -> Self:
        """Raises RunFolderError."""
        path = folder.path / _NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunFolderError(
                f"{path}: {error.strerror}; give the folder of a `fedlog run`, like runs/latest"
            ) from error
        except ValidationError as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error


@contextmanager
def alone_in(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder: no other process of this machine goes on with the run meanwhile.

    The kernel lets go when this process ends, however it ends. Raises NotResumableError.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotResumableError(f"{folder.path}: another process runs this run now") from error
        yield
    finally:
        os.close(handle)
