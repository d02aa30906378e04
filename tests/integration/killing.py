"""Jobs that are killed at random moments, and what their logs must show afterwards.

The task of `write_task` notes the start of every training: its seed, which tells client and round
(`fedlog.client.trainer.training_seed`), and the time. The log has the time of every manifest, on
the same clock. So it can be proved that no training for (client, round) began once that client's
manifest for it was on the log.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedlog.client.trainer import training_seed
from fedlog.job.errors import JobError
from fedlog.job.loading import load
from fedlog.local.run_record import RunRecord
from fedlog.server.replay import Verdict, replay
from fedlog.telemetry.errors import RunFolderError
from fedlog.telemetry.run_folder import RunFolder
from fedlog.transport.base import Reader, Transport
from fedlog.transport.reading import read_all
from fedlog.transport.topics import run_id
from fedlog.wire import records
from integration.network import Cable

SEED = 7
SITES = 3
SLOW_S = 0.1
"""How long a training takes at least, until the file `hurry` is there."""
WITHIN_S = 240.0
CLOCK_MS = 1
"""Times on the log are whole milliseconds."""

TASK = """
import os, time
from pathlib import Path
from importlib import import_module

HERE = Path(os.environ["FEDLOG_TEST_FOLDER"])


class Noted:
    def __init__(self, learner):
        self._learner = learner

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def fit(self, data, config):
        with (HERE / "trainings").open("ab", buffering=0) as file:
            file.write(b"%d %d\\n" % (config.seed, time.time_ns()))
        until = time.monotonic() + {slow}
        while not (HERE / "hurry").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return self._learner.fit(data, config)


class Task:
    def __init__(self):
        self._task = import_module("{module}").task

    def __getattr__(self, name):
        return getattr(self._task, name)

    def model(self, parameters, seed):
        return Noted(self._task.model(parameters, seed))

    def data(self, partition, parameters):
        return self._task.data(partition, parameters)


