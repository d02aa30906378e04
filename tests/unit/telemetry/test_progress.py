from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedlog.rounds.phase import Phase
from fedlog.telemetry.figures import duration, figure, size, sparkline
from fedlog.telemetry.progress import Progress, round_line
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import MetricsFile, RunFolder
from fedlog.telemetry.status import HISTORY, Evaluation, RoundReport, Status


def report(number: int, *, measured: bool = True, **facts: object) -> RoundReport:
    evaluation = Evaluation(
        version=number, examples=10, clients=1, metrics={"accuracy": number / 1000, "loss": 0.23}
    )
    return RoundReport.model_validate(
        {
            "round": number,
            "version": number,
            "digest": "d",
            "seconds": 2.1,
            "wanted": 5,
            "accepted": 5,
            "bytes_up": 1_200_000,
            "bytes_down": 300_000,
            "evaluations": {"HeldOut": evaluation} if measured else {},
            **facts,
        }
    )


def status(*history: RoundReport, **facts: object) -> Status:
    return Status.model_validate(
        {"run": "r", "job": "j", "phase": Phase.TRAINING, "rounds": 10, **facts}
        | {"history": history[-HISTORY:]}
    )


class Screen:
    """A progress view and what it has printed."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.stream = io.StringIO()
        console = Console(
            file=self.stream, force_terminal=terminal, width=100, highlight=False, _environ={}
        )
        self.progress = Progress(console=console)

    def rounds(self) -> list[int]:
        lines = self.stream.getvalue().splitlines()
        return [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("round ")]


def test_a_round_is_one_line() -> None:
    assert round_line(report(931, wanted=6, lost=1), 1000, eta_s=15) == (
        "round  931/1000  accuracy 0.931 (held out)  loss 0.230  clients 5/6  lost 1"
        "  up 1.2 MB  down 300 kB  2.1 s  eta 15 s"
    )
    unmeasured = report(3, measured=False, train_metrics={"loss": 0.7})
    assert round_line(unmeasured, 10) == (
        "round  3/10  loss 0.700 (training)  clients 5/5  up 1.2 MB  down 300 kB  2.1 s"
    )


def test_rounds_between_two_polls_are_neither_missed_nor_doubled() -> None:
    screen = Screen()
    history = [report(n) for n in range(1, 40)]
    for end in (1, 1, 4, 4, 5, 17, 37, 39):
        screen.progress.update(status(*history[:end]))
    assert screen.rounds() == list(range(1, 40))


def test_a_round_waits_for_its_figures_until_the_next_one_is_over() -> None:
    screen = Screen()
    bare = report(1, measured=False)
    screen.progress.update(status(bare))
    assert screen.rounds() == []
    screen.progress.update(status(report(1)))
    assert "accuracy 0.001 (held out)" in screen.stream.getvalue()
    screen.progress.update(status(report(1), report(2, measured=False)))
    assert screen.rounds() == [1]
    screen.progress.update(status(report(1), report(2, measured=False), report(3, measured=False)))
    assert screen.rounds() == [1, 2]


def test_all_lines_are_of_one_test_set() -> None:
    screen = Screen()
    on_clients = {"Clients": Evaluation(version=2, examples=9, clients=3, metrics={"accuracy": 0})}
    screen.progress.update(status(report(1), report(2, evaluations=on_clients)))
    assert screen.rounds() == [1]  # round 1 has a held-out figure: that of round 2 will come
    screen.progress.update(status(report(1), report(2)))
    assert screen.stream.getvalue().count("(held out)") == 2


def test_the_initial_model_is_no_round() -> None:
    screen = Screen()
    initial = report(1).model_copy(update={"round": 0, "version": 0})
    screen.progress.update(status(initial))
    screen.progress.update(status(initial, report(1)))
    assert screen.rounds() == [1]


def test_rounds_that_were_too_fast_to_be_seen_are_named() -> None:
    screen = Screen()
    screen.progress.update(status(report(1)))
    screen.progress.update(status(*(report(n) for n in range(2, 31))))
    assert "rounds 2 to 10: " in screen.stream.getvalue()
    assert screen.rounds() == [1, *range(11, 31)]


def test_the_end_tells_what_the_last_poll_missed(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "j")
    with MetricsFile(folder.metrics) as file:
        for number in range(1, 4):
            file.put(report(number))
    screen = Screen()
    screen.progress.update(status(report(1)))
    result = Result(
        run="r",
        job="j",
        outcome="Failed",
        reason="too few clients",
        rounds=3,
        rounds_wanted=10,
        metrics={"Clients": {"loss": 0.5}},
        seconds=125,
        folder=folder.path,
    )
    screen.progress.finish(result)
    assert screen.rounds() == [1, 2, 3]
    assert screen.stream.getvalue().endswith(
        "Failed: too few clients\n"
        "rounds 3/10  loss 0.500 (clients' data)  up 0 B  down 0 B  time 2 min 05 s\n"
    )


def test_lost_clients_are_told_once() -> None:
    screen = Screen()
    for lost in (0, 1, 1, 2):
        screen.progress.update(status(clients_lost=lost, clients_desired=5))
    assert screen.stream.getvalue().splitlines() == ["1 of 5 clients lost", "2 of 5 clients lost"]


def test_joining_is_told_once_and_cannot_steer_the_terminal() -> None:
    screen = Screen()
    for _ in range(3):
        screen.progress.update(status(phase="Joining", message="waiting\x1b[2J [bold]for a/0"))
    assert screen.stream.getvalue() == "Joining: waiting\\x1b[2J [bold]for a/0\n"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress.say("hello")
        progress.update(status(report(1)))
    assert capsys.readouterr() == ("", "")


def test_the_live_view_shows_the_run_and_keeps_the_lines() -> None:
    screen = Screen(terminal=True)
    waiting = tuple(f"a/{n}" for n in range(8))
    with screen.progress as progress:
        progress.update(
            status(
                *(report(n) for n in range(1, 5)),
                round=5,
                metrics={"HeldOut": {"accuracy": 0.931, "loss": 0.23}},
                clients_joined=9,
                clients_desired=10,
                clients_lost=1,
                waiting_for=waiting,
                deadline_s=12,
                eta_s=15,
            )
        )
    shown = screen.stream.getvalue()
    assert "round 5/10" in shown
    assert "eta 15 s" in shown
    assert "▁▃▆█" in shown
    assert (
        "clients 9/10  lost 1  waiting for a/0, a/1, a/2, a/3, a/4 and 3 more, 12 s left" in shown
    )
    assert all(f"round  {n}/10  accuracy" in shown for n in range(1, 5))
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_600, "1.0 MB"),
        (123_456_789, "123 MB"),
        (3e18, "3000 PB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "0.03 s"),
        (2.14, "2.1 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.9312, "0.931"),
        (0.001234, "0.00123"),
        (-12.34, "-12.3"),
        (12345.6, "12,346"),
        (1.5e9, "1.5e+09"),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_sparkline_ends_with_the_last_value_and_fits() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1], 8) == "▅▅"
    assert sparkline([0.0] * 99 + [1.0], 10) == "▁" * 9 + "█"
    assert sparkline([], 10) == ""
