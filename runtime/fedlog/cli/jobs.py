"""`fedlog validate`, `fedlog schema` and `fedlog init`: job files."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedlog.cli.options import JobArgument, SetOption
from fedlog.cli.scaffold import JOB_FILE, Library
from fedlog.job.environment import classic_overrides


def validate(
    job: JobArgument,
    *,
    overrides: SetOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the whole job with its defaults, as YAML.")
    ] = False,
) -> None:
    """Check a job file, and show what it asks for.

    Reads it as `fedlog run` does, with the same variables and --set. Nothing is started and no
    task is loaded. Exit codes: 0 the file is right, 2 it is not; every problem is shown with its
    line and cure.
    """
    from fedlog.job.loading import dump, load
    from fedlog.job.summary import summary

    job_file = load(job, overrides=[*classic_overrides(os.environ), *(overrides or ())])
    if resolved:
        typer.echo(dump(job_file), nl=False)
        return
    for name, value in summary(job_file):
        typer.echo(f"{name + ':':<12}{value}")


def schema() -> None:
    """Print the JSON Schema of job files, for editors.

    `fedlog schema > federatedjob.schema.json`, and `# yaml-language-server:
    $schema=federatedjob.schema.json` as first line of a job file.
    """
    from fedlog.job.schema import job_schema_text

    typer.echo(job_schema_text(), nl=False)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to write to; made if need be.")
    ] = Path("my-job"),
    *,
    template: Annotated[
        Library, typer.Option("--template", help="What the model is made with.")
    ] = Library.KERAS,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the job.", show_default="the folder's name"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there already.")
    ] = False,
) -> None:
    """Write a job and a task module that run at once.

    They train on the digits that come with scikit-learn; change the two functions in task.py to
    train on your own data.
    """
    from fedlog.cli import scaffold
    from fedlog.job.loading import loads

    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is a file, not a folder", param_hint="FOLDER")
    texts = scaffold.files(template, _name_for(folder) if name is None else name)
    loads(texts[JOB_FILE], path=folder / JOB_FILE)  # a name that is not allowed shows here
    present = [file for file in texts if (folder / file).exists()]
    if present and not force:
        verb = "is" if len(present) == 1 else "are"
        raise typer.BadParameter(
            f"{' and '.join(present)} {verb} already in {folder}: name another folder, or replace "
            "with --force",
            param_hint="FOLDER",
        )
    scaffold.write(folder, texts)
    for file in texts:
        typer.echo(f"wrote {folder / file}")
    typer.echo(f"next: fedlog run {shlex.quote(str(folder / JOB_FILE))}")


def _name_for(folder: Path) -> str:
    """The folder's name as a job's name is written."""
    plain = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return plain[:40].strip("-") or "my-job"
