"""The report of a run: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedlog.telemetry.chart import Series, bar_chart, line_chart
from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.figures import TEST_SETS, decisive, duration, figure, ordered, size
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import find_run, read_metrics, write_atomically
from fedlog.telemetry.status import Evaluation, RoundReport, TestSetName

MAX_OTHER_METRICS = 8
"""Charts for metrics beside accuracy and loss."""
MAX_LISTED_CLIENTS = 2000
"""Rows of the table of clients."""
_TEST_SET_COLOURS: dict[TestSetName, str] = {"HeldOut": "c0", "Clients": "c1"}


@dataclass(frozen=True)
class Figure:
    """A chart with its title and legend."""

    title: str
    chart: Markup
    legend: list[Series] = field(default_factory=list)


def write_report(folder: Path) -> Path:
    """Write report.html into a run folder, from its job.yaml, metrics.jsonl and result.json.

    Works for failed runs, for runs without a round and for runs that were killed (no result.json).
    Returns the report's path. Raises RunFolderError where the folder is not a run's, or cannot be
    written.
    """
    run = find_run(folder)
    reports = read_metrics(run.metrics)
    result = Result.load(run.path) if run.result.exists() else None
    job = run.job.read_text(encoding="utf-8", errors="replace") if run.job.exists() else ""
    if result is None and not reports and not job:
        raise RunFolderError(
            f"{run.path} has no job.yaml, metrics.jsonl or result.json: it is not a run's folder"
        )
    html = render_report(run.path.name, job=job, reports=reports, result=result)
    try:
        write_atomically(run.report, html.encode())
    except OSError as error:
        raise RunFolderError(f"{run.report} cannot be written: {error.strerror}") from error
    return run.report


def render_report(
    name: str, *, job: str, reports: Sequence[RoundReport], result: Result | None
) -> str:
    """The page. name: of the run folder. job: the job's YAML. Round 0 is the initial model."""
    rounds = [report for report in reports if report.round > 0]
    latest = _latest_evaluations(reports)
    headline = (result.test_set if result else None) or decisive(latest)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": size, "duration": duration, "figure": figure}
    source = files("fedlog.telemetry").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        name=name,
        job=job,
        result=result,
        rounds=rounds,
        cards=_cards(rounds, latest, headline, result),
        learning=_learning(reports),
        course=_course(rounds),
        columns=_columns(reports),
        test_sets=TEST_SETS,
        participation=_participation(rounds, result),
        max_listed_clients=MAX_LISTED_CLIENTS,
        refusals=_refusals(rounds),
        digest=(result.digest if result else "") or (rounds[-1].digest if rounds else ""),
    )


@dataclass(frozen=True)
class Card:
    """One figure of the headline, with what it is of."""

    title: str
    value: str
    note: str = ""


