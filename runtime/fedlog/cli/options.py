"""Options that several commands share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS

JobArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="JOB", help="The job file (YAML).", show_default=False)
]
BrokerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--broker",
        envvar="BOOTSTRAP_SERVERS",
        metavar="HOST:PORT",
        help="Kafka's address, or several with commas. Beats spec.kafka.bootstrapServers.",
        show_default=DEFAULT_BOOTSTRAP_SERVERS,
    ),
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field of the job, such as `rounds=3` or `training.learningRate=0.05`; "
        "repeatable.",
        show_default=False,
    ),
]
DataOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="GROUP=PATH",
        help="Where a group's data is on this machine; repeatable. `evaluator` is the held-out "
        "data.",
        show_default=False,
    ),
]
RunOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--run",
        envvar="FEDLOG_RUN",
        metavar="ID",
        help="Tells runs of one job apart: server and clients must be given the same.",
        show_default="the job's uid, else manual",
    ),
]
BaseOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="DIR",
        help="Folder that relative paths in the job start from.",
        show_default="the job file's folder",
    ),
]


def _checked_level(level: str) -> str:
    if level.lower() not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(f"{level!r} is not one of debug, info, warning or error")
    return level.lower()


LogLevelOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--log-level",
        envvar="FEDLOG_LOG_LEVEL",
        metavar="LEVEL",
        callback=_checked_level,
        help="debug, info, warning or error.",
    ),
]


def parse_data(pairs: list[str] | None) -> dict[str, Path]:
    """`GROUP=PATH` pairs as a mapping; a pair without `=` is a usage error."""
    found = {}
    for pair in pairs or ():
        group, equals, path = pair.partition("=")
        if not equals or not group or not path:
            raise typer.BadParameter(f"{pair!r} is not GROUP=PATH", param_hint="--data")
        found[group] = Path(path)
    return found
