"""`fedlog report`: the HTML report of a run, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path, typer.Argument(metavar="[RUN]", help="A run's folder.", show_default="runs/latest")
    ] = Path("runs/latest"),
) -> None:
    """Write RUN/report.html from the run's job.yaml, metrics.jsonl and result.json.

    `fedlog run` does it by itself; this is for a run that goes on, or was killed. The file opens
    without a network.
    """
    from fedlog.telemetry.report import write_report

    typer.echo(write_report(run))
