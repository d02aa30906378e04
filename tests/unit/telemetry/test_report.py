from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlog.cli.report import report as report_command
from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.report import write_report
from fedlog.telemetry.result import Best, Result
from fedlog.telemetry.run_folder import MetricsFile, RunFolder
from fedlog.telemetry.status import Evaluation, RoundReport

HOSTILE = "</script><img src=http://evil.example/x onerror=alert(1)>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """What a browser would make of the page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == [], "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def lines(self, colour: str) -> list[int]:
        """Points of every polyline of one colour."""
        return [
            len(attributes["points"].split())
            for tag, attributes in self.tags
            if tag == "polyline" and colour in attributes["class"].split()
        ]

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def a_round(number: int, metrics: dict[str, float] | None = None, **facts: object) -> RoundReport:
    evaluations = {}
    if metrics:
        evaluation = Evaluation(version=number, examples=1000, clients=1, metrics=metrics)
        evaluations = {"HeldOut": evaluation}
    return RoundReport.model_validate(
        {
            "round": number,
            "version": number,
            "digest": f"sha256:{number}",
            "seconds": 2.1,
            "wanted": 3,
            "selected": 3,
            "accepted": 3,
            "participants": ("a/0", "a/1", "a/10"),
            "train_metrics": {"loss": 1 / number},
            "evaluations": evaluations,
            "bytes_up": 1_200_000,
            "bytes_down": 300_000,
            "learning_rate": 0.1,
            **facts,
        }
    )


def learned(rounds: int) -> list[RoundReport]:
    return [a_round(n, {"accuracy": 1 - 1 / (n + 1), "loss": 1 / n}) for n in range(1, rounds + 1)]


def write(
    tmp_path: Path,
    reports: list[RoundReport],
    *,
    job: str = "kind: FederatedJob\n",
    ended: bool = True,
    **facts: object,
) -> Page:
    folder = RunFolder.create(tmp_path, "digits")
    folder.write_job(job)
    with MetricsFile(folder.metrics) as file:
        for report in reports:
            file.put(report)
    if ended:
        final = reports[-1].evaluations.get("HeldOut") if reports else None
        folder.write_result(
            Result.model_validate(
                {
                    "run": "fedlog.default.digits.x",
                    "job": "digits",
                    "outcome": "Complete",
                    "reason": "all rounds are done",
                    "rounds": len(reports),
                    "rounds_wanted": 10,
                    "metrics": {"HeldOut": final.metrics} if final else {},
                    "participation": {"a/10": 2, "a/0": 3, "a/1": 0},
                    "digest": "sha256:abc",
                    "seconds": 21.0,
                    "versions": {"fedlog": "0.1.0"},
                    **facts,
                }
            )
        )
    path = write_report(folder.path)
    assert path == folder.report
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("rounds", [1, 2, 10, 61, 1000])
def test_every_round_is_in_the_curves_and_in_the_table(tmp_path: Path, rounds: int) -> None:
    page = write(tmp_path, learned(rounds))
    # held out accuracy, held out loss, bytes up, seconds of a round
    assert page.lines("c0") == [rounds] * 4
    assert page.lines("c2") == [rounds]  # the training's loss
    assert page.count("svg") == 5
    assert page.count("tr") == 1 + rounds + 1 + 3


def test_the_headline_names_the_test_set(tmp_path: Path) -> None:
    page = write(tmp_path, learned(9))
    assert "digits Complete all rounds are done" in page.text
    assert "accuracy 0.900 held out, 1,000 examples" in page.text
    assert "rounds 9 of 10" in page.text
    assert "time 21 s" in page.text
    assert "clients 2 of 3 took part" in page.text
    assert "sha256:abc" in page.text
    assert "fedlog 0.1.0" in page.text


def test_nothing_outside_is_referred_to(tmp_path: Path) -> None:
    page = write(tmp_path, learned(10))
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys() or tag == "i"
    text = (tmp_path / "latest" / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", text)


def test_what_others_wrote_is_text_and_nothing_else(tmp_path: Path) -> None:
    report = a_round(
        1,
        {HOSTILE[:50]: 0.5},
        refused={HOSTILE: 1},
        participants=(HOSTILE,),
        digest=HOSTILE,
        train_metrics={},
    )
    best = Best(version=1, digest="d", metric=HOSTILE, test_set="HeldOut", value=1, model=HOSTILE)
    page = write(
        tmp_path,
        [report],
        job=HOSTILE,
        run=HOSTILE,
        reason=HOSTILE,
        digest=HOSTILE,
        model=HOSTILE,
        best=best,
        participation={HOSTILE: 1},
        versions={HOSTILE: HOSTILE},
    )
    assert not [tag for tag, _ in page.tags if tag in {"script", "img"}]
    assert page.texts.count(HOSTILE) >= 6
    assert "49" not in page.text.replace("1,000", "")


def test_other_metrics_than_accuracy_have_their_curves(tmp_path: Path) -> None:
    reports = [a_round(n, {"mean_absolute_error": 5 / n, "r2": 0.1 * n}) for n in range(1, 4)]
    page = write(tmp_path, reports)
    assert "Mean absolute error" in page.text
    assert "mean_absolute_error 1.667 held out" in page.text
    assert page.count("svg") == 6  # loss of training, two metrics, clients, data, time


def test_a_run_that_measured_nothing_has_a_report(tmp_path: Path) -> None:
    page = write(tmp_path, [a_round(n, train_metrics={}) for n in range(1, 4)])
    assert page.count("svg") == 3


def test_figures_of_some_rounds_only_make_a_curve(tmp_path: Path) -> None:
    reports = [a_round(n, {"accuracy": 0.1 * n} if n % 3 == 0 else None) for n in range(1, 10)]
    page = write(tmp_path, reports)
    assert page.lines("c0")[0] == 3


def test_the_initial_model_is_a_point_of_the_curves_but_no_round(tmp_path: Path) -> None:
    initial = a_round(1, {"accuracy": 0.1}).model_copy(update={"round": 0, "version": 0})
    page = write(tmp_path, [initial, *learned(3)], rounds=3)
    accuracy, *_, seconds = page.lines("c0")
    assert (accuracy, seconds) == (4, 3)


def test_a_failed_run_without_a_round_has_a_report(tmp_path: Path) -> None:
    page = write(tmp_path, [], outcome="Failed", reason="1 of 5 clients came", digest="")
    assert "digits Failed 1 of 5 clients came" in page.text
    assert "No round was completed." in page.text
    assert page.count("svg") == 0


def test_a_killed_run_has_a_report(tmp_path: Path) -> None:
    page = write(tmp_path, learned(3), ended=False)
    assert "Unfinished" in page.text
    assert "clients 3 of 3 took part" in page.text
    assert "sha256:3" in page.text


def test_clients_are_in_the_order_of_their_indices(tmp_path: Path) -> None:
    page = write(tmp_path, learned(3))
    assert [text for text in page.texts if re.fullmatch(r"a/\d+", text)] == ["a/0", "a/1", "a/10"]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run's folder"):
        write_report(tmp_path)
    with pytest.raises(RunFolderError, match="not a folder"):
        write_report(tmp_path / "missing")


def test_the_command_writes_it_again_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, learned(3))
    path = (tmp_path / "latest").resolve() / "report.html"
    path.unlink()
    report_command(tmp_path / "latest")
    assert capsys.readouterr().out == f"{path}\n"
    assert path.exists()
