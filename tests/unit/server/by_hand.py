"""A real server over a log in memory; its clients are played by the test, record by record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from fedlog.job.loading import JobFile, loads
from fedlog.server import FederatedServer
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder
from fedlog.transport.bulk import upload
from fedlog.transport.memory import MemoryTransport
from fedlog.transport.topics import run_id, topic_names
from fedlog.wire import records, tensors

DEADLINE_S = 20.0
INCARNATION = "a" * 16
SITES = ("site/0", "site/1")
SMALL = 4096  # bytes of a model that travels inside records
BULK = 200_000  # and of one that does not

Said = TypeVar("Said", bound=records.ControlRecord)


def make_job(
    path: Path,
    *,
    task: str = "fedlog.tasks.noop:task",
    parameters: dict[str, Any] | None = None,
    size: int = SMALL,
    **spec: Any,
) -> JobFile:
    document = {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "noop"},
        "spec": {
            "task": {"entrypoint": task, "parameters": parameters or {"sizeBytes": size}},
            "rounds": 2,
            "clients": [{"name": "site", "replicas": 2}],
            **spec,
        },
    }
    return loads(yaml.safe_dump(document), path=path / "job.yaml")


class Running:
    """One server in a thread."""

    def __init__(self, server: FederatedServer) -> None:
        self.server = server
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.server.run()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, within_s: float = DEADLINE_S) -> None:
        self._thread.join(within_s)
        assert not self.alive, f"the server still runs after {within_s:g} s"

    def verdict(self) -> Result:
        self.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class Bench:
    """One log; servers, and the clients' hand. `end` stops what runs."""

    def __init__(self, folder: Path, log: MemoryTransport, run: str = "byhand") -> None:
        self.folder, self.log, self.run_name = folder, log, run
        self.output = RunFolder(folder / "out")
        job = make_job(folder)
        self.run = run_id(job.job, run)
        self.names = topic_names(job.job, self.run)
        self._servers: list[Running] = []
        self._writer = log.writer()
        self._heard: list[records.AnyRecord] = []
        self._position = 0

    def serve(self, job: JobFile, *, output: Path | None = None, made: bool = True) -> Running:
        """made: the first model is given, else the server has the task make it."""
        initial = None
        if made:
            size = int(job.job.spec.task.parameters["sizeBytes"])
            initial = self.folder / f"initial-{size}.safetensors"
            weights = {"w": np.zeros(size // 4, np.float32)}
            initial.write_bytes(b"".join(tensors.encode(weights)))
        server = FederatedServer(
            job,
            run=self.run_name,
            transport=self.log,
            output=self.output.path if output is None else output,
            initial=initial,
        )
        self._servers.append(Running(server))
        return self._servers[-1]

    def say(self, record: records.AnyRecord, payload: bytes = b"") -> int:
        return self._writer.send(self.names.events, records.encode(record, payload)).result(5)

    def join(self, *clients: str) -> None:
        self._until(lambda: self.log.partitions(self.names.events) is not None, "the events topic")
        for client in clients:
            self.say(records.Joined(run=self.run, client=client, incarnation=INCARNATION))

    def hear(self, kind: type[Said], suits: Callable[[Said], bool] = lambda _: True) -> Said:
        """The first record of this kind on control that suits."""

        def found() -> Said | None:
            self._listen()
            return next((r for r in self._heard if isinstance(r, kind) and suits(r)), None)

        self._until(lambda: found() is not None, f"a record of {kind.__name__} that suits")
        said = found()
        assert said is not None
        return said

    def asked(self, round_: int) -> records.Announced:
        return self.hear(records.Announced, lambda a: a.training is not None and a.round == round_)

    def update(
        self,
        client: str,
        work: records.Announced,
        *,
        size: int = SMALL,
        value: float = 1.0,
        topic: str | None = None,
        partition: int = 0,
        metrics: dict[str, float] | None = None,
        examples: int = 1,
    ) -> int:
        """Upload an update and its manifest; the manifest's offset."""
        bulk, payload = upload(
            self._writer,
            tensors.encode({"w": np.full(size // 4, value, np.float32)}),
            topic=work.updates_topic if topic is None else topic,
            partition=partition,
            chunk_bytes=70_000,
            timeout_s=5,
        )
        updated = records.Updated(
            run=self.run,
            client=client,
            incarnation=INCARNATION,
            round=work.round,
            base=work.base,
            examples=examples,
            metrics=metrics or {},
            bulk=bulk,
        )
        return self.say(updated, payload)

    def leave(self, *clients: str) -> None:
        for client in clients:
            self.say(records.Left(run=self.run, client=client, incarnation=INCARNATION))

    def play(self, rounds: int, **update: Any) -> None:
        """Everybody takes part in all rounds, and leaves."""
        self.join(*SITES)
        for number in range(1, rounds + 1):
            work = self.asked(number)
            for client in SITES:
                self.update(client, work, **update)
        self.hear(records.Announced, lambda a: a.training is None)
        self.leave(*SITES)

    def end(self) -> None:
        for running in self._servers:
            running.server.stop()
        for running in self._servers:
            running.wait()

    def _listen(self) -> None:
        if self.log.partitions(self.names.control) is None:
            return
        reader = self.log.reader(self.names.control, start=self._position, committed=True)
        for record in reader.poll(0.05):
            self._heard.append(records.decode(record.value)[0])
        self._position = reader.position

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            for running in self._servers:
                assert running.error is None, running.error
            assert time.monotonic() < deadline, f"{what} did not come"
            time.sleep(0.005)
