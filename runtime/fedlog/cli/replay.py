"""`fedlog replay`: fold a run again from its log, and compare every version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlog import exit_codes
from fedlog.cli.kafka_options import with_kafka_options
from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS

if TYPE_CHECKING:
    from fedlog.job.model import FederatedJob, StrategySpec
    from fedlog.server.replay import Comparison, ReplayedRound
    from fedlog.transport.base import Transport

_SHOWN_CLIENTS = 10
_INDENT = " " * 4


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


@with_kafka_options
def replay(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="[RUN]", help="A run's folder with log.sqlite.", show_default="runs/latest"
        ),
    ] = Path("runs/latest"),
    *,
    kafka: Mapping[str, str],
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            envvar="BOOTSTRAP_SERVERS",
            metavar="HOST:PORT",
            help="The Kafka that has the log of a run whose folder has not.",
            show_default=DEFAULT_BOOTSTRAP_SERVERS,
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id",
            metavar="ID",
            help="Instead of a folder: the run with this name on the broker, as the server logs "
            "and result.json have it, such as fedlog.default.mnist.1a2b3c4d.",
            show_default=False,
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--round", metavar="N", min=1, help="Only this round.", show_default="all rounds"
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            metavar="NAME[:PARAM=VALUE,…]",
            help="Aggregate each round under this rule, too, such as "
            "`FedAvg:serverLearningRate=0.5`; names and parameters as in spec.strategy.",
            show_default="the job's",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="CLIENT",
            help="Aggregate each round without this client, too, such as site/3; repeatable.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="Write the last version that came out, under the other rule if there is one "
            "(safetensors).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", metavar="FORMAT", help="text or json.")
    ] = Output.TEXT,
) -> None:
    """Fold a run again from its log, and compare the digest of every version.

    The log is in the run's folder, where the job has topics.retain: All, or still on a broker. A
    round is `ok` when the log makes the version that the journal names, it `differs` when it makes
    another one or none, and is `not there` when the log does not have all of it. Exit codes: 0
    every round is ok, 1 not every round, or nothing to replay, 69 no broker.

    With --strategy or --without the same updates are aggregated under another rule as well. Each
    round departs from the version that its clients trained on. What is shown is how far the two
    versions are from each other (L2 norm), how large the step of the round was, and who weighs
    how much.
    """
    from fedlog.server.replay import Replay, Rule, Verdict
    from fedlog.telemetry import logs

    logs.configure("ERROR", role="replay")
    rule = None
    if strategy is not None or without:
        spec = None if strategy is None else parse_strategy(strategy)
        rule = Rule(spec, frozenset(without or ()))
    text = output is Output.TEXT
    with (
        _log_of(run, broker, run_id, kafka) as (log, name, job),
        Replay(log, name, job=job, rule=rule) as replayed,
    ):
        if text:
            typer.echo(f"{name}: {_count(replayed.count, 'round')}")
        found = []
        for each in replayed.rounds(number):
            found.append(each)
            if text:
                for line in lines(each, replayed.count):
                    typer.echo(line)
        if save is not None:
            replayed.save(save)
    well = [each for each in found if each.verdict is Verdict.OK]
    if text:
        typer.echo(_summary(found, len(well)))
    else:
        typer.echo(json.dumps({"run": name, "rounds": [asdict(each) for each in found]}, indent=2))
    if not found or len(well) < len(found):
        raise typer.Exit(exit_codes.FAILED)


@contextmanager
def _log_of(
    folder: Path, broker: str | None, run_id: str | None, kafka: Mapping[str, str]
) -> Iterator[tuple[Transport, str, FederatedJob | None]]:
    """The log, the run's name on it, and its job where a folder has it."""
    from fedlog.server.errors import ReplayError
    from fedlog.telemetry.result import Result
    from fedlog.telemetry.run_folder import find_run
    from fedlog.transport.archive import ArchiveTransport

    if run_id is not None:
        with _kafka(broker or DEFAULT_BOOTSTRAP_SERVERS, kafka) as transport:
            yield transport, run_id, None
        return
    found = find_run(folder)
    job = _job_in(found.job)
    if found.log.exists():
        archive = ArchiveTransport(found.log)
        yield archive, archive.run, job
    elif broker is not None and found.result.exists():
        with _kafka(broker, kafka) as transport:
            yield transport, Result.load(found.path).run, job
    else:
        raise ReplayError(
            f"there is no {found.log.name} in {folder}: it is written at the end of a run with "
            "topics.retain: All. Where the run's topics are still on a Kafka, name it: "
            "--broker HOST:PORT --run-id ID"
        )


@contextmanager
def _kafka(servers: str, variables: Mapping[str, str]) -> Iterator[Transport]:
    from fedlog.job.environment import authentication_fields
    from fedlog.job.model import Authentication
    from fedlog.transport.kafka import KafkaTransport
    from fedlog.transport.kafka.security import Security

    fields = authentication_fields({**os.environ, **variables})
    security = Security.of(Authentication.model_validate(fields))
    transport = KafkaTransport(servers, security=security)
    try:
        transport.check()
        yield transport
    finally:
        transport.close()


def _job_in(path: Path) -> FederatedJob | None:
    from fedlog.job.loading import load

    return load(path).job if path.exists() else None


def parse_strategy(text: str) -> StrategySpec:
    """`NAME[:PARAM=VALUE,…]` as spec.strategy; a usage error where that is not allowed."""
    from pydantic import ValidationError

    from fedlog.job.model import StrategyName, StrategySpec

    name, _, rest = text.partition(":")
    parameters = {}
    for pair in filter(None, rest.split(",")):
        parameter, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not PARAM=VALUE", param_hint="--strategy")
        parameters[parameter] = value
    try:
        return StrategySpec.model_validate({"name": name, "parameters": parameters})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        raise typer.BadParameter(
            f"{where} of {text!r}: {detail['msg']} (names: {', '.join(StrategyName)})",
            param_hint="--strategy",
        ) from None


def lines(each: ReplayedRound, count: int) -> Iterator[str]:
    """What is said of one round."""
    digits = len(str(count))
    said = f"round {each.round:>{digits}}/{count}  {each.verdict:<9}"
    said += f"  {_count(each.updates, 'update'):<12}  {(each.digest or '-')[:12]:<12}"
    said += f"  {each.seconds:.2f} s"
    yield said
    if each.reason:
        yield f"{_INDENT}{each.reason}"
    if each.other is not None:
        yield from _comparison(each.other)


def _comparison(other: Comparison) -> Iterator[str]:
    if other.problem:
        yield f"{_INDENT}the other rule makes no version: {other.problem}"
        return
    said = f"{_INDENT}the other rule is {other.difference:.4g} away"
    if other.step:
        said += f"; the round's step was {other.step:.4g}"
    yield said
    heaviest = sorted(other.weighed, key=lambda each: -each.share)
    for each in heaviest[:_SHOWN_CLIENTS]:
        yield (
            f"{_INDENT}{each.client:<20} {100 * each.share:5.1f} %  "
            f"{_count(each.examples, 'example')}"
        )
    if len(heaviest) > _SHOWN_CLIENTS:
        yield f"{_INDENT}and {len(heaviest) - _SHOWN_CLIENTS} more"


def _summary(found: list[ReplayedRound], well: int) -> str:
    if well == len(found):
        what = "the round gives" if well == 1 else f"all {well} rounds give"
        return f"{what} the version that the journal names"
    return f"{well} of {_count(len(found), 'round')} ok"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
