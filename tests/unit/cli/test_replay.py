"""`fedlog replay` as a person meets it, over a run that really took place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from fedlog import exit_codes
from fedlog.cli.main import app
from fedlog.cli.replay import parse_strategy
from fedlog.server.errors import ReplayError
from fedlog.transport.archive import ArchiveTransport
from fedlog.transport.errors import BrokerUnavailableError
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records
from unit.server.by_hand import SITES, Bench, make_job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two rounds; site/1 has three examples for every one of site/0."""
    bench = Bench(tmp_path_factory.mktemp("run"), MemoryTransport())
    running = bench.serve(make_job(bench.folder, kafka={"topics": {"retain": "All"}}))
    bench.join(*SITES)
    for number in (1, 2):
        work = bench.asked(number)
        for client, value, examples in zip(SITES, (0.5, -0.25), (1, 3), strict=True):
            bench.update(client, work, value=value, examples=examples)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
    return bench.output.path


def replay(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        app, ["replay", *map(str, arguments)], env={"BOOTSTRAP_SERVERS": "", "COLUMNS": "200"}
    )


def test_a_line_for_each_round_and_a_summary(run: Path) -> None:
    done = replay(run)
    assert done.exit_code == 0, done.output
    first, *rounds, last = done.output.splitlines()
    assert first == f"{ArchiveTransport(run / 'log.sqlite').run}: 2 rounds"
    assert [line.split()[:5] for line in rounds] == [
        ["round", "1/2", "ok", "2", "updates"],
        ["round", "2/2", "ok", "2", "updates"],
    ]
    assert last == "all 2 rounds give the version that the journal names"


def test_who_weighs_how_much_under_another_rule(run: Path, tmp_path: Path) -> None:
    """(1 * 0.5 + 3 * -0.25) / 4 = -0.0625 a weight, 1024 weights: a step of 2; half of it is 1."""
    path = tmp_path / "half.safetensors"
    done = replay(
        run, "--strategy", "FedAvg:serverLearningRate=0.5", "--round", "1", "--save", path
    )
    assert done.exit_code == 0, done.output
    assert [" ".join(line.split()) for line in done.output.splitlines()[2:-1]] == [
        "the other rule is 1 away; the round's step was 2",
        "site/1 75.0 % 3 examples",
        "site/0 25.0 % 1 example",
    ]
    assert path.stat().st_size > 4096


def test_json(run: Path) -> None:
    done = replay(run, "--output", "json", "--without", "site/1")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [each["verdict"] for each in told["rounds"]] == ["ok", "ok"]
    assert told["rounds"][0]["digest"] == told["rounds"][0]["committed"]
    assert told["rounds"][1]["other"]["weighed"] == [
        {"client": "site/0", "examples": 1, "share": 1.0}
    ]


def test_a_run_that_is_not_well_ends_with_1(run: Path, tmp_path: Path) -> None:
    """A log without its events has nothing to fold."""
    import shutil
    import sqlite3

    shutil.copy(run / "log.sqlite", tmp_path / "log.sqlite")
    database = sqlite3.connect(tmp_path / "log.sqlite")
    database.execute("DELETE FROM records WHERE topic LIKE '%.events' AND offset > 2")
    database.commit()
    database.close()
    done = replay(tmp_path)
    assert done.exit_code == exit_codes.FAILED
    assert "not there" in done.output
    assert "round 2 is not complete: " in done.output
    assert done.output.splitlines()[-1].endswith("of 2 rounds ok")


def test_a_folder_without_a_log_names_the_ways_to_have_one(tmp_path: Path) -> None:
    done = replay(tmp_path)
    assert isinstance(done.exception, ReplayError)
    assert "topics.retain: All" in str(done.exception)
    assert "--run-id" in str(done.exception)


def test_a_broker_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    done = replay("--broker", "127.0.0.1:1", "--run-id", "fedlog.default.a.b")
    assert isinstance(done.exception, BrokerUnavailableError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Median", "names: FedAvg"),
        ("FedAvg:serverLearningRate", "is not PARAM=VALUE"),
        ("FedAvg:serverLearningRate=0", "serverLearningRate"),
        ("FedAvg:momentum=1", "momentum"),
    ],
)
def test_a_wrong_rule_is_a_usage_error(text: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        parse_strategy(text)


def test_a_rule_is_written_as_in_a_job() -> None:
    assert str(parse_strategy("FedAvg").parameters.server_learning_rate) == "1"
    spec = parse_strategy("FedAvg:serverLearningRate=0.5")
    assert str(spec.parameters.server_learning_rate) == "0.5"
