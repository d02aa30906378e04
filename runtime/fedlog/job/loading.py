"""From a file to a job: one FederatedJob and its ConfigMaps, or every problem at once."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedlog.job import describe
from fedlog.job.document import (
    MAX_BYTES,
    Document,
    Dumper,
    Path,
    path_text,
    read_documents,
    read_value,
)
from fedlog.job.errors import JobError, Problem
from fedlog.job.model import API_VERSION, KIND, LABEL_PATTERN, FederatedJob, Finding
from fedlog.job.spelling import closest, did_you_mean

CONFIG_MAP = "ConfigMap"
_EXAMPLE = "`fedlog init FOLDER` writes a job that runs"
_FILE_NAME = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_STEP = re.compile(r"\.?([^.\[\]=]+)|\[([^\[\]]*)\]")


@dataclass(frozen=True)
class JobFile:
    """A job and what came with it.

    path: the file. config_maps: name -> file name -> text, from the same file.
    """

    job: FederatedJob
    path: FilePath
    config_maps: Mapping[str, Mapping[str, str]]

    @property
    def base(self) -> FilePath:
        """The folder that relative paths in the job start from."""
        return self.path.parent


def load(path: str | FilePath, *, overrides: Sequence[str] = ()) -> JobFile:
    """Read a job file: YAML or JSON.

    overrides: `path=value` as of `--set`; see `loads`. Raises JobError with all problems found.
    """
    path = FilePath(path)
    source = str(path)
    if path.is_dir():
        inside = sorted(f.name for f in path.iterdir() if f.suffix in {".yaml", ".yml"})
        cure = f"name a file in it: {path / inside[0]}" if inside else _EXAMPLE
        raise JobError([Problem("", "a folder", "a job file", cure, source)])
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise JobError([_missing_file(path)]) from error
    except OSError as error:
        what = f"a file that cannot be read ({error.strerror})"
        raise JobError([Problem("", what, "a readable job file", "", source)]) from error
    try:
        # A byte-order mark is what some editors write; it is no part of the text.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A file that is cut at the limit may end within a character: then it is only too large.
        if len(content) <= MAX_BYTES:
            what = f"bytes that are no text (at byte {error.start})"
            problem = Problem("", what, "YAML or JSON in UTF-8", "", source)
            raise JobError([problem]) from error
        text = content.decode("utf-8", errors="replace")
    return loads(text, path=path, overrides=overrides)


def loads(
    text: str, *, path: str | FilePath = "job.yaml", overrides: Sequence[str] = ()
) -> JobFile:
    """Read a job from text; `path` stands for the file in errors and as base of relative paths.

    overrides: `rounds=3`, `spec.rounds=3`, `clients[0].replicas=4`, `clients.site-a.replicas=4`,
    applied in order before anything is checked. Raises JobError with all problems found.
    """
    path = FilePath(path)
    return _Reading(str(path)).read(text, path, overrides)


def dump(job_file: JobFile) -> str:
    """The resolved job as YAML: defaults included, what is not set left out, ConfigMaps after it.

    `loads(dump(f))` gives the same job and ConfigMaps.
    """
    documents = [job_file.job.model_dump(mode="json", by_alias=True, exclude_none=True)]
    for name, data in job_file.config_maps.items():
        metadata = {"name": name}
        documents.append(
            {"apiVersion": "v1", "kind": CONFIG_MAP, "metadata": metadata, "data": dict(data)}
        )
    return yaml.dump_all(
        documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, explicit_start=False
    )


def _missing_file(path: FilePath) -> Problem:
    near = sorted(f.name for f in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    cure = did_you_mean(path.name, near) or _EXAMPLE
    return Problem("", "no such file", "a job file", cure, str(path))


class _Reading:
    """One reading of one file: collects problems, raises them together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.document = Document(None)
        self.overridden: dict[Path, str] = {}

    def read(self, text: str, path: FilePath, overrides: Sequence[str]) -> JobFile:
        jobs: list[Document] = []
        config_maps: dict[str, dict[str, str]] = {}
        documents = read_documents(text, self.source)
        for number, document in enumerate(documents, start=1):
            kind = self._kind(document, number)
            if kind == KIND:
                jobs.append(document)
            elif kind == CONFIG_MAP:
                self._config_map(document, config_maps)
        if len(jobs) != 1:
            self._one_job_expected(jobs, any_document=bool(documents))
            raise JobError(self.problems)
        self.document = jobs[0]
        self._api_version(self.document, API_VERSION)
        for override in overrides:
            self._override(override)
        job = self._validate()
        if job is not None:
            self._check_source(job, config_maps)
        if self.problems or job is None:
            raise JobError(sorted(self.problems, key=lambda problem: problem.line or 0))
        return JobFile(job, path, config_maps)

    def _note(self, path: Path, found: str, allowed: str = "", suggestion: str = "") -> None:
        """A problem in the job; where an override put the value, that is named as its place."""
        self.problems.append(
            next(
                (
                    Problem(path_text(path), found, allowed, suggestion, f"--set {option}")
                    for place, option in reversed(self.overridden.items())
                    if path[: len(place)] == place
                ),
                self._problem(self.document, path, found, allowed, suggestion),
            )
        )

    def _problem(
        self, document: Document, path: Path, found: str, allowed: str = "", suggestion: str = ""
    ) -> Problem:
        line = document.line(path)
        return Problem(path_text(path), found, allowed, suggestion, self.source, line)

    # Documents

    def _kind(self, document: Document, number: int) -> str | None:
        """The kind of a document, or what it was surely meant to be; None where that is unclear."""
        value = document.value
        known = (KIND, CONFIG_MAP)
        if not isinstance(value, dict):
            what = f"{describe.found(value)} instead of a document"
            self.problems.append(
                self._problem(document, (), what, f"a mapping with kind: {KIND}", _EXAMPLE)
            )
            return None
        kind = value.get("kind")
        if kind in known:
            return str(kind)
        where = "no kind" if kind is None else describe.found(kind)
        found = where if number == 1 else f"{where} in document {number}"
        cure = did_you_mean(kind, known)
        if kind is None:
            cure = f"kind: {KIND if 'spec' in value else CONFIG_MAP}"
        self.problems.append(
            self._problem(document, ("kind",), found, f"{KIND} or {CONFIG_MAP}", cure)
        )
        meant = closest(kind, known) if isinstance(kind, str) else None
        return KIND if meant is None and "spec" in value and kind is None else meant

    def _one_job_expected(self, jobs: Sequence[Document], *, any_document: bool) -> None:
        if not any_document:
            self.problems.append(Problem("", "an empty file", f"one {KIND}", _EXAMPLE, self.source))
        elif jobs:
            lines = ", ".join(str(document.line(())) for document in jobs)
            what = f"{len(jobs)} documents of kind {KIND} (lines {lines})"
            self.problems.append(
                Problem("", what, "one per file", "put each into a file of its own", self.source)
            )
        elif not self.problems:
            self.problems.append(Problem("", f"no {KIND}", f"one {KIND}", _EXAMPLE, self.source))

    def _api_version(self, document: Document, wanted: str) -> None:
        found = document.value.get("apiVersion")
        if found != wanted:
            what = "no apiVersion" if found is None else describe.found(found)
            path: Path = ("apiVersion",)
            cure = f"apiVersion: {wanted}"
            self.problems.append(self._problem(document, path, what, wanted, cure))

    def _config_map(self, document: Document, config_maps: dict[str, dict[str, str]]) -> None:
        def note(path: Path, found: str, allowed: str, cure: str = "") -> None:
            self.problems.append(self._problem(document, path, found, allowed, cure))

        value = document.value
        self._api_version(document, "v1")
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(name, str) or not name:
            what = f"{describe.found(name)} as name of a ConfigMap"
            note(("metadata", "name"), what, "text", "name: my-task")
            return
        if name in config_maps:
            note(("metadata", "name"), f'two ConfigMaps named "{name}"', "every name once")
            return
        data = value.get("data", {})
        if not isinstance(data, dict):
            note(("data",), describe.found(data), "a mapping of file names to text")
            data = {}
        if "binaryData" in value:
            note(("binaryData",), "binaryData", "data (text)", "use data")
        config_maps[name] = {}
        for key, content in data.items():
            path: Path = ("data", key)
            if not _FILE_NAME.fullmatch(key) or key in {".", ".."}:
                note(path, f'"{key}"', "a file name of letters, digits, '.', '_' and '-'")
            elif not isinstance(content, str):
                note(path, describe.found(content), "text", f"{key}: | and the text below")
            else:
                config_maps[name][key] = content

    def _check_source(
        self, job: FederatedJob, config_maps: Mapping[str, Mapping[str, str]]
    ) -> None:
        source = job.spec.task.source
        if source is None:
            return
        at: Path = ("spec", "task", "source", "configMap")
        if source.config_map not in config_maps:
            names = ", ".join(config_maps) or "none"
            cure = did_you_mean(source.config_map, list(config_maps))
            self._note(
                at,
                f'"{source.config_map}", and no such ConfigMap in the file',
                f"a ConfigMap of the same file ({names})",
                cure or "add it as a second document, after a line ---",
            )
            return
        # A module of an image needs no file in the ConfigMap; a file has to be there.
        file_name = job.spec.task.entrypoint.rpartition(":")[0]
        files = config_maps[source.config_map]
        if file_name.endswith(".py") and file_name not in files:
            self._note(
                ("spec", "task", "entrypoint"),
                f'"{file_name}", which is not in the ConfigMap "{source.config_map}"',
                f"a file of it ({', '.join(files) or 'it is empty'})",
                did_you_mean(file_name, list(files)),
            )

    # Overrides

    def _override(self, option: str) -> None:
        """Put one `path=value` into the document, or note why it cannot be."""
        left, equals, right = option.partition("=")
        source = f"--set {option}"
        steps = _steps(left.strip())
        if not equals or steps is None:
            self.problems.append(
                Problem(
                    "",
                    f'"{option}"',
                    "path=value",
                    "--set rounds=3 or --set clients[0].replicas=2",
                    source,
                )
            )
            return
        try:
            path, node = self._resolve(steps, source)
            value = _override_value(right, node, source)
        except JobError as error:
            self.problems += error.problems
            return
        _put(self.document, path, value)
        self.overridden[path] = option

    def _resolve(self, steps: Sequence[str | int], source: str) -> tuple[Path, describe.Node]:
        """The full path of an override and the schema there; raises JobError."""
        node = describe.root()
        if steps[0] not in node["properties"]:
            steps = ["spec", *steps]
        path: Path = ()
        value: Any = self.document.value
        for name in steps:
            step = name
            if node.get("type") == "array":
                step = self._entry(name, value, path, source)
            elif isinstance(step, int):
                what = f"[{step}], but {path_text(path)} is not a list"
                raise JobError([Problem(path_text(path), what, describe.allowed(node), "", source)])
            below = describe.child(node, step)
            if below is None:
                known = list(node.get("properties", {}))
                what = f'"{step}", which is not a field' if known else f'"{step}" below a value'
                raise JobError(
                    [
                        Problem(
                            path_text((*path, step)),
                            what,
                            ", ".join(known) or "no field below it",
                            did_you_mean(step, known) or describe.belongs(step),
                            source,
                        )
                    ]
                )
            node = below
            path = (*path, step)
            value = _get(value, step)
        return path, node

    def _entry(self, step: str | int, value: Any, path: Path, source: str) -> int:
        """The index that a step into a list means: itself, or that of the entry so named."""
        entries = value if isinstance(value, list) else []
        names = [str(e.get("name")) if isinstance(e, dict) else "" for e in entries]
        if isinstance(step, str) and step in names:
            return names.index(step)
        index = int(step) if str(step).isascii() and str(step).isdigit() else -1
        if 0 <= index < len(entries):
            return index
        indices = f"0 to {len(entries) - 1}" if entries else "none"
        raise JobError(
            [
                Problem(
                    path_text(path),
                    f'"{step}", which is no entry of the list',
                    f"an index ({indices}) or a name ({', '.join(names) or 'none'})",
                    did_you_mean(step, names),
                    source,
                )
            ]
        )

    # Validation

    def _validate(self) -> FederatedJob | None:
        value = dict(self.document.value)
        # What was put right in `problems` already is not reported twice; what Kubernetes adds to
        # an exported job is not ours to judge.
        value.update(apiVersion=API_VERSION, kind=KIND)
        value.pop("status", None)
        try:
            return FederatedJob.model_validate_json(
                json.dumps(value), strict=True, by_alias=True, by_name=False
            )
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                for path, finding in _findings(detail):
                    self._note(path, finding.found, finding.allowed, finding.suggestion)
            return None


