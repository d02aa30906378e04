"""Anything on every topic while a job runs: it ends with the same model, and says who wrote what.

The attacker knows the run, reads control, and holds the identity of one client of the job,
`mallory/0`, which joins, is asked, and never sends an update that is one. The two honest clients
must make the versions that they make when it stays away.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import secrets
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zstandard

from fedlog import exit_codes
from fedlog.client.worker import Worker
from fedlog.job.loading import JobFile, loads
from fedlog.server import FederatedServer
from fedlog.telemetry.result import Result
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.transport.base import Pending, Transport
from fedlog.transport.bulk import upload
from fedlog.transport.errors import TransportError
from fedlog.transport.memory import MemoryTransport
from fedlog.transport.topics import run_id, topic_names
from fedlog.wire import records, tensors
from fedlog.wire.bulk import build_manifest, chunk_digest
from fedlog.wire.errors import WireError
from processes import until

HONEST, MALLORY = ("site/0", "site/1"), "mallory/0"
ROUNDS = 8
DEADLINE_S = 90.0
INCARNATION = "f" * 16
FORMER = "e" * 16
GROWTH_BYTES = 250 * 2**20


def make_job(folder: Path) -> JobFile:
    spec = {
        "task": {"entrypoint": "fedlog.tasks.digits:task", "parameters": {"model": "sklearn"}},
        "rounds": ROUNDS,
        "partitioning": {"name": "Iid"},
        "training": {"localEpochs": 2, "batchSize": 8, "learningRate": "0.1"},
        "clients": [{"name": "site", "replicas": 2}, {"name": "mallory"}],
        # The attacker may still write when the run is over: to topics that are there.
        "kafka": {"topics": {"deletionPolicy": "Retain"}},
        "participation": {"minClients": 2, "joinTimeoutSeconds": 2, "roundTimeoutSeconds": 60},
    }
    document = {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "hostile"},
        "spec": spec,
    }
    return loads(yaml.safe_dump(document), path=folder / "job.yaml")


class Attacker:
    """Writes to every topic until it is told to end."""

    def __init__(self, log: Transport, run: str, job: JobFile) -> None:
        self.log, self.run = log, run
        self.names = topic_names(job.job, run)
        self.written = 0
        self._random = random.Random(7)
        self._end = threading.Event()
        self._heard: list[bytes] = []

    def attack(self) -> None:
        until(lambda: self.log.partitions(self.names.events) is not None, "the server's topics")
        self._writer = self.log.writer()
        control = self.log.reader(self.names.control)
        # Its true name, twice: the former incarnation is known to be replaced.
        for incarnation in (FORMER, INCARNATION):
            self._say(self._joined(MALLORY, incarnation))
        wrong = itertools.cycle(self._wrong_updates())
        answered: set[int] = set()
        with contextlib.suppress(TransportError):  # the run is over: its topics are gone
            while not self._end.is_set():
                for record in control.poll(0.02):
                    with contextlib.suppress(WireError):
                        said, _ = records.decode(record.value)
                        if not isinstance(said, records.ControlRecord):
                            continue
                        self._heard = [*self._heard, record.value][-200:]
                        if isinstance(said, records.Announced) and said.version not in answered:
                            answered.add(said.version)
                            self._answer(said, wrong)
                self._flood()
                self._end.wait(0.1)

    def end(self) -> None:
        self._end.set()

    # ---- as a member whose updates are none ------------------------------------------------------

    def _answer(self, work: records.Announced, wrong: Iterator[Callable[..., bytes]]) -> None:
        if MALLORY not in work.cohort:
            return
        if work.training is None:
            self._say(self._frame(records.Left(**self._who())))
            return
        manifest = next(wrong)(work)
        self._say(self._frame_of_other_round(work), manifest, manifest)
        figures = records.Evaluated(
            **self._who(),
            version=work.version,
            digest=work.base,
            test_set="Clients",
            examples=1,
            metrics={},
        )
        self._say(*[self._frame(figures)] * 40)

    def _wrong_updates(self) -> list[Callable[[records.Announced], bytes]]:
        def inline(weights: dict[str, np.ndarray]) -> Callable[[records.Announced], bytes]:
            return lambda work: self._updated(work, b"".join(tensors.encode(weights)))

        def model(value: float) -> dict[str, np.ndarray]:
            shapes = {
                "coefs_.0": (64, 32),
                "intercepts_.0": (32,),
                "coefs_.1": (32, 10),
                "intercepts_.1": (10,),
            }
            return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}

        def elsewhere(work: records.Announced) -> bytes:
            return self._updated(work, bytes(70_000), topic=self.names.model)

        def damaged(work: records.Announced) -> bytes:
            frame = bytearray(self._updated(work, b"".join(tensors.encode(model(1)))))
            frame[-1] ^= 1
            return bytes(frame)

        def bomb(work: records.Announced) -> bytes:
            packed = zstandard.ZstdCompressor(level=19).compress(bytes(2**26))
            claim = build_manifest(
                codec="zstd",
                size=9000,
                encoded_size=len(packed),
                chunk_bytes=9000,
                digests=[chunk_digest(packed)],
            )
            return self._frame(self._manifest(work, claim), packed)

        return [
            inline(model(np.nan)),
            inline(model(np.inf)),
            inline({"coefs_.0": np.zeros((1, 1), np.float32)}),
            damaged,
            bomb,
            elsewhere,
            lambda work: self._updated(work, b"\x08" + b"\0" * 7 + b"{}      "),
            lambda work: self._updated(work, self._random.randbytes(9000)),
        ]

    def _updated(self, work: records.Announced, payload: bytes, topic: str | None = None) -> bytes:
        bulk, inline = upload(
            self._writer,
            [payload],
            topic=topic or work.updates_topic,
            partition=0,
            chunk_bytes=70_000,
            timeout_s=20,
        )
        return self._frame(self._manifest(work, bulk), inline)

    def _manifest(self, work: records.Announced, bulk: Any, **changes: Any) -> records.Updated:
        fields = {"round": work.round, "base": work.base, "examples": 1, "bulk": bulk}
        return records.Updated(**(self._who() | fields | changes))

    def _frame_of_other_round(self, work: records.Announced) -> bytes:
        bulk, inline = upload(
            self._writer, [b"abcd"], topic="", partition=0, chunk_bytes=4, timeout_s=1
        )
        return self._frame(self._manifest(work, bulk, round=work.round + 1), inline)

    # ---- as anybody ------------------------------------------------------------------------------

    def _flood(self) -> None:
        garbage = [
            b"",
            self._random.randbytes(self._random.randrange(1, 2000)),
            b"FLR1",
            b"FLR1" + struct.pack("<I", 2**32 - 1) + b"{}",
            b"FLR1" + struct.pack("<I", 4000) + b"[" * 4000,
            b"FLR2" + bytes(60),
            b"FLR1" + struct.pack("<I", 24) + json.dumps({"type": "none"}).ljust(24).encode(),
            self._joined("stranger/0", INCARNATION),
            self._frame(records.Heartbeat(**self._who(incarnation=FORMER))),
            self._frame(records.Left(**self._who(run="fedlog.default.other.manual"))),
        ]
        if self.written == 0:
            garbage.append(self._random.randbytes(800_000))
        replayed = self._random.sample(self._heard, min(3, len(self._heard)))
        cut = [frame[: len(frame) // 2] for frame in replayed]
        self._say(*garbage, *replayed, *cut)
        for topic in (self.names.control, self.names.model, self.names.updates):
            self._write(topic, *garbage, *cut)
        self._write(self.names.control, *replayed)
        for key in (b"head", b"start", b"round/1", b"client/site/0", b"nobody"):
            self._write(self.names.journal, *garbage[:4], *cut, key=key)

    def _who(self, **changes: str) -> dict[str, Any]:
        return {"run": self.run, "client": MALLORY, "incarnation": INCARNATION} | changes

    def _joined(self, client: str, incarnation: str) -> bytes:
        who = self._who(client=client, incarnation=incarnation)
        return self._frame(records.Joined(**who))

    @staticmethod
    def _frame(record: records.AnyRecord, payload: bytes = b"") -> bytes:
        return records.encode(record, payload)

    def _say(self, *values: bytes) -> None:
        self._write(self.names.events, *values)

    def _write(self, topic: str, *values: bytes, key: bytes | None = None) -> None:
        if self._end.is_set():
            return
        pending: list[Pending] = []
        with contextlib.suppress(TransportError):
            pending += [self._writer.send(topic, value, key=key) for value in values]
            for sent in pending:
                sent.result(5)
        self.written += len(pending)


def run_job(
    folder: Path, connect: Callable[[], Transport], *, attacked: bool
) -> tuple[Result, dict[tuple[str, str], int], int]:
    """The result; refusals of the status by (reason, sender); records that the attacker wrote."""
    job = make_job(folder)
    run = secrets.token_hex(4)
    server = FederatedServer(job, run=run, transport=connect(), output=folder / "out")
    workers = [Worker(job, [client], run=run, transport=connect()) for client in HONEST]
    attacker = Attacker(connect(), run_id(job.job, run), job)
    refused: dict[tuple[str, str], int] = {}

    def note() -> None:
        if server.address is None:
            return
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{server.address}/status", timeout=5) as answer,
        ):
            for entry in json.load(answer)["refusals"]:
                refused[entry["reason"], entry["client"]] = entry["count"]

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(worker.run) for worker in workers]
        attack = pool.submit(attacker.attack) if attacked else None
        serving = pool.submit(server.run)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not serving.done():
                assert time.monotonic() < deadline, "the job did not end"
                note()
                time.sleep(0.1)
            result = serving.result()
            assert [each.result(DEADLINE_S) for each in running] == [exit_codes.OK] * 2
        finally:
            attacker.end()
            server.stop()
            for worker in workers:
                worker.stop(exit_codes.TERMINATED, "the test is over")
        if attack is not None:
            attack.result(DEADLINE_S)
    return result, refused, attacker.written


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digest of every version without an attacker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = MemoryTransport()
    result, refused, _ = run_job(folder, lambda: log, attacked=False)
    assert (result.outcome, refused) == ("Complete", {})
    return [report.digest for report in read_metrics(RunFolder(folder / "out").metrics)]


def test_a_job_learns_nothing_from_garbage_and_falls_over_nothing(
    tmp_path: Path, connect: Callable[[], Transport], undisturbed: list[str]
) -> None:
    resident = psutil.Process().memory_info().rss
    result, refused, written = run_job(tmp_path, connect, attacked=True)

    assert (result.outcome, result.rounds) == ("Complete", ROUNDS)
    assert result.participation == dict.fromkeys(HONEST, ROUNDS) | {MALLORY: 0}
    digests = [report.digest for report in read_metrics(RunFolder(tmp_path / "out").metrics)]
    assert digests == undisturbed
    assert written > 200
    assert refused.keys() >= {
        ("malformed", "unknown"),
        ("too-large", "unknown"),
        ("version", "unknown"),
        ("misplaced", "unknown"),
        ("other-run", MALLORY),
        ("unknown-client", "stranger/0"),
        ("unknown-base", MALLORY),
        ("quota", MALLORY),
        ("unfit", MALLORY),
        ("digest", MALLORY),
        ("misplaced-bulk", MALLORY),
    }
    # The same once more comes within the round or after it, as fast as it was.
    by_mallory = {word for word, client in refused if client == MALLORY}
    assert by_mallory & {"duplicate", "late"}
    assert by_mallory & {"duplicate-evaluation", "late-evaluation"}
    # An announcement that is written once more looks like the server's asking again.
    assert {word for word, client in refused if client in HONEST} <= {"duplicate", "quota", "late"}
    assert psutil.Process().memory_info().rss - resident < GROWTH_BYTES
