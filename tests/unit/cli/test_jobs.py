"""`fedlog validate`, `schema` and `init` as a person meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedlog import exit_codes
from fedlog.cli.main import app
from fedlog.job.errors import JobError
from fedlog.job.loading import load, loads
from fedlog.job.schema import job_schema

CLASSIC = ("USE_LIGHTWEIGHT_MODEL", "REDUCED_DATA_SIZE", "MODEL_TOPIC", "UPDATE_TOPIC")


@pytest.fixture(autouse=True)
def _no_classic_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in CLASSIC:
        monkeypatch.delenv(variable, raising=False)


def fedlog(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [*map(str, arguments)])


@pytest.fixture
def job(tmp_path: Path) -> Path:
    assert fedlog("init", tmp_path / "my-job").exit_code == exit_codes.OK
    return tmp_path / "my-job" / "job.yaml"


def test_validate_shows_what_the_job_asks_for(job: Path) -> None:
    options = ["--set", "rounds=7", "--set", "stopWhen={value: '0.9', patience: 2}"]
    done = fedlog("validate", job, *options)
    assert done.exit_code == exit_codes.OK
    shown = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert {name: value.strip() for name, value in shown.items()} == {
        "job": "default/my-job",
        "task": "task.py:task",
        "rounds": "7, fewer on accuracy >= 0.9 or no better accuracy in 2 evaluations (HeldOut)",
        "clients": "5 (site-a 3, site-b 2)",
        "per round": "every joined client",
        "quorum": "2, below it: Retry",
        "training": "5 epochs, batch 10, learning rate 0.1, Constant",
        "strategy": "FedAvg",
        "test sets": "HeldOut, Clients, every round",
    }


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("participation.clientsPerRound=3", "per round:  3, Random"),
        ("participation.fraction=0.5", "per round:  0.5 of the clients, Random"),
        ("evaluation={every: 2}", "test sets:  Clients, every 2 rounds"),
        ("evaluation={every: 0}", "test sets:  Clients, only the last version"),
        ("stopWhen={metric: loss, mode: Min, value: '0.1'}", "loss <= 0.1 (HeldOut)"),
    ],
)
def test_summary_follows_the_job(job: Path, override: str, line: str) -> None:
    assert line in fedlog("validate", job, "--set", override).stdout


def test_resolved_is_the_same_job_with_its_defaults(job: Path) -> None:
    done = fedlog("validate", job, "--resolved", "--set", "rounds=7")
    again = loads(done.stdout).job
    assert again == load(job, overrides=["rounds=7"]).job
    assert "roundTimeoutSeconds: 600" in done.stdout


def test_validate_hears_the_classic_variables(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_TOPIC", "models")
    assert "model: models" in fedlog("validate", job, "--resolved").stdout


def test_a_wrong_file_ends_with_the_usage_code_and_no_stack_trace(job: Path) -> None:
    job.write_text(job.read_text().replace("rounds: 10", "rounds: ten"))
    done = subprocess.run(
        [sys.executable, "-m", "fedlog", "validate", str(job)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")
    assert 'spec.rounds\n  found:   "ten"' in done.stderr
    assert "Traceback" not in done.stderr


def test_schema_is_printed_as_json() -> None:
    done = fedlog("schema")
    assert done.exit_code == exit_codes.OK
    assert json.loads(done.stdout) == job_schema()


def test_init_says_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    done = fedlog("init", folder, "--template", "sklearn")
    assert done.exit_code == exit_codes.OK
    assert done.stdout.splitlines()[-1] == f"next: fedlog run '{folder}/job.yaml'"
    assert sorted(file.name for file in folder.iterdir()) == ["job.yaml", "task.py"]


def test_init_without_arguments_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedlog("init").exit_code == exit_codes.OK
    assert load(Path("my-job/job.yaml")).job.metadata.name == "my-job"


@pytest.mark.parametrize(
    ("folder", "name"), [("My Job!", "my-job"), ("___", "my-job"), ("x" * 60, "x" * 40)]
)
def test_the_job_is_named_after_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    fedlog("init", tmp_path / folder)
    assert load(tmp_path / folder / "job.yaml").job.metadata.name == name


def test_a_name_that_is_not_allowed_writes_nothing(tmp_path: Path) -> None:
    done = fedlog("init", tmp_path / "new", "--name", "Bad_Name")
    assert isinstance(done.exception, JobError)
    assert "name: bad-name" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_replaced_with_force_alone(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("mine")
    done = fedlog("init", tmp_path, "--name", "a")
    assert done.exit_code == exit_codes.USAGE
    assert "task.py is already in" in done.stderr
    assert "--force" in done.stderr
    assert (task.read_text(), [f.name for f in tmp_path.iterdir()]) == ("mine", ["task.py"])

    assert fedlog("init", tmp_path, "--name", "a", "--force").exit_code == exit_codes.OK
    assert "KerasTask" in task.read_text()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = fedlog("init", tmp_path / "file")
    assert done.exit_code == exit_codes.USAGE
    assert "is a file, not a folder" in done.stderr
