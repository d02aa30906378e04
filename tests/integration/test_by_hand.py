"""`fedlog server` and `fedlog client` as separate processes against a broker that runs already."""

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedlog import exit_codes
from fedlog.telemetry.run_folder import read_metrics
from fedlog.telemetry.status import RoundReport
from fedlog.transport.embedded import EmbeddedBroker
from processes import until

ROUNDS = 30


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


class ByHand:
    """One job whose processes are started one by one; `run` tells it from the others."""

    def __init__(self, folder: Path, broker: str, run: str, rounds: int = ROUNDS) -> None:
        self.folder = folder
        self.output = folder / "output"
        self._common = ["--broker", broker, "--run", run]
        self._job = folder / "job.yaml"
        self._processes: list[subprocess.Popen[bytes]] = []
        spec = {
            "task": {
                "entrypoint": "fedlog.tasks.digits:task",
                "parameters": {"model": "sklearn"},
            },
            "rounds": rounds,
            "partitioning": {"name": "Iid"},
            "training": {"localEpochs": 3, "batchSize": 5},
            # A client that goes without a word is given up soon; the round itself is patient.
            "participation": {
                "minClients": 1,
                "joinTimeoutSeconds": 2,
                "heartbeatSeconds": 1,
                "lostAfterSeconds": 3,
                "roundTimeoutSeconds": 60,
            },
            "clients": [{"name": "site", "replicas": 2}],
        }
        document = {
            "apiVersion": "fedlog.dev/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "by-hand"},
            "spec": spec,
        }
        self._job.write_text(yaml.safe_dump(document))

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{command}-{len(self._processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fedlog",
                    command,
                    str(self._job),
                    *self._common,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "FEDLOG_THREADS": "1"},
            )
        self._processes.append(process)
        return process

    def server(self) -> subprocess.Popen[bytes]:
        return self._start("server", "--output", str(self.output))

    def client(self, index: int) -> subprocess.Popen[bytes]:
        return self._start("client", "--group", "site", "--index", str(index))

    def reports(self) -> list[RoundReport]:
        return [r for r in read_metrics(self.output / "metrics.jsonl") if r.round > 0]

    def last_participants(self) -> set[str]:
        reports = self.reports()
        return set(reports[-1].participants) if reports else set()

    def result(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.output / "result.json").read_text())
        return found

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def said(self) -> str:
        return "\n".join(
            f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        )


@pytest.fixture
def by_hand(tmp_path, broker):
    made = []

    def make(rounds: int = ROUNDS) -> ByHand:
        made.append(ByHand(tmp_path, broker, secrets.token_hex(4), rounds))
        return made[-1]

    yield make
    for job in made:
        job.end()


def test_a_client_that_starts_before_the_server_waits_and_joins(by_hand):
    job = by_hand(rounds=2)
    first = job.client(0)
    until(lambda: "waiting for the server" in job.said(), "the client's waiting")
    server = job.server()
    second = job.client(1)
    assert server.wait(90) == exit_codes.OK, job.said()
    assert (first.wait(30), second.wait(30)) == (exit_codes.OK, exit_codes.OK), job.said()
    assert job.result()["outcome"] == "Complete"


def test_a_client_joins_in_the_middle_leaves_and_comes_back(by_hand):
    job = by_hand(rounds=100_000)
    server, first = job.server(), job.client(0)
    until(lambda: job.last_participants() == {"site/0"}, "rounds with one client", 90)
    second = job.client(1)
    until(lambda: job.last_participants() == {"site/0", "site/1"}, "the second one joining", 90)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == exit_codes.TERMINATED
    until(lambda: job.last_participants() == {"site/0"}, "rounds without it", 90)
    third = job.client(1)
    until(lambda: job.last_participants() == {"site/0", "site/1"}, "its coming back", 90)
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == exit_codes.TERMINATED, job.said()
    for client in (first, third):
        client.send_signal(signal.SIGTERM)
        assert client.wait(20) == exit_codes.TERMINATED


def test_a_killed_client_costs_its_silence_and_never_the_job(by_hand):
    job = by_hand(rounds=100_000)
    server, first, second = job.server(), job.client(0), job.client(1)
    until(lambda: job.last_participants() == {"site/0", "site/1"}, "rounds with both", 90)
    second.kill()
    until(lambda: job.last_participants() == {"site/0"}, "rounds without it", 30)
    assert server.poll() is None
    assert first.poll() is None


def test_a_second_process_of_one_client_takes_its_place(by_hand):
    job = by_hand(rounds=100_000)
    server, first = job.server(), job.client(0)
    until(lambda: job.last_participants() == {"site/0"}, "the first round", 90)
    again = job.client(0)
    assert first.wait(60) == exit_codes.REPLACED, job.said()
    assert (server.poll(), again.poll()) == (None, None)
