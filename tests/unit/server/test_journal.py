"""Reading a journal: what anybody wrote to it, and what a server that was fenced left there."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from fedlog.job.errors import JobError
from fedlog.server.errors import ReplayError
from fedlog.server.journal import Journal, read_journal
from fedlog.server.replay import replay
from fedlog.transport.base import Record, TopicSpec
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records
from unit.server.by_hand import Bench, make_job

RUN = "fedlog.default.a.b"
TOPIC = f"{RUN}.journal"


def committed(epoch: int, digest: str) -> Record:
    said = records.Committed(
        run=RUN, epoch=epoch, round=1, base="0" * 64, digest=digest * 64, accepted=()
    )
    return Record(0, 0, b"round/1", records.encode(said))


def test_a_round_of_a_fenced_server_does_not_replace_its_successors() -> None:
    journal = Journal(RUN)
    for epoch, digest in ((1, "a"), (2, "b"), (1, "c")):
        journal.take(committed(epoch, digest))
    assert journal.rounds[1].digest == "b" * 64


def test_a_flood_of_garbage_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(RUN)
    with caplog.at_level(logging.WARNING):
        for offset in range(1000):
            journal.take(Record(offset, 0, None, b"garbage"))
            journal.take(committed(1, "a"))
    assert len(caplog.records) == 1
    assert len(journal.rounds) == 1


def test_reading_ends_although_somebody_goes_on_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlog.server.journal._LATEST_S", 0.5)
    log = MemoryTransport()
    log.create_topics([TopicSpec(TOPIC)])
    log.writer().send(TOPIC, committed(1, "a").value)
    ended = threading.Event()

    def write() -> None:
        writer = log.writer()
        while not ended.wait(0.01):
            writer.send(TOPIC, b"garbage")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    killer = threading.Timer(10, ended.set)  # so that a reader without an end fails here
    killer.start()
    try:
        before = time.monotonic()
        journal = read_journal(log, TOPIC, RUN)
        assert time.monotonic() - before < 5
        assert sorted(journal.rounds) == [1]
    finally:
        ended.set()
        killer.cancel()
        thread.join()


def test_a_job_that_cannot_be_read_is_an_error_with_the_cure(
    bench: Bench, log: MemoryTransport
) -> None:
    """As after an upgrade in the middle of a run."""
    job = make_job(bench.folder, rounds=1, kafka={"topics": {"deletionPolicy": "Retain"}})
    running = bench.serve(job)
    bench.play(1)
    running.verdict()
    bench._servers.clear()
    for record in log.reader(bench.names.journal, committed=True).poll(1):
        said, payload = records.decode(record.value)
        if isinstance(said, records.Started):
            other = said.model_copy(update={"job": '{"spec": {"unheardOf": 1}}'})
            log.writer().send(bench.names.journal, records.encode(other, payload))
    with pytest.raises(ReplayError, match="use the Fedlog that began the run"):
        replay(log, bench.run)
    assert len(replay(log, bench.run, job=job.job)) == 1  # as the run's folder has it
    again = bench.serve(job)
    again.wait()
    bench._servers.clear()
    assert isinstance(again.error, JobError)
    assert "go on with the Fedlog that began the run" in str(again.error)
