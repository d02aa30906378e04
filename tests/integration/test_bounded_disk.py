"""A long run on Apache Kafka: what it holds on the broker's disk and in the server's memory.

How much disk is in use at most, with topics.retain: Resume:

    kept rounds * bytes a round                     what a restart needs, and the round under way
  + partitions written to * segment.bytes           Kafka deletes whole files only
  + delay * rounds a second * bytes a round         what may go, and is still there
  + journal                                         segments before they are compacted, and round/N

Kafka looks every log.retention.check.interval.ms (5 minutes; 1 s here) for files that may go, and
deletes them file.delete.delay.ms (1 s, set by us) later.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from fedlog import exit_codes
from fedlog.server.journal import read_journal
from fedlog.server.replay import Verdict, replay
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder
from fedlog.transport.apache import ApacheKafka
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.reading import read_all
from fedlog.transport.topics import segment_bytes
from processes import until

pytestmark = pytest.mark.apache_kafka

MODEL_BYTES = 10_000_000
CLIENTS = 2
ROUND_BYTES = (1 + CLIENTS) * MODEL_BYTES
CHECK_S = 1.0
DELETE_S = 1.0
KEPT_ROUNDS = 3
"""The round under way, the one before, and the one whose trimming is asked for."""
WRITTEN_PARTITIONS = 1 + CLIENTS  # of model and updates: 4 partitions, and each client has its own
SLACK_S = 1.0  # for the threads that look and delete, on a machine that is busy
JOURNAL_BYTES = 3 * segment_bytes(900_000) + 40_000_000  # and Kafka's own topics
LOOK_EVERY_S = 0.2


def bound_bytes(rounds_a_second: float) -> float:
    """See the module."""
    return (
        KEPT_ROUNDS * ROUND_BYTES
        + WRITTEN_PARTITIONS * segment_bytes(900_000, MODEL_BYTES)
        + (CHECK_S + DELETE_S + SLACK_S) * rounds_a_second * ROUND_BYTES
        + JOURNAL_BYTES
    )


def on_disk(folder: Path) -> int:
    """Blocks in use: Kafka reserves more for its indexes than it fills."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Run:
    """A server, and one worker with both clients."""

    def __init__(self, folder: Path, broker: str, rounds: int) -> None:
        self.folder = folder
        self.output = RunFolder(folder / "output")
        self.name = secrets.token_hex(4)
        job = folder / "job.yaml"
        document = {
            "apiVersion": "fedlog.dev/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "bounded"},
            "spec": {
                "task": {
                    "entrypoint": "fedlog.tasks.noop:task",
                    "parameters": {"sizeBytes": MODEL_BYTES},
                },
                "rounds": rounds,
                "clients": [{"name": "site", "replicas": CLIENTS}],
                "kafka": {"topics": {"deletionPolicy": "Retain"}},
            },
        }
        job.write_text(yaml.safe_dump(document))
        self._common = [str(job), "--broker", broker, "--run", self.name]
        self._started: list[subprocess.Popen[bytes]] = []

    def server(self) -> subprocess.Popen[bytes]:
        return self._start("server", "--output", str(self.output.path))

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start("client", "--clients", ",".join(f"site/{n}" for n in range(CLIENTS)))

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command}-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedlog", command, *self._common, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def round(self) -> int:
        """The last one that was reported; only the file's end is read."""
        try:
            with self.output.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
                *_, last = file.read().splitlines() or [b"{}"]
            return int(json.loads(last).get("round", 0))
        except (FileNotFoundError, json.JSONDecodeError):
            return 0

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()

    def said(self) -> str:
        return "\n".join(
            f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        )


@pytest.fixture
def kafka(kafka_jars: Path) -> Iterator[ApacheKafka]:
    settings = {
        "log.retention.check.interval.ms": str(int(CHECK_S * 1000)),
        "log.initial.task.delay.ms": "0",
        "log.cleaner.backoff.ms": "1000",
    }
    with ApacheKafka(kafka_jars, settings=settings) as broker:
        yield broker


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "rounds", [30, pytest.param(1000, marks=pytest.mark.soak)], ids=["small", "soak"]
)
def test_disk_and_memory_stay_bounded_and_a_new_server_ends_the_run(
    tmp_path: Path, kafka: ApacheKafka, rounds: int, record_property: pytest.RecordProperty
) -> None:
    run = Run(tmp_path, kafka.bootstrap_servers, rounds)
    before = on_disk(kafka.data_dir / "log")
    disk: list[int] = []
    memory: list[int] = []
    try:
        server, worker = run.server(), run.worker()
        watched = psutil.Process(server.pid)
        first_round_at = 0.0
        next_look = time.monotonic()

        def nearly_over() -> bool:
            nonlocal first_round_at, next_look
            assert server.poll() is None, run.said()
            assert worker.poll() is None, run.said()
            if time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + LOOK_EVERY_S
            done = run.round()
            if done:
                first_round_at = first_round_at or time.monotonic()
                disk.append(on_disk(kafka.data_dir / "log") - before)
                memory.append(watched.memory_info().rss)
            return done >= rounds - 3

        until(nearly_over, f"{rounds} rounds", rounds * 6 + 120)
        rate = rounds / (time.monotonic() - first_round_at)
        server.send_signal(signal.SIGKILL)
        server.wait()

        again = run.server()
        assert again.wait(120) == exit_codes.OK, run.said()
        assert worker.wait(60) == exit_codes.OK, run.said()
    finally:
        run.end()

    result = Result.load(run.output.path)
    assert (result.outcome, result.rounds) == ("Complete", rounds)
    third = len(memory) // 3
    early, late = statistics.median(memory[:third]), statistics.median(memory[-third:])
    with_log = KafkaTransport(kafka.bootstrap_servers)
    try:
        journal = read_journal(with_log, f"{result.run}.journal", result.run)
        a_round = statistics.mean(
            len(record.value)
            for record in read_all(with_log, f"{result.run}.journal", committed=True)
            if record.key is not None and record.key.startswith(b"round/")
        )
        replayed = replay(with_log, result.run)
    finally:
        with_log.close()
    figures = (
        f"{rounds} rounds, {rate:.2f} a second, {rounds * ROUND_BYTES / 1e6:.0f} MB written; "
        f"disk at most {max(disk) / 1e6:.0f} MB, bound {bound_bytes(rate) / 1e6:.0f} MB; "
        f"server {early / 1e6:.1f} MB, then {late / 1e6:.1f} MB; "
        f"a round costs {a_round:.0f} bytes of journal"
    )
    print(figures)
    record_property("figures", figures)
    assert max(disk) < bound_bytes(rate), figures
    assert late < 1.05 * early + MODEL_BYTES, figures
    assert sorted(journal.rounds) == list(range(1, rounds + 1))
    # Retain Resume: the last round can still be folded again, the first one is gone.
    assert replayed[-1].verdict is Verdict.OK
    assert replayed[0].verdict is Verdict.NOT_THERE
