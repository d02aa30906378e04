"""`fedlog`: the list of commands, and the one place where an error becomes a line and a code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedlog import exit_codes
from fedlog.cli import broker, client, failure, jobs, replay, report, run, server
from fedlog.errors import FedlogError

_LEARN = "Learn"
_BY_HAND = "By hand, one process each"
_JOB = "Job files"

app = typer.Typer(
    name="fedlog",
    help="Federated learning over a durable log. Start with `fedlog init`, then `fedlog run`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Debug:
    on = False


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedlog {version('fedlog')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the stack trace of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    _Debug.on = debug


app.command("init", rich_help_panel=_LEARN)(jobs.init)
app.command("run", rich_help_panel=_LEARN)(run.run)
app.command("report", rich_help_panel=_LEARN)(report.report)
app.command("replay", rich_help_panel=_LEARN)(replay.replay)
app.command("validate", rich_help_panel=_JOB)(jobs.validate)
app.command("schema", rich_help_panel=_JOB)(jobs.schema)
app.command("server", rich_help_panel=_BY_HAND)(server.server)
app.command("client", rich_help_panel=_BY_HAND)(client.client)
app.command("broker", rich_help_panel=_BY_HAND)(broker.broker)


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    try:
        app()
    except FedlogError as error:
        if _Debug.on:
            raise
        failure.report(str(error))
        sys.exit(failure.exit_code(error))
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
