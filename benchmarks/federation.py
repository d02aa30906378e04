"""Starts the processes of one federation by hand, so that a benchmark sees each of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedlog.transport.embedded import EmbeddedBroker

DEADLINE_S = 900.0
LOOK_EVERY_S = 0.2  # looking at many processes takes CPU from them


def noop_job(
    size_bytes: int, clients: int, rounds: int, *, partitions: int = 4, **spec: Any
) -> dict[str, Any]:
    """A job whose clients do nothing but send an update of the model's size."""
    return {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "bench"},
        "spec": {
            "task": {
                "entrypoint": "fedlog.tasks.noop:task",
                "parameters": {"sizeBytes": size_bytes},
            },
            "rounds": rounds,
            "participation": {"minClients": clients, "lostAfterSeconds": 120},
            "evaluation": {"every": 0},
            "kafka": {"topics": {"partitions": partitions}},
            "clients": [{"name": "site", "replicas": clients}],
            **spec,
        },
    }


@dataclass
class Measured:
    """rounds: the reports of metrics.jsonl but round 0. Memory in bytes, times in seconds."""

    rounds: list[Mapping[str, Any]]
    server_peak_bytes: int
    broker_peak_bytes: int
    client_cpu_s: float
    server_cpu_s: float
    wall_s: float

    def round_seconds(self, skip: int = 1) -> list[float]:
        return [report["seconds"] for report in self.rounds[skip:]]

    def median_round_s(self, skip: int = 1) -> float:
        return statistics.median(self.round_seconds(skip))


@contextmanager
def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def federate(
    job: Mapping[str, Any],
    workers: Sequence[Sequence[str]],
    broker: EmbeddedBroker,
    folder: Path,
) -> Measured:
    """Run `job` with one server and one process per entry of `workers` (client ids)."""
    folder.mkdir(parents=True)
    job_path = folder / "job.yaml"
    job_path.write_text(yaml.safe_dump(job))
    common = [str(job_path), "--broker", broker.bootstrap_servers, "--run", folder.name[-8:]]
    python = [sys.executable, "-m", "fedlog"]
    output = folder / "out"
    began = time.monotonic()
    server_log = (folder / "server.log").open("wb")
    server = subprocess.Popen(
        [*python, "server", *common, "--output", str(output)], stdout=server_log, stderr=server_log
    )
    processes = [server]
    with _ended(processes), server_log:
        for number, clients in enumerate(workers):
            log = (folder / f"worker-{number}.log").open("wb")
            processes.append(
                subprocess.Popen(
                    [*python, "client", *common, "--clients", ",".join(clients)],
                    stdout=log,
                    stderr=log,
                )
            )
            log.close()
        peak, broker_peak, cpu = 0, 0, {process.pid: 0.0 for process in processes}
        while server.poll() is None:
            if time.monotonic() - began > DEADLINE_S:
                raise TimeoutError(f"not done in {DEADLINE_S:g} s; see {folder}")
            broker_peak = max(broker_peak, broker.rss_bytes())
            for process in processes:
                try:
                    watched = psutil.Process(process.pid)
                    times = watched.cpu_times()
                    cpu[process.pid] = times.user + times.system
                    if process is server:
                        peak = max(peak, _peak_bytes(process.pid))
                except psutil.Error:
                    continue
            time.sleep(LOOK_EVERY_S)
        if server.returncode != 0:
            raise RuntimeError((folder / "server.log").read_text()[-2000:])
        wall = time.monotonic() - began
    lines = (output / "metrics.jsonl").read_text().splitlines()
    reports = {report["round"]: report for report in map(json.loads, lines)}
    return Measured(
        rounds=[reports[number] for number in sorted(reports) if number > 0],
        server_peak_bytes=peak,
        broker_peak_bytes=broker_peak,
        client_cpu_s=sum(cpu[process.pid] for process in processes[1:]),
        server_cpu_s=cpu[server.pid],
        wall_s=wall,
    )


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedlog-bench-") as name:
        yield Path(name)
