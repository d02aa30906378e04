"""`fedlog client`: one client of a job, by hand or in a pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

import typer

from fedlog.cli.environment import broker_address, quiet_tensorflow, read_job
from fedlog.cli.kafka_options import with_kafka_options
from fedlog.cli.options import (
    BaseOption,
    BrokerOption,
    DataOption,
    JobArgument,
    LogLevelOption,
    RunOption,
    SetOption,
    parse_data,
)


@with_kafka_options
def client(
    job: JobArgument,
    *,
    kafka: Mapping[str, str],
    group: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="Name of the client's group; `evaluator` for the held-out data.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of the client in its group, from 0.")
    ] = 0,
    broker: BrokerOption = None,
    run: RunOption = None,
    base: BaseOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    label: Annotated[
        str,
        typer.Option(
            envvar="CLIENT_ID",
            metavar="TEXT",
            help="A name for people, shown in logs; who a client is, is its group and index.",
            show_default=False,
        ),
    ] = "",
    clients: Annotated[
        str | None, typer.Option(hidden=True, help="Several clients, `a/0,a/1`, in one process.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            envvar="FEDLOG_THREADS",
            help="Most threads for numeric libraries.",
            show_default="as they choose",
        ),
    ] = None,
    log_level: LogLevelOption = "info",
) -> None:
    """Take part in a job: wait for its rounds, train on this client's data, send updates.

    May start before the server, join in the middle, leave and come back. Exit codes: 0 the job
    is over, 2 wrong file or command line, 3 the task or its data cannot be used, 4 another
    process took over this client, 69 no broker or no word from the server, 143 SIGTERM.
    """
    from fedlog.client.worker import Worker
    from fedlog.local.substitution import with_data
    from fedlog.telemetry import logs

    if (group is None) == (clients is None):
        raise typer.BadParameter("say which client this is: --group GROUP --index I")
    quiet_tensorflow()
    job_file = read_job(job, {**os.environ, **kafka}, overrides or (), base)
    job_file = with_data(job_file, parse_data(data))
    ids = [f"{group}/{index}"] if clients is None else clients.split(",")
    logs.configure(
        log_level.upper(),
        role="client",
        job=job_file.job.metadata.name,
        client=ids[0] if len(ids) == 1 else "",
    )
    worker = Worker(
        job_file,
        ids,
        run=run,
        bootstrap_servers=broker_address(broker, job_file),
        threads=threads,
        label=label,
    )
    raise typer.Exit(worker.run())
