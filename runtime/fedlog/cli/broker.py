"""`fedlog broker`: a broker by hand, for server and clients in other terminals."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedlog import exit_codes
from fedlog.job.environment import DEFAULT_PORT

_WATCH_S = 1.0


def broker(
    kafka: Annotated[
        Path | None,
        typer.Option(
            "--kafka",
            metavar="JARS_FOLDER",
            help="Run Apache Kafka from this folder of its jars (`make kafka` fills "
            ".cache/kafka/libs) instead of the embedded broker.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one."
        ),
    ] = DEFAULT_PORT,
) -> None:
    """Start a broker, print its address, and run until Ctrl-C.

    Server and clients of other terminals find it at the default address. What it holds is gone
    when it ends.
    """
    from fedlog.transport.apache import ApacheKafka
    from fedlog.transport.broker_process import BrokerProcess
    from fedlog.transport.embedded import EmbeddedBroker
    from fedlog.transport.errors import BrokerUnavailableError

    wanted = threading.Event()
    code = exit_codes.OK

    def end(number: int, _frame: object) -> None:
        nonlocal code
        code = exit_codes.TERMINATED if number == signal.SIGTERM else exit_codes.INTERRUPTED
        wanted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    process: BrokerProcess = (
        EmbeddedBroker(port=port or None)
        if kafka is None
        else ApacheKafka(kafka, port=port or None)
    )
    with process:
        typer.echo(f"{process.name} answers at {process.bootstrap_servers}; Ctrl-C ends it")
        while not wanted.wait(_WATCH_S):
            ended = process.poll()
            if ended is not None:
                raise BrokerUnavailableError(
                    f"{process.name} ended with exit code {ended}: {process.last_words()}"
                )
    raise typer.Exit(code)
