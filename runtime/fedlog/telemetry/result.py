"""What a run came to: the JSON of `result.json`, and what `fedlog.run` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.status import Count, Metrics, Seconds, TestSetName, Told

RESULT_FILE = "result.json"


class Best(Told):
    """The version with the best value of the watched metric."""

    version: Count
    """The version."""
    digest: str
    """Its digest."""
    metric: str
    """The watched metric."""
    test_set: TestSetName
    """The test set that decides."""
    value: float
    """The metric's value."""
    model: str | None = None
    """File of that version, relative to the run folder; None where it was not kept."""


class Result(Told):
    """A run that is over."""

    version: Literal[1] = 1
    """Version of this document."""
    run: str
    """Identity of the run."""
    job: str
    """Name of the job."""
    namespace: str = "default"
    """Namespace of the job."""
    outcome: Literal["Complete", "Failed"]
    """Complete, or Failed."""
    reason: str
    """Why it ended, in one sentence."""
    rounds: Count
    """Rounds that were committed."""
    rounds_wanted: Count = 0
    """Rounds that the job asked for."""
    metrics: dict[TestSetName, Metrics] = {}
    """Figures of the last version, by test set."""
    test_set: TestSetName | None = None
    """The test set whose figures decide; None where nothing was measured."""
    participation: dict[str, Count] = {}
    """Client -> rounds in which its update was accepted; clients with none are listed, too."""
    digest: str = ""
    """Digest of the last version."""
    seconds: Seconds = 0.0
    """From the server's start to its end."""
    bytes_up: Count = 0
    """Encoded bytes of updates."""
    bytes_down: Count = 0
    """Encoded bytes of models."""
    model: str | None = None
    """File of the last version (safetensors), relative to the run folder; None where there is
    none."""
    best: Best | None = None
    """The best version, where the job watches a metric."""
    versions: dict[str, str] = {}
    """Versions of what ran: fedlog, python, numpy …"""
    folder: Annotated[Path | None, Field(exclude=True)] = None
    """The run folder that this was read from or written to; not part of the JSON."""

    @property
    def succeeded(self) -> bool:
        """The outcome is Complete."""
        return self.outcome == "Complete"

    @property
    def model_path(self) -> Path | None:
        """Where the last version is, or None where there is none."""
        if self.model is None:
            return None
        return (self.folder or Path()) / self.model

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The result of a run folder (or of a result.json itself).

        Raises RunFolderError where there is none: the run still goes on, or was killed.
        """
        path = Path(folder)
        if path.is_dir():
            path = path / RESULT_FILE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise RunFolderError(
                f"{path} does not exist: the run has not ended, or {path.parent} is not a run "
                "folder (runs/latest is the newest one)"
            ) from None
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
        try:
            result = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunFolderError(
                f"{path} is not a result: {where or 'the document'}: {first['msg']}"
            ) from None
        return result.model_copy(update={"folder": path.parent})