task = Task()
"""


@dataclass(frozen=True)
class Learning:
    """What a job learns."""

    module: str
    parameters: dict[str, Any]
    partitioned: bool = True


LEARNINGS = {
    "noop": Learning("fedlog.tasks.noop", {"sizeBytes": 200_000}, partitioned=False),
    "sklearn": Learning("fedlog.tasks.digits", {"model": "sklearn"}),
    "keras": Learning("fedlog.tasks.digits", {"model": "mlp"}),
}


def write_job(folder: Path, learning: Learning, rounds: int, **spec: Any) -> Path:
    """A job of SITES clients that keeps its whole log, with its task beside it."""
    (folder / "noted_task.py").write_text(
        TASK.replace("{module}", learning.module).replace("{slow}", str(SLOW_S))
    )
    document = {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "killed"},
        "spec": {
            "task": {"entrypoint": "noted_task.py:task", "parameters": learning.parameters},
            "rounds": rounds,
            "seed": SEED,
            "clients": [{"name": "site", "replicas": SITES}],
            # Who is killed comes back: a round must not go on without it, so that all train.
            "participation": {"minClients": SITES, "lostAfterSeconds": 120},
            "training": {"batchSize": 10, "learningRate": "0.1"},
            "kafka": {"topics": {"retain": "All", "deletionPolicy": "Retain"}},
            **({"partitioning": {"name": "Iid"}} if learning.partitioned else {}),
            **spec,
        },
    }
    path = folder / "federatedjob.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class KilledRun:
    """A `fedlog run --isolate` in a process of its own, whose children can be killed."""

    def __init__(self, job: Path, transport: Transport, process: subprocess.Popen[bytes]) -> None:
        self.folder = RunFolder(job.parent / "runs" / "latest")
        self._here = job.parent
        self._transport = transport
        self._process = process
        self._control: Reader | None = None
        self.kills: list[tuple[str, float]] = []
        """What was killed, and when: seconds since 1970, the log's clock."""

    @property
    def trainings(self) -> Path:
        return self._here / "trainings"

    @property
    def output(self) -> str:
        return (self._here / "output").read_text(errors="replace")

    def name(self) -> str:
        """The run's name in records and topics."""
        return run_id(load(self.folder.job).job, RunRecord.read(self.folder).run)

    def child(self, *arguments: str) -> psutil.Process | None:
        """The child that was started with these arguments, once there is one."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                line = child.cmdline()
                if all(argument in line for argument in arguments):
                    return child
        return None

    def kill(self, *whom: str) -> None:
        """SIGKILL at the same moment: `server`, or clients by their ids."""
        found = [
            self._alive("--status-file") if each == "server" else self._alive("--clients", each)
            for each in whom
        ]
        self.kills.append(("+".join(whom), time.time()))
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def killed(self, what: str) -> None:
        """Note that something else was killed now."""
        self.kills.append((what, time.time()))

    def _alive(self, *arguments: str) -> psutil.Process:
        deadline = time.monotonic() + WITHIN_S
        while (found := self.child(*arguments)) is None:
            self._check(deadline, f"a process with {arguments}")
            time.sleep(0.02)
        return found

    def rounds_pass(self, count: int) -> None:
        """Wait until so many more rounds are told to be closed, from now on."""
        deadline = time.monotonic() + WITHIN_S
        while self._control is None:
            self._check(deadline, "the control topic")
            with suppress(RunFolderError, JobError):  # not written yet
                topic = f"{self.name()}.control"
                if self._transport.partitions(topic, 0.2) is not None:
                    self._control = self._transport.reader(topic, start=0, committed=True)
        now_ms = time.time() * 1000
        while count > 0:
            self._check(deadline, f"{count} more rounds")
            for record in self._control.poll(0.2):
                said, _ = records.decode(record.value)
                count -= isinstance(said, records.Closed) and record.timestamp_ms >= now_ms

    def wander(self, seconds: float) -> None:
        """Read what is told for so long, whatever it is."""
        assert self._control is not None
        until = time.monotonic() + seconds
        while self._control.poll(max(0.0, min(0.2, until - time.monotonic()))) or (
            time.monotonic() < until
        ):
            pass

    def _check(self, deadline: float, what: str) -> None:
        assert self._process.poll() is None, f"waiting for {what}: it ended\n{self.output}"
        assert time.monotonic() < deadline, f"waited for {what} in vain\n{self.output}"

    def hurry(self) -> None:
        (self._here / "hurry").touch()

    def end(self, within_s: float = WITHIN_S) -> int:
        """The exit code of the run, which is in no hurry any more to be killed."""
        self.hurry()
        return self._process.wait(within_s)


@contextmanager
def running(job: Path, transport: Transport, address: str) -> Iterator[KilledRun]:
    environment = {k: v for k, v in os.environ.items() if k != "BOOTSTRAP_SERVERS"}
    with (job.parent / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlog", "run", str(job), "--broker", address, "--isolate"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=job.parent,
            env={**environment, "FEDLOG_TEST_FOLDER": str(job.parent)},
        )
    try:
        yield KilledRun(job, transport, process)
    finally:
        if process.poll() is None:
            process.kill()  # its children end with it
        process.wait()


class RunByHand(KilledRun):
    """A server and clients that nobody starts again."""

    def __init__(self, job: Path, transport: Transport, started: list[subprocess.Popen[bytes]]):
        super().__init__(job, transport, started[0])
        self.folder = RunFolder(job.parent / "runs" / "by-hand")
        self._all = started

    def name(self) -> str:
        return run_id(load(self._here / "federatedjob.yaml").job, BY_HAND)

    def end(self, within_s: float = WITHIN_S) -> int:
        self.hurry()
        return max(process.wait(within_s) for process in self._all)


BY_HAND = "byhand00"


@contextmanager
def by_hand(job: Path, transport: Transport, address: str, cable: Cable) -> Iterator[RunByHand]:
    """The last client lives at the far end of the cable."""
    folder = job.parent / "runs" / "by-hand"
    folder.mkdir(parents=True)
    fedlog = [sys.executable, "-m", "fedlog"]
    job_and_run = [str(job), "--run", BY_HAND]

    def client(index: int, at: str) -> list[str]:
        who = ["--group", "site", "--index", str(index)]
        return [*fedlog, "client", *job_and_run, *who, "--broker", at]

    commands = [
        [*fedlog, "server", *job_and_run, "--broker", address, "--output", str(folder)],
        *(client(index, address) for index in range(SITES - 1)),
        cable.within(client(SITES - 1, cable.address)),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "BOOTSTRAP_SERVERS"}
    started: list[subprocess.Popen[bytes]] = []
    with (job.parent / "output").open("ab") as output:
        try:
            for command in commands:
                started.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        cwd=job.parent,
                        env={**environment, "FEDLOG_TEST_FOLDER": str(job.parent)},
                    )
                )
            yield RunByHand(job, transport, started)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()


def random_kills(run: KilledRun, kinds: Sequence[str], chance: random.Random) -> None:
    """One kill after the other, each at a random moment of some round."""
    for kind in kinds:
        run.rounds_pass(1)
        run.wander(chance.uniform(0.0, 4 * SLOW_S))
        client = f"site/{chance.randrange(SITES)}"
        run.kill(*{"server": ("server",), "client": (client,), "both": ("server", client)}[kind])
    run.rounds_pass(1)


def check_log(run: KilledRun, transport: Transport) -> str:
    """What must be true of the whole log; figures of it for people."""
    name = run.name()
    result = json.loads(run.folder.result.read_text())
    assert result["outcome"] == "Complete", run.output

    manifests: dict[tuple[str, int], int] = {}
    for record in read_all(transport, f"{name}.events"):
        said, _ = records.decode(record.value)
        if isinstance(said, records.Updated):
            manifests.setdefault((said.client, said.round), record.timestamp_ms)
    _check_no_training_twice(run, manifests, result["rounds"])

    closed: dict[int, set[str]] = {}
    at: list[float] = []
    for record in read_all(transport, f"{name}.control", committed=True):
        said, _ = records.decode(record.value)
        if isinstance(said, records.Closed):
            closed.setdefault(said.version, set()).add(said.digest)
            at.append(record.timestamp_ms / 1000)
    assert sorted(closed) == list(range(1, result["rounds"] + 1))
    twice = {version: digests for version, digests in closed.items() if len(digests) > 1}
    assert not twice, twice
    assert closed[result["rounds"]] == {result["digest"]}

    replayed = replay(transport, name)
    assert len(replayed) == result["rounds"]
    wrong = [each for each in replayed if each.verdict is not Verdict.OK]
    assert not wrong, wrong
    assert {each.round: {each.digest} for each in replayed} == closed
    sent: dict[str, list[float]] = {}
    for (client, _), when_ms in manifests.items():
        sent.setdefault(client, []).append(when_ms / 1000)
    return _figures(run.kills, at, sent)


def _check_no_training_twice(
    run: KilledRun, manifests: dict[tuple[str, int], int], rounds: int
) -> None:
    who = {
        training_seed(SEED, number, index): (f"site/{index}", number)
        for index in range(SITES)
        for number in range(1, rounds + 1)
    }
    assert len(who) == rounds * SITES
    starts = [line.split() for line in run.trainings.read_text().splitlines()]
    assert len(starts) >= len(manifests) > 0
    for seed, began_ns in starts:
        work = who[int(seed)]
        manifest_ms = manifests.get(work)
        began_ms = int(began_ns) // 1_000_000
        assert manifest_ms is None or began_ms <= manifest_ms + CLOCK_MS, (
            f"{work} was trained again {began_ms - manifest_ms} ms after its manifest"
        )


def _figures(
    kills: Sequence[tuple[str, float]],
    closed_at: Sequence[float],
    sent_at: dict[str, list[float]],
) -> str:
    """From each kill to the next committed round, and to the killed client's next manifest."""
    waits: dict[str, list[float]] = {}
    for whom, when in kills:
        after = [at - when for at in closed_at if at >= when]
        if after:
            waits.setdefault(f"{whom.split('/')[0]}: next round", []).append(min(after))
        for client in (each for each in whom.split("+") if "/" in each):
            after = [at - when for at in sent_at[client] if at >= when]
            if after:
                waits.setdefault("killed client: its next update", []).append(min(after))
    return "; ".join(
        f"{what} after {statistics.median(found):.1f} s (worst {max(found):.1f} s, {len(found)} "
        "times)"
        for what, found in sorted(waits.items())
    )
