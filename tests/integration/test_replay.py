"""Runs that real processes made, folded again from the run folder and from the broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedlog
from fedlog.server.replay import Verdict, replay
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.transport.archive import ArchiveTransport, export_log
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.topics import TopicNames

ROUNDS = 4


def job(size: int, **topics: str) -> dict[str, Any]:
    return {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "replayed"},
        "spec": {
            "task": {"entrypoint": "fedlog.tasks.noop:task", "parameters": {"sizeBytes": size}},
            "rounds": ROUNDS,
            "clients": [{"name": "site", "replicas": 3}],
            "communication": {"compression": "Zstd"},
            "kafka": {"topics": {"retain": "All", **topics}},
        },
    }


def folded(transport: Any, run: str) -> list[str | None]:
    found = replay(transport, run)
    assert [each.verdict for each in found] == [Verdict.OK] * ROUNDS, found
    return [each.digest for each in found]


def reported(folder: Path) -> list[str | None]:
    return [each.digest for each in read_metrics(RunFolder(folder).metrics) if each.round]


def command(*arguments: str | Path) -> str:
    """What `fedlog replay` prints; every round must be well."""
    done = subprocess.run(
        [sys.executable, "-m", "fedlog", "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [1000, 3_000_000], ids=["inside records", "in chunks"])
def test_a_local_run_is_replayed_from_its_folder(tmp_path: Path, size: int) -> None:
    """Its broker is gone: the folder has it all."""
    result = fedlog.run(job(size), workers=1, quiet=True, runs=tmp_path)
    folder = RunFolder(result.folder)
    archive = ArchiveTransport(folder.log)
    assert folded(archive, result.run) == reported(folder.path)
    assert f"all {ROUNDS} rounds give the version that the journal names" in command(folder.path)


def test_a_run_whose_topics_stay_is_replayed_from_the_broker(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    result = fedlog.run(
        job(3_000_000, deletionPolicy="Retain"),
        broker=broker.bootstrap_servers,
        workers=1,
        quiet=True,
        runs=tmp_path,
    )
    told = command("--broker", broker.bootstrap_servers, "--run-id", result.run, "--output", "json")
    assert [each["digest"] for each in json.loads(told)["rounds"]] == reported(result.folder)
    transport = KafkaTransport(broker.bootstrap_servers)
    try:
        digests = folded(transport, result.run)
        parts = ("control", "model", "updates", "events", "journal")
        names = TopicNames(*(f"{result.run}.{part}" for part in parts))
        path = tmp_path / "log.sqlite"
        export_log(transport, names, result.run, path, chunk_bytes=900_000)
        transport.delete_topics(vars(names).values())
    finally:
        transport.close()
    assert digests == reported(result.folder) == folded(ArchiveTransport(path), result.run)