def _findings(detail: ErrorDetails) -> Iterator[tuple[Path, Finding]]:
    """What one of pydantic's errors says, in the document's words."""
    path: Path = detail["loc"]
    kind = detail["type"]
    value = detail["input"]
    if kind == "findings":
        for finding in detail["ctx"]["findings"]:
            yield (*path, *finding.at), finding
    elif kind == "extra_forbidden":
        parent = describe.node_at(path[:-1]) or {}
        known = list(parent.get("properties", {}))
        cure = describe.belongs(path[-1]) or did_you_mean(path[-1], known)
        yield path, Finding((), f'"{path[-1]}", an unknown field', ", ".join(known), cure)
    elif kind == "missing":
        node = describe.node_at(path) or {}
        what = f"no {path[-1]}"
        yield path, Finding((), what, describe.allowed(node), f"add {path[-1]}:")
    else:
        node = describe.node_at(path) or {}
        yield (
            path,
            Finding((), describe.found(value), describe.allowed(node), _cure(node, path, value)),
        )


def _cure(node: describe.Node, path: Path, value: object) -> str:
    """A line that would be right, where it can be told from what was meant."""
    key = path[-1] if path else ""
    if "enum" in node:
        return did_you_mean(value, node["enum"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if describe.is_decimal(node) and number:
        return f'{key}: "{value}"'
    if node.get("pattern") == LABEL_PATTERN and isinstance(value, str):
        better = (
            re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[: node["maxLength"]].strip("-")
        )
        return f"{key}: {better}" if better else ""
    if node.get("type") == "string" and (number or isinstance(value, bool)):
        return f'{key}: "{str(value).lower()}" (in quotes)'
    if node.get("type") == "integer" and isinstance(value, str) and value.isdigit():
        return f"{key}: {value} (without quotes)"
    return ""


def _steps(text: str) -> list[str | int] | None:
    """`clients[0].replicas` -> ["clients", 0, "replicas"]; None when it is not a path."""
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            return None
        name, index = match.groups()
        if name is None:
            steps.append(int(index) if index.isascii() and index.isdigit() else index)
        else:
            steps.append(name)
        position = match.end()
    return steps or None


def _override_value(text: str, node: describe.Node, source: str) -> Any:
    """The value for a field; where the field is text, quotes are not needed."""
    if node.get("type") == "string" and text not in {"null", "~", ""}:
        plain = text.strip()
        if not (plain.startswith(('"', "'"))):
            return plain
    return read_value(text, source)


def _get(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int):
        return value[step]
    return None


def _put(document: Document, path: Path, value: Any) -> None:
    """Set the value at the path; mappings on the way are made where they are missing.

    Where the file has something else than a mapping on the way, nothing is set: that is wrong
    already, and will be said of the file.
    """
    # Aliases share values: an override is meant for one place.
    document.value = copy.deepcopy(document.value)
    target = document.value
    for step, next_step in pairwise(path):
        below = _get(target, step)
        if below is None:
            below = target[step] = {}
        if not isinstance(below, list if isinstance(next_step, int) else dict):
            return
        target = below
    target[path[-1]] = value
