"""The run folder: everything that a run leaves behind, and how it is written.

    runs/<job>-<YYYYmmdd-HHMMSS>/      local time; `runs/latest` points to the newest one
      job.yaml                         the job as resolved: defaults filled in, overrides applied
      run.json                         what `fedlog run --resume` needs besides
      logs/                            one file per process
      metrics.jsonl                    one RoundReport a line
      result.json                      the Result; written once, when the run is over
      model.safetensors, model.keras   the last version
      log.sqlite                       the log, with topics.retain: All
      checkpoints/                     versions that output.keepBest or output.checkpointEvery keep
      report.html                      the report

The figures of version r come in while round r + 1 trains, so a round's line is written when it is
complete: once the next round is over, or the run is. What is still missing then is written as a
second line of the same round; a reader takes the last line of a round (`read_metrics` does).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from pydantic import ValidationError

from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.result import RESULT_FILE, Result
from fedlog.telemetry.status import RoundReport

LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of one run are."""

    path: Path

    @classmethod
    def create(cls, base: Path, job_name: str, *, now: time.struct_time | None = None) -> Self:
        """A new folder under `base`, with `base`/latest pointing to it.

        Two runs that start in the same second get two folders. `now` is local time.
        Raises RunFolderError where nothing can be created.
        """
        if not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*", job_name):
            raise RunFolderError(f"{job_name!r} cannot be part of a folder's name")
        name = f"{job_name}-{time.strftime('%Y%m%d-%H%M%S', now or time.localtime())}"
        try:
            base.mkdir(parents=True, exist_ok=True)
            path = _make_new(base, name)
            folder = cls(path)
            folder.logs.mkdir()
            folder.checkpoints.mkdir()
            _point_latest(base, path.name)
        except OSError as error:
            raise RunFolderError(
                f"no run folder can be created in {base}: {error.strerror or error}"
            ) from error
        return folder

    @property
    def job(self) -> Path:
        """The job as resolved."""
        return self.path / "job.yaml"

    @property
    def logs(self) -> Path:
        """Folder with one log file per process."""
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        """Round reports, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """What the run came to."""
        return self.path / RESULT_FILE

    @property
    def model(self) -> Path:
        """The last version, safetensors."""
        return self.path / "model.safetensors"

    @property
    def keras_model(self) -> Path:
        """The last version as a Keras model, for Keras tasks."""
        return self.path / "model.keras"

    @property
    def checkpoints(self) -> Path:
        """Folder with the versions that were kept."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The run's log (`fedlog.transport.archive`), where topics.retain is All."""
        return self.path / "log.sqlite"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def checkpoint(self, version: int) -> Path:
        """File of one kept version; the names sort by version."""
        return self.checkpoints / f"version-{version:06d}.safetensors"

    @property
    def best_model(self) -> Path:
        """The version with the best value, where output.keepBest asks for it."""
        return self.checkpoints / "best.safetensors"

    def clear(self) -> None:
        """Make the folder where there is none; remove what a former run left in it, but its logs
        and its job, which is written anew. Files of other names stay. Raises RunFolderError.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            kept = [self.best_model]
            kept += self.checkpoints.glob("version-*.safetensors")
            for path in (
                *(self.metrics, self.result, self.report, self.model, self.keras_model, self.log),
                *kept,
            ):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be made ready for a run: {error.strerror or error}"
            ) from error

    def resume(self) -> None:
        """Make the folder ready for the rest of a run. What the log does not have stays; the
        metrics are written again from it. Raises RunFolderError.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.metrics.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be made ready for a run: {error.strerror or error}"
            ) from error

    def write_job(self, text: str) -> None:
        """The job as resolved, YAML."""
        write_atomically(self.job, text.encode())

    def write_result(self, result: Result) -> None:
        """What the run came to. Readers see all of it or nothing."""
        write_atomically(self.result, result.model_dump_json(indent=2).encode() + b"\n")


class MetricsFile:
    """Appends round reports to a metrics.jsonl as they become complete.

    `put` takes a report as often as it is known better; a line is written, and flushed, once a
    later round is put, or at `close`. A resumed run appends to the file that is there.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab")
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write(b"\n")  # the last line of a killed process; readers skip it
        self._pending: dict[int, RoundReport] = {}

    def put(self, report: RoundReport) -> None:
        """A round is over, or more is known about it."""
        for number in sorted(self._pending):
            if number < report.round:
                self._write(self._pending.pop(number))
        if self._pending and report.round < max(self._pending):
            self._write(report)  # late news of a round whose line is written
        else:
            self._pending[report.round] = report

    def close(self) -> None:
        """Write what is still held. Nothing can be put after it."""
        if self._file.closed:
            return
        for number in sorted(self._pending):
            self._write(self._pending[number])
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, report: RoundReport) -> None:
        self._file.write(report.model_dump_json().encode() + b"\n")
        self._file.flush()


def read_metrics(path: Path) -> list[RoundReport]:
    """The reports of a metrics.jsonl, one per round, by round.

    No file means no rounds. A line that a killed process cut short is skipped.
    Raises RunFolderError where the file cannot be read or holds no reports at all.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
    reports: dict[int, RoundReport] = {}
    for line in lines:
        with suppress(ValidationError):
            report = RoundReport.model_validate_json(line)
            reports[report.round] = report
    if len(lines) > 1 and not reports:
        raise RunFolderError(f"{path} holds {len(lines)} lines, and none is a round's report")
    return [reports[number] for number in sorted(reports)]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is complete; on an error `path` stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would hide results from the other users of a volume
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Readers of `path` see the old content or the new one, never a part."""
    with replacing(path) as file:
        file.write(content)


def _make_new(base: Path, name: str) -> Path:
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        path = base / f"{name}{suffix}"
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise FileExistsError(f"{name} and 98 others exist")


def _point_latest(base: Path, name: str) -> None:
    """`latest` as a relative link, replaced in one step; where there are no links, a text file."""
    latest = base / LATEST
    if latest.is_dir() and not latest.is_symlink():
        return  # somebody's own folder of that name: it is not ours to replace
    temporary = base / f".{LATEST}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):
        temporary.write_text(name + "\n", encoding="utf-8")
    temporary.replace(latest)


def find_run(path: Path) -> RunFolder:
    """The run folder that a person means: itself, or what a `latest` link or file points to.

    Raises RunFolderError where there is none.
    """
    if path.is_file() and path.name == LATEST:
        path = path.parent / path.read_text(encoding="utf-8").strip()
    if not path.is_dir():
        raise RunFolderError(f"{path} is not a folder: give a run's folder, like runs/latest")
    return RunFolder(path.resolve())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
