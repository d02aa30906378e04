"""A whole job, server and workers, over every log: in memory, embedded broker, Apache Kafka."""

from __future__ import annotations

import json
import secrets
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedlog import exit_codes
from fedlog.client.worker import Worker
from fedlog.job.loading import JobFile, loads
from fedlog.server import FederatedServer
from fedlog.server.errors import TerminatedError
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.transport.base import TopicSpec, Transport
from fedlog.transport.topics import run_id, topic_names
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode
from processes import until

DEADLINE_S = 90.0
BULK = 200_000  # bytes: larger than what travels inside a record


class Federation:
    """Starts server and workers of one job in threads; `end` stops whatever still runs."""

    def __init__(self, folder: Path, connect: Callable[[], Transport]) -> None:
        self.folder, self.connect = folder, connect
        self.run = secrets.token_hex(4)
        self._pool = ThreadPoolExecutor(32)
        self._workers: list[Worker] = []
        self.servers: list[FederatedServer] = []

    def job(self, *, clients: int = 3, size: int = 4096, rounds: int = 3, **spec: Any) -> JobFile:
        document = {
            "apiVersion": "fedlog.dev/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "noop"},
            "spec": {
                "task": {
                    "entrypoint": "fedlog.tasks.noop:task",
                    "parameters": {"sizeBytes": size},
                },
                "rounds": rounds,
                "clients": [{"name": "site", "replicas": clients}],
                **spec,
            },
        }
        return loads(yaml.safe_dump(document), path=self.folder / "job.yaml")

    def server(self, job: JobFile, **options: Any) -> Future[Result]:
        output = self.folder / f"out-{self.run}"
        server = FederatedServer(
            job, run=self.run, transport=self.connect(), output=output, **options
        )
        self.servers.append(server)
        return self._pool.submit(server.run)

    def worker(self, job: JobFile, clients: Sequence[str]) -> Future[int]:
        worker = Worker(job, clients, run=self.run, transport=self.connect())
        self._workers.append(worker)
        return self._pool.submit(worker.run)

    def all(self, job: JobFile) -> Result:
        """Run the job with one worker per client, to its end."""
        workers = [self.worker(job, [client]) for client in job.job.spec.client_ids()]
        result = self.server(job).result(DEADLINE_S)
        assert [worker.result(DEADLINE_S) for worker in workers] == [exit_codes.OK] * len(workers)
        return result

    @property
    def output(self) -> RunFolder:
        return RunFolder(self.folder / f"out-{self.run}")

    def status(self) -> dict[str, Any]:
        until(lambda: self.servers[-1].address is not None, "the status port")
        with urllib.request.urlopen(f"{self.servers[-1].address}/status", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def end(self) -> None:
        for worker in self._workers:
            worker.stop(exit_codes.TERMINATED, "the test is over")
        for server in self.servers:
            server.stop()
        self._pool.shutdown()


@pytest.fixture
def federation(tmp_path: Path, connect: Callable[[], Transport]) -> Iterator[Federation]:
    made = Federation(tmp_path, connect)
    yield made
    made.end()


@pytest.mark.parametrize("size", [4096, BULK], ids=["inside-records", "in-chunks"])
@pytest.mark.parametrize("compression", ["None", "Zstd"])
def test_every_update_of_every_round_is_in_the_model(
    federation: Federation, size: int, compression: str
) -> None:
    job = federation.job(
        size=size, communication={"compression": compression, "maxMessageBytes": 70_000}
    )
    result = federation.all(job)

    assert (result.outcome, result.rounds) == ("Complete", 3)
    assert result.participation == {"site/0": 3, "site/1": 3, "site/2": 3}
    payload = federation.output.model.read_bytes()
    (weights,) = decode(payload, Limits.for_model(len(payload))).values()
    # Every client adds 1/1024 in every round, so does their mean; exact in float32.
    assert np.array_equal(weights, np.full(size // 4, 3 / 1024, np.float32))
    reports = read_metrics(federation.output.metrics)
    assert [report.round for report in reports] == [0, 1, 2, 3]
    assert [report.accepted for report in reports] == [0, 3, 3, 3]
    assert [report.metric("weight", "Clients") for report in reports] == [
        version / 1024 for version in range(4)
    ]
    raw = reports[1].bytes_raw_up
    assert raw > 3 * size
    assert (reports[1].bytes_up < raw) == (compression == "Zstd")


def test_nothing_is_left_of_a_run_that_deletes_and_everything_of_one_that_retains(
    federation: Federation,
) -> None:
    log = federation.connect()
    for policy in ("Delete", "Retain"):
        federation.run = secrets.token_hex(4)
        topics = {"deletionPolicy": policy, "partitions": 2}
        job = federation.job(size=BULK, kafka={"topics": topics})
        federation.all(job)
        names = topic_names(job.job, run_id(job.job, federation.run))
        left = [log.partitions(name) is not None for name in vars(names).values()]
        assert left == [policy == "Retain"] * 5


def test_topics_that_were_there_before_are_neither_deleted_nor_trimmed(
    federation: Federation,
) -> None:
    log = federation.connect()
    mine, foreign = f"updates-{federation.run}", f"somebody-elses-{federation.run}"
    names = topic_names(federation.job().job, run_id(federation.job().job, federation.run))
    same_prefix = f"{names.control}.other"
    before = [mine, foreign, same_prefix, names.model]
    log.create_topics([TopicSpec(topic) for topic in before])
    writer = log.writer()
    for topic in before:
        writer.send(topic, b"precious").result(10)

    job = federation.job(size=BULK, rounds=4, kafka={"topics": {"updates": mine}})
    federation.all(job)

    for topic in before:
        reader = log.reader(topic, start=0)
        found = reader.poll(5)
        reader.close()
        assert (found[0].offset, found[0].value) == (0, b"precious"), topic
    writer.close()


def test_a_client_creates_no_topic(federation: Federation) -> None:
    log = federation.connect()
    job = federation.job()
    worker = federation.worker(job, ["site/0"])
    names = topic_names(job.job, run_id(job.job, federation.run))
    assert log.partitions(names.control, 1.5) is None
    assert not worker.done()
    assert all(log.partitions(name) is None for name in vars(names).values())


def test_below_quorum_says_so_and_fails_as_on_timeout_asks(federation: Federation) -> None:
    participation = {
        "minClients": 3,
        "joinTimeoutSeconds": 1,
        "onTimeout": "Fail",
    }
    job = federation.job(participation=participation)
    worker = federation.worker(job, ["site/0"])
    result = federation.server(job).result(DEADLINE_S)
    assert (result.outcome, result.rounds) == ("Failed", 0)
    assert "1 of 3 clients joined within 1 s, minClients is 3" in result.reason
    assert worker.result(DEADLINE_S) == exit_codes.OK
    assert Result.load(federation.output.path).outcome == "Failed"


def test_status_tells_what_is_waited_for(federation: Federation) -> None:
    job = federation.job()
    federation.server(job)
    federation.worker(job, ["site/1"])
    until(lambda: federation.status()["clients_joined"] == 1, "the client's joining")
    status = federation.status()
    assert status["phase"] == "Joining"
    assert status["waiting_for"] == ["site/0", "site/2"]
    assert 0 < status["deadline_s"] <= 120


def test_the_best_version_and_checkpoints_are_kept(federation: Federation) -> None:
    job = federation.job(
        rounds=4,
        output={"keepBest": True, "checkpointEvery": 2},
        stopWhen={"metric": "weight", "value": "100"},
    )
    result = federation.all(job)
    kept = sorted(path.name for path in federation.output.checkpoints.iterdir())
    assert kept == [
        "best.safetensors",
        "version-000002.safetensors",
        "version-000004.safetensors",
    ]
    assert result.best is not None
    assert (result.best.version, result.best.value) == (4, 4 / 1024)
    best = federation.output.path / str(result.best.model)
    assert best.read_bytes() == federation.output.model.read_bytes()


def test_a_run_stops_as_soon_as_its_condition_is_met(federation: Federation) -> None:
    job = federation.job(rounds=50, stopWhen={"metric": "weight", "value": "0.00195"})
    result = federation.all(job)
    assert (result.outcome, result.rounds) == ("Complete", 2)
    assert "weight" in result.reason


def test_a_run_that_is_over_gives_its_verdict_again(federation: Federation) -> None:
    job = federation.job(kafka={"topics": {"deletionPolicy": "Retain"}})
    first = federation.all(job)
    again = federation.server(job).result(DEADLINE_S)
    same = {"seconds", "versions", "folder"}
    assert again.model_dump(exclude=same) == first.model_dump(exclude=same)


@pytest.mark.parametrize("size", [4096, BULK], ids=["inside-records", "in-chunks"])
def test_a_new_server_goes_on_and_every_update_counts_once(
    federation: Federation, size: int
) -> None:
    """Twice the server ends in mid-run; its clients go on, and every update counts."""
    job = federation.job(rounds=60, size=size, communication={"maxMessageBytes": 70_000})
    running = federation.server(job)
    workers = [federation.worker(job, [client]) for client in job.job.spec.client_ids()]
    for version in (5, 10):
        until(lambda v=version: federation.status()["round"] > v, f"version {version}")
        federation.servers[-1].stop()
        with pytest.raises(TerminatedError):
            running.result(DEADLINE_S)
        running = federation.server(job)
    result = running.result(DEADLINE_S)
    assert (result.outcome, result.rounds) == ("Complete", 60)
    assert set(result.participation.values()) == {60}
    assert [worker.result(DEADLINE_S) for worker in workers] == [exit_codes.OK] * len(workers)
    payload = federation.output.model.read_bytes()
    (weights,) = decode(payload, Limits.for_model(len(payload))).values()
    assert np.array_equal(weights, np.full(size // 4, 60 / 1024, np.float32))
    reports = read_metrics(federation.output.metrics)
    assert [report.round for report in reports] == list(range(61))
    assert {report.accepted for report in reports[1:]} == {3}


def test_a_server_that_is_asked_to_end_has_no_verdict(federation: Federation) -> None:
    job = federation.job()
    running = federation.server(job)
    until(lambda: federation.servers[-1].address is not None, "the status port")
    federation.servers[-1].stop()
    with pytest.raises(TerminatedError):
        running.result(DEADLINE_S)
    assert not federation.output.result.exists()


def test_garbage_on_events_is_counted_and_changes_nothing(federation: Federation) -> None:
    job = federation.job()
    names = topic_names(job.job, run_id(job.job, federation.run))
    running = federation.server(job)
    log = federation.connect()
    assert log.partitions(names.events, 20) == 1
    writer = log.writer()
    for value in (b"", b"FLR1", b"\xff" * 300, b"FLR1\x02\x00\x00\x00{}"):
        writer.send(names.events, value).result(10)
    workers = [federation.worker(job, [client]) for client in job.job.spec.client_ids()]
    assert running.result(DEADLINE_S).outcome == "Complete"
    assert [worker.result(DEADLINE_S) for worker in workers] == [0, 0, 0]
    first = read_metrics(federation.output.metrics)[1]
    assert (first.accepted, first.refused) == (3, {})
    assert first.refused_records == {"malformed": 4}
    writer.close()


def test_bulk_on_the_log_is_bounded_by_a_few_rounds(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlog.server.retention.GENERATION_BYTES", BULK)
    job = federation.job(size=BULK, rounds=12, kafka={"topics": {"deletionPolicy": "Retain"}})
    federation.all(job)

    log = federation.connect()
    names = topic_names(job.job, run_id(job.job, federation.run))
    held = 0
    for topic in (names.model, names.updates):
        for generation in [topic, *(f"{topic}.{number}" for number in range(1, 40))]:
            held += _bytes_held(log, generation)
    one_round = 4 * BULK  # a model and three updates
    assert held < 5 * one_round


def _bytes_held(log: Transport, topic: str) -> int:
    held = 0
    for partition in range(log.partitions(topic) or 0):
        reader = log.reader(topic, partition=partition, start=0)
        end = reader.end_offset()
        while reader.position < end and (found := reader.poll(2)):
            held += sum(len(record.value) for record in found)
        reader.close()
    return held


def test_a_straggler_is_folded_in_the_next_round(federation: Federation) -> None:
    """site/2 is played by hand: it trains on when round 1 is closed without it."""
    participation = {
        "minClients": 2,
        "clientsPerRound": 3,
        "roundTimeoutSeconds": 2,
        "lateUpdates": "FoldNext",
    }
    job = federation.job(participation=participation, rounds=200_0)
    gate = threading.Event()
    slow = Worker(job, ["site/2"], run=federation.run, transport=federation.connect())
    federation._workers.append(slow)
    publish = slow._publish

    def wait_then_publish(work: Any) -> None:
        gate.wait(DEADLINE_S)
        publish(work)

    slow._publish = wait_then_publish  # type: ignore[method-assign]  # a slow network
    federation._pool.submit(slow.run)
    federation.server(job)
    for client in ("site/0", "site/1"):
        federation.worker(job, [client])
    until(lambda: _reports(federation)[1:], "a round without the straggler")
    gate.set()
    until(lambda: any(r.late for r in _reports(federation)), "its late update")
    late = next(r for r in _reports(federation) if r.late)
    assert late.participants[-1] == "site/2"
    assert late.late == 1


def _reports(federation: Federation) -> list[Any]:
    return read_metrics(federation.output.metrics)
