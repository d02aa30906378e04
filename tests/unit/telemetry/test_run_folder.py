from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import (
    MetricsFile,
    RunFolder,
    find_run,
    read_metrics,
    write_atomically,
)
from fedlog.telemetry.status import Evaluation, RoundReport

NOON = time.strptime("2026-03-04 12:00:00", "%Y-%m-%d %H:%M:%S")


def report(number: int, accuracy: float | None = None) -> RoundReport:
    evaluations = {}
    if accuracy is not None:
        evaluation = Evaluation(
            version=number, examples=10, clients=1, metrics={"accuracy": accuracy}
        )
        evaluations = {"HeldOut": evaluation}
    return RoundReport(round=number, version=number, digest="d", seconds=1, evaluations=evaluations)


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "runs", "digits", now=NOON)
    second = RunFolder.create(tmp_path / "runs", "digits", now=NOON)
    assert first.path.name == "digits-20260304-120000"
    assert second.path.name == "digits-20260304-120000-2"
    latest = tmp_path / "runs" / "latest"
    assert latest.readlink() == Path(second.path.name)  # relative: the folder can be moved
    assert find_run(latest).path == second.path
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted(
        [first.path.name, second.path.name, "latest"]
    )


def test_latest_is_a_text_file_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuses)
    folder = RunFolder.create(tmp_path, "digits", now=NOON)
    assert (tmp_path / "latest").read_text().strip() == folder.path.name
    assert find_run(tmp_path / "latest").path == folder.path


def test_a_folder_that_somebody_called_latest_stays(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    RunFolder.create(tmp_path, "digits", now=NOON)
    assert not (tmp_path / "latest").is_symlink()


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        RunFolder.create(tmp_path, "../elsewhere")


def test_a_file_in_the_way_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunFolderError, match="runs"):
        RunFolder.create(tmp_path / "runs", "digits")


def test_a_line_is_written_when_the_next_round_is_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.put(report(1))
        assert read_metrics(path) == []
        file.put(report(1, 0.5))
        file.put(report(2))
        assert read_metrics(path) == [report(1, 0.5)]
    assert read_metrics(path) == [report(1, 0.5), report(2)]
    assert len(path.read_text().splitlines()) == 2


def test_late_news_of_a_written_round_replace_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.put(report(1))
        file.put(report(2))
        file.put(report(1, 0.5))
        file.put(report(2, 0.6))
    assert read_metrics(path) == [report(1, 0.5), report(2, 0.6)]


def test_a_line_that_was_cut_short_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = report(1).model_dump_json()
    path.write_text(f"{line}\n{report(2).model_dump_json()[:40]}")
    with MetricsFile(path) as file:  # the server that was started again
        file.put(report(3))
    assert read_metrics(path) == [report(1), report(3)]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("hello\nworld\n")
    with pytest.raises(RunFolderError, match="2 lines"):
        read_metrics(path)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    result = Result(
        run="r",
        job="digits",
        outcome="Complete",
        reason="all rounds done",
        rounds=3,
        metrics={"HeldOut": {"accuracy": 0.9}},
        participation={"a/0": 3},
        model="model.safetensors",
    )
    folder.write_result(result)
    loaded = Result.load(tmp_path / "latest")
    assert loaded.model_copy(update={"folder": None}) == result
    assert loaded.model_path is not None
    assert loaded.model_path.resolve() == folder.model.resolve()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "has not ended"), ("{}", "not a result: run"), ("[1", "not a result: the document")],
    ids=["missing", "incomplete", "torn"],
)
def test_a_result_that_cannot_be_used_says_why(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunFolderError, match=said):
        Result.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
