"""What `fedlog run` shows: one line per round, and on a terminal a live view below them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlog.rounds.phase import Phase
from fedlog.telemetry.figures import (
    decisive,
    described,
    duration,
    figure,
    ordered,
    size,
    sparkline,
)
from fedlog.telemetry.logs import one_line
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.telemetry.status import RoundReport, Status, TestSetName

_NAMED_CLIENTS = 5
"""Clients that are named where some are waited for; the rest is a number."""


class Progress:
    """Shows a run as its Status values come in, however many rounds end between two of them.

    A round's line is shown once: when its figures are known, or the next round is over, or the
    run is. Rounds that fell out of the history between two polls are named in one line, or told
    from the run folder where the run ends with them. quiet: nothing is shown at all.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(quiet=quiet, highlight=False)
        self._shown = 0
        self._measured: set[TestSetName] = set()
        self._lost = 0
        self._phase: Phase | None = None
        self._course: list[float] = []
        self._status: Status | None = None
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not quiet:
            self._live = Live(
                console=self._console,
                get_renderable=self._view,
                refresh_per_second=4,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_live()

    def say(self, line: str) -> None:
        """One line of the run itself: where its folder is, what was substituted."""
        self._print(line)

    def update(self, status: Status) -> None:
        """The run as it is now."""
        self._status = status
        self._show_rounds(status.history, status.rounds, status.eta_s, ended=status.phase.ended)
        if status.clients_lost > self._lost:
            self._print(
                f"{status.clients_lost} of {status.clients_desired} clients lost", style="yellow"
            )
        self._lost = status.clients_lost
        if self._live is None and status.phase is not self._phase and _worth_a_line(status.phase):
            self._print(f"{status.phase}: {status.message}" if status.message else status.phase)
        self._phase = status.phase

    def finish(self, result: Result) -> None:
        """The run is over: what is not shown yet, and what it came to."""
        if result.folder is not None:
            reports = read_metrics(RunFolder(result.folder).metrics)
            self._show_rounds(reports, result.rounds_wanted, None, ended=True)
        self._stop_live()
        style = "bold green" if result.succeeded else "bold red"
        self._print(f"{result.outcome}: {result.reason}", style=style)
        test_set = result.test_set or decisive(result.metrics)
        parts = [f"rounds {result.rounds}/{max(result.rounds, result.rounds_wanted)}"]
        if test_set is not None and test_set in result.metrics:
            parts.append(described(result.metrics[test_set], test_set))
        parts += [
            f"up {size(result.bytes_up)}",
            f"down {size(result.bytes_down)}",
            f"time {duration(result.seconds)}",
        ]
        self._print("  ".join(parts))

    def _show_rounds(
        self,
        reports: Iterable[RoundReport],
        rounds: int,
        eta_s: float | None,
        *,
        ended: bool,
    ) -> None:
        reports = list(reports)
        for report in reports:
            self._measured |= report.evaluations.keys()
        awaited = decisive(dict.fromkeys(self._measured))
        fresh = sorted((r for r in reports if r.round > self._shown), key=lambda r: r.round)
        for index, report in enumerate(fresh):
            newest = index == len(fresh) - 1
            if newest and not ended and (awaited is None or awaited not in report.evaluations):
                return  # the figures that the other lines show are on their way
            if report.round > self._shown + 1:
                self._print(_gap(self._shown + 1, report.round - 1))
            self._print(round_line(report, rounds, eta_s if newest else None))
            self._shown = report.round
            self._note_course(report)

    def _note_course(self, report: RoundReport) -> None:
        test_set = decisive(report.evaluations)
        if test_set is not None:
            figures = report.evaluations[test_set].metrics
            if figures:
                self._course.append(figures[ordered(list(figures))[0]])

    def _view(self) -> RenderableType:
        status = self._status
        if status is None:
            return Text("starting …", style="dim")
        bar = Table.grid(padding=(0, 1), expand=False)
        done = status.rounds if status.phase is Phase.COMPLETE else self._committed(status)
        bar.add_row(
            ProgressBar(total=max(1, status.rounds), completed=done, width=32),
            Text(f"round {status.round}/{status.rounds}", style="bold"),
            Text(status.phase, style="cyan"),
            Text("" if status.eta_s is None else f"eta {duration(status.eta_s)}"),
        )
        lines: list[RenderableType] = [bar]
        test_set = decisive(status.metrics)
        if test_set is not None:
            learned = Text(described(status.metrics[test_set], test_set, most=3), style="green")
            learned.append("  " + sparkline(self._course, 30), style="cyan")
            lines.append(learned)
        clients = f"clients {status.clients_joined}/{status.clients_desired}"
        if status.clients_lost:
            clients += f"  lost {status.clients_lost}"
        if status.waiting_for:
            clients += f"  waiting for {_named(status.waiting_for)}"
            if status.deadline_s is not None:
                clients += f", {duration(status.deadline_s)} left"
        lines.append(Text(one_line(clients)))
        lines.append(
            Text(
                f"up {size(status.bytes_up)}  down {size(status.bytes_down)}  "
                f"time {duration(status.seconds)}",
                style="dim",
            )
        )
        if status.message:
            lines.append(Text(one_line(status.message), style="dim", overflow="ellipsis"))
        return Group(*lines)

    def _committed(self, status: Status) -> int:
        return max((report.round for report in status.history), default=0)

    def _print(self, line: str, *, style: str = "") -> None:
        self._console.print(Text(one_line(line), style=style), soft_wrap=True)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def round_line(report: RoundReport, rounds: int, eta_s: float | None = None) -> str:
    """One round in one line; its figures with the test set that they are of."""
    width = len(str(rounds))
    parts = [f"round {report.round:>{width}}/{rounds}"]
    test_set = decisive(report.evaluations)
    if test_set is not None:
        parts.append(described(report.evaluations[test_set].metrics, test_set))
    elif "loss" in report.train_metrics:
        parts.append(f"loss {figure(report.train_metrics['loss'])} (training)")
    parts.append(f"clients {report.accepted}/{report.wanted}")
    for name, count in (
        ("late", report.late),
        ("lost", report.lost),
        ("refused", sum(report.refused.values())),
    ):
        if count:
            parts.append(f"{name} {count}")
    parts += [f"up {size(report.bytes_up)}", f"down {size(report.bytes_down)}"]
    parts.append(duration(report.seconds))
    if eta_s:
        parts.append(f"eta {duration(eta_s)}")
    return "  ".join(parts)


def _worth_a_line(phase: Phase) -> bool:
    """Training and closing take turns with every round; the end is `finish`'s to tell."""
    return phase in {Phase.JOINING, Phase.EVALUATING}


def _gap(first: int, last: int) -> str:
    which = f"round {first}" if first == last else f"rounds {first} to {last}"
    return f"{which}: faster than could be shown; in metrics.jsonl"


def _named(clients: tuple[str, ...]) -> str:
    named = ", ".join(clients[:_NAMED_CLIENTS])
    more = len(clients) - _NAMED_CLIENTS
    return f"{named} and {more} more" if more > 0 else named
