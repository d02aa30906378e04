"""`fedlog run`: a whole federation on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fedlog import exit_codes
from fedlog.cli.environment import quiet_tensorflow
from fedlog.cli.kafka_options import with_kafka_options
from fedlog.cli.options import DataOption, LogLevelOption, SetOption, parse_data
from fedlog.job.environment import classic_overrides


@with_kafka_options
def run(
    job: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB]", help="The job file (YAML).", show_default=False),
    ] = None,
    *,
    kafka: Mapping[str, str],
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            envvar="BOOTSTRAP_SERVERS",
            metavar="HOST:PORT",
            help="Use this Kafka instead of the embedded broker.",
            show_default="the embedded broker",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Instead of a job: go on with this run's folder, such as runs/latest, after a "
            "crash of everything. Its log must be on a Kafka, which --broker may name anew.",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    data: DataOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Processes that the clients share.",
            show_default="one per core, at most 8",
        ),
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Give every client a process of its own.")
    ] = False,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where run folders are made.")
    ] = Path("runs"),
    keep_broker: Annotated[
        bool,
        typer.Option(
            "--keep-broker", help="Leave the embedded broker running, and its topics in it."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the outcome.")
    ] = False,
    log_level: LogLevelOption = "info",
) -> None:
    """Run a job here: broker, server and all clients, with live progress.

    Leaves a folder RUNS/JOB-TIME with models, metrics, logs and a report; RUNS/latest points to
    it. A server or worker that dies is started again and goes on, as often as the job's
    failurePolicy allows. Ctrl-C ends every process. Exit codes: 0 Complete, 1 Failed, 2 wrong file
    or command line, 3 the task cannot be used, 69 no broker.

    The variables USE_LIGHTWEIGHT_MODEL, REDUCED_DATA_SIZE, MODEL_TOPIC, UPDATE_TOPIC and
    TF_CPP_MIN_LOG_LEVEL (2) are heard, too: a flag beats a variable, which beats the file.
    """
    from fedlog.local.run import resume as resume_run
    from fedlog.local.run import run as run_job

    quiet_tensorflow()
    if resume is not None:
        fixed = {
            "JOB": job,
            "--set": overrides,
            "--data": data,
            "--workers": workers,
            "--isolate": isolate,
            "--keep-broker": keep_broker,
        }
        given = [name for name, value in fixed.items() if value]
        if given:
            raise typer.BadParameter(
                f"a run goes on as it began: leave out {', '.join(given)}", param_hint="--resume"
            )
        result = resume_run(
            resume,
            broker=broker,
            overrides=classic_overrides(kafka),
            quiet=quiet,
            log_level=log_level,
        )
    elif job is None:
        raise typer.BadParameter("a job file is wanted, or --resume RUN", param_hint="JOB")
    else:
        result = run_job(
            job,
            broker=broker,
            workers=workers,
            isolate=isolate,
            data=parse_data(data),
            overrides=[*classic_overrides({**os.environ, **kafka}), *(overrides or ())],
            runs=runs,
            keep_broker=keep_broker,
            quiet=quiet,
            log_level=log_level,
        )
    if quiet:
        typer.echo(f"{result.outcome}: {result.reason} ({result.folder})")
    if not result.succeeded:
        raise typer.Exit(exit_codes.FAILED)
