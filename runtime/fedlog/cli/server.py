"""`fedlog server`: the server of a job, by hand or in a pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fedlog import exit_codes
from fedlog.cli.environment import broker_address, quiet_tensorflow, read_job
from fedlog.cli.kafka_options import with_kafka_options
from fedlog.cli.options import (
    BaseOption,
    BrokerOption,
    JobArgument,
    LogLevelOption,
    RunOption,
    SetOption,
)


@with_kafka_options
def server(
    job: JobArgument,
    *,
    kafka: Mapping[str, str],
    broker: BrokerOption = None,
    run: RunOption = None,
    base: BaseOption = None,
    overrides: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for models, metrics and the result.",
            show_default="spec.output.path, else a new folder in runs/",
        ),
    ] = None,
    status_port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port of /status, /healthz and /metrics; 0 takes a free one.",
        ),
    ] = 0,
    status_host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address of this machine that serves them; 0.0.0.0: all, for containers.",
        ),
    ] = "127.0.0.1",
    status_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the status address here once it is served.",
            show_default=False,
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The first model (safetensors), made by `python -m fedlog.tasks.initial`.",
            show_default="made here, in a process of its own",
        ),
    ] = None,
    log_level: LogLevelOption = "info",
) -> None:
    """Run the server of a job: announce rounds, fold updates, write the result.

    Clients may start before it or later. Exit codes: 0 Complete, 1 Failed, 2 wrong file or
    command line, 4 another server of this run took over, 69 no broker, 143 SIGTERM.
    """
    from fedlog.server import FederatedServer
    from fedlog.telemetry import logs

    quiet_tensorflow()
    job_file = read_job(job, {**os.environ, **kafka}, overrides or (), base)
    logs.configure(log_level.upper(), role="server", job=job_file.job.metadata.name)
    result = FederatedServer(
        job_file,
        run=run,
        bootstrap_servers=broker_address(broker, job_file),
        output=output,
        status_port=status_port,
        status_host=status_host,
        status_file=status_file,
        initial=initial,
    ).run()
    typer.echo(f"{result.outcome}: {result.reason}")
    if not result.succeeded:
        raise typer.Exit(exit_codes.FAILED)
