"""The services of compose.yaml, each in its container, from `up` to the result on its volume."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from containers.podman import FEDLOG, KAFKA, REPOSITORY, SLIM, Podman
from fedlog.telemetry.run_folder import read_metrics
from processes import until

# The first seconds of TensorFlow and of Kafka are long on a machine that does something else, too.
pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

UP_S = 400.0


class Composition:
    """One project of compose.yaml; `end` removes every trace of it."""

    def __init__(self, podman: Podman, log: Path, **variables: str) -> None:
        self.name = f"fedlog-test-{secrets.token_hex(4)}"
        self._podman = podman
        self._log = log
        self._environment = {**os.environ, "KAFKA_IMAGE": KAFKA, **variables}

    def compose(self, *arguments: str, timeout_s: float = UP_S) -> int:
        """Exit code of `podman-compose`; what it says is in `said`."""
        command = [REPOSITORY / "images/engine", sys.executable, "-m", "podman_compose"]
        command += ["--project-name", self.name, "--file", REPOSITORY / "compose.yaml", *arguments]
        with self._log.open("ab") as log:
            return subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            ).returncode

    def start_kafka(self) -> None:
        """Until it is healthy: podman before 4.6 does not heed the condition in compose.yaml."""
        assert self.compose("up", "--detach", "kafka") == 0, self.said()
        until(self._kafka_is_healthy, "Kafka's health", 200)

    def _kafka_is_healthy(self) -> bool:
        try:
            self._podman("healthcheck", "run", f"{self.name}_kafka_1")
        except subprocess.CalledProcessError:
            return False
        return True

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-8000:]

    @cached_property
    def output(self) -> Path:
        """The volume of that name, as a folder of this machine; it exists after `up`."""
        volume = f"{self.name}_output"
        return Path(self._podman("volume", "inspect", volume, "--format={{.Mountpoint}}"))

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "result.json").read_text())
        return found

    def rounds(self) -> int:
        reports = read_metrics(self.output / "metrics.jsonl")
        return reports[-1].round if reports else 0

    def kill(self, service: str) -> None:
        """SIGKILL for the first process of the service's container, from outside."""
        container = f"{self.name}_{service}_1"
        os.kill(int(self._podman("inspect", container, "--format={{.State.Pid}}")), signal.SIGKILL)

    def restarts(self, service: str) -> int:
        found = self._podman("inspect", f"{self.name}_{service}_1", "--format={{.RestartCount}}")
        return int(found)

    def end(self) -> None:
        # Those first that would be restarted while podman-compose stops the others.
        mine = f"--filter=label=io.podman.compose.project={self.name}"
        if ids := self._podman("ps", "--all", "--quiet", mine).split():
            self._podman("rm", "--force", "--depend", "--ignore", "--time=2", *ids)
        self.compose("down", "--volumes")
        for what in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
            left = [
                name
                for name in self._podman(*what, "--format={{json .}}").splitlines()
                if self.name in name
            ]
            assert left == []


Compose = Callable[..., Composition]


@pytest.fixture
def compose(podman: Podman, tmp_path: Path) -> Iterator[Compose]:
    made: list[Composition] = []

    def make(**variables: str) -> Composition:
        made.append(Composition(podman, tmp_path / "compose.log", **variables))
        return made[-1]

    yield make
    for composition in made:
        composition.end()


@pytest.mark.parametrize(
    ("image", "job", "clients", "rounds"),
    [
        pytest.param(FEDLOG, "mnist", 3, 4, id="mnist-keras"),
        pytest.param(SLIM, "digits", 4, 4, id="digits-slim"),
    ],
)
def test_a_composition_learns_and_ends_by_itself(
    compose: Compose, image: str, job: str, clients: int, rounds: int
) -> None:
    composition = compose(
        FEDLOG_IMAGE=image, JOB=f"./examples/{job}", CLIENTS=str(clients), ROUNDS=str(rounds)
    )
    composition.start_kafka()
    assert composition.compose("up", "--exit-code-from", "server") == 0, composition.said()
    result = composition.result()
    assert result["outcome"] == "Complete"
    assert result["metrics"]["HeldOut"]["accuracy"] >= 0.9
    assert result["participation"] == {f"site/{index}": rounds for index in range(clients)}


def test_killed_containers_come_back_and_the_run_goes_on(compose: Compose) -> None:
    rounds = 12
    composition = compose(
        FEDLOG_IMAGE=SLIM, JOB="./examples/digits", CLIENTS="2", ROUNDS=str(rounds)
    )
    composition.start_kafka()
    assert composition.compose("up", "--detach") == 0, composition.said()
    until(lambda: composition.rounds() >= 2, "the second round", 200)
    composition.kill("server")
    composition.kill("client")
    until((composition.output / "result.json").exists, "the result", 300)
    assert composition.result()["outcome"] == "Complete"
    assert composition.result()["rounds"] == rounds
    assert (composition.restarts("server"), composition.restarts("client")) == (1, 1)
