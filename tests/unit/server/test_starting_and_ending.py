"""Who may start a run, what a start leaves behind, and who writes the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from fedlog.job.environment import BOOTSTRAP_SERVERS, MODEL_TOPIC
from fedlog.job.errors import JobError
from fedlog.server import FederatedServer
from fedlog.server.errors import InitialModelError, TerminatedError
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import read_metrics
from fedlog.transport.errors import BrokerUnavailableError
from fedlog.transport.memory import MemoryTransport, _MemoryReader
from fedlog.wire import records
from processes import until
from unit.server.by_hand import SITES, Bench, make_job


def test_a_head_far_down_the_journal_is_found(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(bench.folder, rounds=60)
    first = bench.serve(job)
    bench.join(*SITES)
    for number in range(1, 4):
        work = bench.asked(number)
        for client in SITES:
            bench.update(client, work)
    bench.asked(4)
    first.server.stop()
    first.wait()
    bench._servers.clear()
    partition = log._topics[bench.names.journal][1][0]
    heads = [entry for entry in partition.entries if entry.record.key == b"head"]
    for old in heads[:-1]:  # as a broker does that compacts
        partition.entries.remove(old)
    poll = _MemoryReader.poll
    monkeypatch.setattr(_MemoryReader, "poll", lambda self, wait_s: poll(self, wait_s, 1))
    bench.serve(job)
    again = bench.hear(records.Announced, lambda a: a.epoch == 2)
    assert again.version == 3


def test_the_verdict_stands_where_topics_cannot_be_deleted(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(names: Iterable[str]) -> None:
        raise BrokerUnavailableError("nobody answers")

    monkeypatch.setattr(log, "delete_topics", nobody)
    running = bench.serve(make_job(bench.folder, rounds=1))
    bench.play(1)
    assert running.verdict().outcome == "Complete"
    assert Result.load(bench.output.path).outcome == "Complete"


def test_a_folder_that_is_used_again_holds_the_new_run_alone(tmp_path: Path) -> None:
    output = tmp_path / "same"
    for name, rounds in (("first", 3), ("second", 1)):
        bench = Bench(tmp_path, MemoryTransport(), run=name)
        job = make_job(tmp_path, rounds=rounds, output={"checkpointEvery": 1})
        running = bench.serve(job, output=output)
        bench.play(rounds)
        running.verdict()
        (output / "report.html").write_text("of this run", encoding="utf-8")
        (output / "checkpoints" / "mine.txt").write_text("kept", encoding="utf-8")
    bench = Bench(tmp_path, MemoryTransport(), run="third")
    bench.serve(make_job(tmp_path, rounds=2, output={"checkpointEvery": 1}), output=output)
    bench.join(*SITES)
    bench.asked(1)
    bench.end()
    assert sorted(p.name for p in output.iterdir()) == ["checkpoints", "job.yaml", "metrics.jsonl"]
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["mine.txt"]
    assert yaml.safe_load((output / "job.yaml").read_text())["spec"]["rounds"] == 2
    assert [report.round for report in read_metrics(output / "metrics.jsonl")] == [0]


SLOW = """
import time
from pathlib import Path


class Task:
    def model(self, parameters, seed):
        Path(parameters["started"]).touch()
        time.sleep(120)

    def data(self, partition, parameters): ...


task = Task()
"""


def test_a_server_that_makes_the_first_model_ends_when_asked(bench: Bench) -> None:
    (bench.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    started = bench.folder / "started"
    job = make_job(bench.folder, task="slow.py:task", parameters={"started": str(started)})
    running = bench.serve(job, made=False)
    until(started.exists, "the task's start")
    asked = time.monotonic()
    running.server.stop()
    with pytest.raises(TerminatedError):
        running.verdict()
    assert time.monotonic() - asked < 5


BROKEN = """
class Task:
    def model(self, parameters, seed):
        raise ValueError("no model")


task = Task()
"""


def test_a_task_that_fails_leaves_no_topic(bench: Bench, log: MemoryTransport) -> None:
    (bench.folder / "broken.py").write_text(BROKEN, encoding="utf-8")
    job = make_job(bench.folder, task="broken.py:task")
    with pytest.raises(InitialModelError):
        bench.serve(job, made=False).verdict()
    assert log._topics == {}


def test_a_round_that_does_not_fit_into_a_message_is_refused_before_anything_is_made(
    bench: Bench, log: MemoryTransport
) -> None:
    job = make_job(
        bench.folder,
        clients=[{"name": "site", "replicas": 2000}],
        communication={"maxMessageBytes": 70_000},
    )
    with pytest.raises(JobError, match=r"maxMessageBytes[\s\S]*clientsPerRound"):
        bench.serve(job).verdict()
    assert log._topics == {}


def test_the_environment_beats_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL_TOPIC, "my-models")
    monkeypatch.setenv(BOOTSTRAP_SERVERS, "elsewhere:1")
    job = make_job(tmp_path)
    server = FederatedServer(job, transport=MemoryTransport())
    assert server._names.model == "my-models"
    assert server._job.spec.kafka.bootstrap_servers == "elsewhere:1"
    told = FederatedServer(job, bootstrap_servers="here:1", transport=MemoryTransport())
    assert told._names.model != "my-models"  # whoever names the broker has resolved the job