def _cards(
    rounds: Sequence[RoundReport],
    latest: dict[TestSetName, Evaluation],
    headline: TestSetName | None,
    result: Result | None,
) -> list[Card]:
    cards = []
    figures = dict(result.metrics.get(headline, {})) if result and headline else {}
    measured = latest.get(headline) if headline else None
    if measured is not None and not figures:
        figures = measured.metrics
    for metric in ordered(list(figures))[:2]:
        note = TEST_SETS[headline] if headline else ""
        if measured is not None and measured.metrics.get(metric) == figures[metric]:
            note += f", {measured.examples:,} examples"
        cards.append(Card(metric, figure(figures[metric]), note))
    done = result.rounds if result else len(rounds)
    wanted = result.rounds_wanted if result else 0
    cards.append(Card("rounds", f"{done}", f"of {wanted}" if wanted else ""))
    seconds = result.seconds if result else sum(report.seconds for report in rounds)
    median = sorted(report.seconds for report in rounds)[len(rounds) // 2] if rounds else None
    note = f"a round: {duration(median)} (median)" if median is not None else ""
    cards.append(Card("time", duration(seconds), note))
    people = _participation(rounds, result)
    took_part = sum(1 for _, count in people if count)
    cards.append(Card("clients", f"{took_part}", f"of {len(people)} took part" if people else ""))
    up = result.bytes_up if result else sum(report.bytes_up for report in rounds)
    down = result.bytes_down if result else sum(report.bytes_down for report in rounds)
    cards.append(Card("data up", size(up), f"down {size(down)}"))
    return cards


def _learning(reports: Sequence[RoundReport]) -> list[Figure]:
    """One chart per metric, a line per test set; the training's loss beside the others."""
    names = {
        metric
        for report in reports
        for evaluation in report.evaluations.values()
        for metric in evaluation.metrics
    }
    trained = {metric for report in reports for metric in report.train_metrics}
    chosen = ordered(list(names | (trained & {"accuracy", "loss"})))[: 2 + MAX_OTHER_METRICS]
    return [_metric_figure(metric, reports) for metric in chosen]


def _metric_figure(metric: str, reports: Sequence[RoundReport]) -> Figure:
    def measured_on(test_set: TestSetName) -> Series:
        colour = _TEST_SET_COLOURS[test_set]
        return _series(TEST_SETS[test_set], colour, reports, lambda r: r.metric(metric, test_set))

    trained = _series("training", "c2", reports, lambda r: r.train_metrics.get(metric), dashed=True)
    lines = [line for line in (*map(measured_on, TEST_SETS), trained) if line.points]
    title = (metric[:1].upper() + metric[1:]).replace("_", " ")
    return Figure(title, line_chart(lines, unit=metric), lines)


def _course(rounds: Sequence[RoundReport]) -> list[Figure]:
    """Clients, bytes and seconds per round."""
    if not rounds:
        return []
    layers = [
        _series("accepted on time", "c3", rounds, lambda r: r.accepted - min(r.late, r.accepted)),
        _series("late", "c4", rounds, lambda r: min(r.late, r.accepted)),
        _series("lost", "c5", rounds, lambda r: r.lost),
        _series("refused", "c6", rounds, lambda r: sum(r.refused.values())),
    ]
    asked = _series("asked", "c7", rounds, lambda r: r.selected, dashed=True)
    shown = layers[:1] + [layer for layer in layers[1:] if _is_used(layer)]
    clients = Figure(
        "Clients per round", bar_chart(shown, unit="clients", outline=asked), [asked, *shown]
    )
    largest = max(max(report.bytes_up, report.bytes_down) for report in rounds)
    unit, divisor = _unit(largest)
    transferred = [
        _series(f"up ({unit})", "c0", rounds, lambda r: r.bytes_up / divisor),
        _series(f"down ({unit})", "c1", rounds, lambda r: r.bytes_down / divisor),
    ]
    seconds = [_series("round (s)", "c0", rounds, lambda r: r.seconds)]
    seconds.append(_series("aggregation (s)", "c1", rounds, lambda r: r.aggregation_seconds))
    return [
        clients,
        Figure("Data per round", line_chart(transferred, unit=unit, from_zero=True), transferred),
        Figure("Time per round", line_chart(seconds, unit="seconds", from_zero=True), seconds),
    ]


def _series(
    name: str,
    colour: str,
    reports: Sequence[RoundReport],
    value: Callable[[RoundReport], float | None],
    *,
    dashed: bool = False,
) -> Series:
    points = [(report.round, v) for report in reports if (v := value(report)) is not None]
    return Series(name, colour, points, dashed)


def _is_used(series: Series) -> bool:
    return any(value for _, value in series.points)


def _unit(largest: int) -> tuple[str, float]:
    power = 0 if largest < 1000 else min(5, math.floor(math.log10(largest) / 3))
    return ("bytes", "kB", "MB", "GB", "TB", "PB")[power], 1000.0**power


def _columns(reports: Sequence[RoundReport]) -> list[tuple[str, TestSetName]]:
    """Metric and test set of the columns of the table of rounds, six at most."""
    present = {
        (metric, test_set)
        for report in reports
        for test_set, evaluation in report.evaluations.items()
        for metric in evaluation.metrics
    }
    metrics = ordered([metric for metric, _ in present])
    return [(m, t) for m in metrics for t in TEST_SETS if (m, t) in present][:6]


def _latest_evaluations(reports: Sequence[RoundReport]) -> dict[TestSetName, Evaluation]:
    latest: dict[TestSetName, Evaluation] = {}
    for report in reports:
        latest |= report.evaluations
    return latest


def _participation(rounds: Sequence[RoundReport], result: Result | None) -> list[tuple[str, int]]:
    """Client and the rounds in which its update counted, by group and index."""
    if result is not None and result.participation:
        counts = dict(result.participation)
    else:
        counts = {}
        for report in rounds:
            for client in report.participants:
                counts[client] = counts.get(client, 0) + 1
    return sorted(counts.items(), key=lambda item: _by_group_and_index(item[0]))


def _by_group_and_index(client: str) -> tuple[str, int, str]:
    group, _, index = client.partition("/")
    return group, int(index) if index.isdecimal() else -1, client


def _refusals(rounds: Sequence[RoundReport]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for report in rounds:
        for reason, count in report.refused.items():
            counts[reason] = counts.get(reason, 0) + count
    return sorted(counts.items(), key=lambda item: -item[1])[:20]
