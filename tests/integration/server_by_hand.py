"""The server of the protocol, driven by a test, and a toy task that tells who trained what."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedlog.job.loading import JobFile
from fedlog.tasks.loading import load_task
from fedlog.transport.base import Transport
from fedlog.transport.bulk import download, upload
from fedlog.transport.topics import run_id, topic_names, topic_specs
from fedlog.wire import records, tensors
from fedlog.wire.limits import Limits
from processes import until

DEADLINE_S = 30.0

# Client i has 3 + i training examples, all equal to i + 1: training adds rate * (i + 1).
TASK = """
    import time

    import numpy as np

    from fedlog.learning.weights import check_same_layout
    from fedlog.tasks.base import ClientData, Dataset, EvaluationResult, FitResult
    from fedlog.tasks.errors import DataError


    class Learner:
        def __init__(self, size):
            self.w = np.ones(size, np.float32)
            self.steps = np.zeros(1, np.int64)

        def weights(self):
            return {"w": self.w.copy(), "steps": self.steps.copy()}

        def set_weights(self, weights):
            check_same_layout(self.weights(), weights)
            self.w[...] = weights["w"]

        def fit(self, data, config):
            if config.learning_rate == 13:
                raise ValueError("thirteen")
            while config.learning_rate == 99 and not config.should_stop():
                time.sleep(0.005)
            self.w += np.float32(config.learning_rate) * data.x.mean()
            self.steps += 1
            return FitResult(len(data.y), {"loss": 0.5, "norm": float("inf")})

        def evaluate(self, data):
            return EvaluationResult(len(data.y), {"accuracy": float(self.w[0])})


    class Task:
        def model(self, parameters, seed):
            return Learner(parameters["size"])

        def data(self, partition, parameters):
            if partition.index in parameters.get("withoutData", []):
                raise DataError("no folder /data")
            def part(n):
                return Dataset(np.full((n, 2), partition.index + 1.0, np.float32), np.zeros(n))
            return ClientData(part(3 + partition.index), part(2))

        def held_out(self, partition, parameters):
            return Dataset(np.zeros((7, 2), np.float32), np.zeros(7))


    task = Task()
"""

JOB = """
    apiVersion: fedlog.dev/v1alpha1
    kind: FederatedJob
    metadata: {name: toy}
    spec:
      task: {entrypoint: "toy.py:task", parameters: {size: 4}}
      rounds: 3
      clients:
      - {name: site, replicas: 2}
      - {name: edge}
      evaluation: {heldOut: {}}
      participation: {heartbeatSeconds: 1, lostAfterSeconds: 15}
"""

SITE_0, SITE_1, EDGE, EVALUATOR = "site/0", "site/1", "edge/0", "evaluator/0"
R = TypeVar("R", bound=records.EventRecord)


def write_job(folder: Path) -> Path:
    """The toy task and its job file, in this folder."""
    (folder / "toy.py").write_text(textwrap.dedent(TASK))
    path = folder / "job.yaml"
    path.write_text(textwrap.dedent(JOB))
    return path


class Server:
    """The server's side of the protocol, as a test says it."""

    def __init__(self, log: Transport, job_file: JobFile) -> None:
        self.run = run_id(job_file.job, None)
        self.names = topic_names(job_file.job, self.run)
        self.log = log
        log.create_topics(topic_specs(job_file.job, self.names))
        self.writer = log.writer()
        self.events = log.reader(self.names.events)
        self.seen: list[tuple[int, records.EventRecord, bytes]] = []
        self.epoch = 1
        task = load_task(
            job_file.job.spec.task, base=job_file.base, config_maps=job_file.config_maps
        )
        self.weights = dict(task.model(job_file.job.spec.task.parameters, 0).weights())
        self.limits = Limits.for_model(sum(a.nbytes for a in self.weights.values()))

    def say(self, record: records.ControlRecord, payload: bytes = b"") -> int:
        frame = records.encode(record, payload)
        return self.writer.send(self.names.control, frame).result(DEADLINE_S)

    def welcome(self, *joined: records.Joined, **changes: Any) -> int:
        clients = {record.client: record.incarnation for record in joined}
        return self.say(records.Welcome(run=self.run, epoch=self.epoch, clients=clients, **changes))

    def announcement(self, round_: int, **changes: Any) -> tuple[records.Announced, bytes]:
        buffers = tensors.encode(self.weights)
        base = tensors.raw_digest(buffers)
        manifest, inline = upload(
            self.writer,
            buffers,
            topic=self.names.model,
            partition=0,
            chunk_bytes=70_000,
            raw_digest=base,
            timeout_s=DEADLINE_S,
        )
        fields: dict[str, Any] = {
            "run": self.run,
            "epoch": self.epoch,
            "round": round_,
            "version": round_ - 1,
            "base": base,
            "model": manifest,
            "cohort": (SITE_0, SITE_1, EDGE),
            "training": records.Training(local_epochs=1, batch_size=2, learning_rate=0.5),
            "evaluate": False,
            "evaluator": False,
            "keep_training": False,
            "deadline_s": 60.0,
            "updates_topic": self.names.updates,
        }
        return records.Announced(**(fields | changes)), inline

    def announce(self, round_: int, *, rate: float = 0.5, **changes: Any) -> records.Announced:
        training = records.Training(local_epochs=1, batch_size=2, learning_rate=rate)
        announced, inline = self.announcement(round_, **({"training": training} | changes))
        self.say(announced, inline)
        return announced

    def close_round(self, round_: int, **changes: Any) -> None:
        fields: dict[str, Any] = {"accepted": {}, "digest": "0" * 64, "version": round_}
        self.say(records.Closed(run=self.run, epoch=self.epoch, round=round_, **(fields | changes)))

    def stop(self) -> None:
        self.say(
            records.Stopped(
                run=self.run, epoch=self.epoch, outcome="Complete", reason="done", round=3
            )
        )

    def poll(self) -> None:
        for record in self.events.poll(0.05):
            event, payload = records.decode(record.value)
            assert isinstance(event, records.EventRecord)
            self.seen.append((record.offset, event, bytes(payload)))

    def found(self, kind: type[R], client: str | None = None) -> list[R]:
        return [
            event
            for _, event, _ in self.seen
            if isinstance(event, kind) and client in (None, event.client)
        ]

    def await_records(self, kind: type[R], count: int = 1, client: str | None = None) -> list[R]:
        """The first `count` records of this kind, once that many are on `events`."""
        until(lambda: self.poll() or len(self.found(kind, client)) >= count, kind.__name__)
        return self.found(kind, client)[:count]

    def delta(self, manifest: records.Updated) -> dict[str, np.ndarray]:
        (payload,) = [inline for _, event, inline in self.seen if event is manifest]
        raw = download(
            self.log.bulk_reader(70_000),
            manifest.bulk,
            payload,
            limits=self.limits,
            timeout_s=DEADLINE_S,
        )
        return tensors.decode(raw, self.limits)
