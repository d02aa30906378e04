"""One bad record never ends a job: it is counted and skipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlog.rounds.actions import Refuse
from fedlog.rounds.events import UpdateArrived
from fedlog.server.control import ControlLog
from fedlog.server.global_model import GlobalModel
from fedlog.server.journal import Journal
from fedlog.server.reporting import Reporter
from fedlog.server.session import ServerSession
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.transport.base import Record, TopicSpec
from fedlog.transport.bulk import upload
from fedlog.transport.errors import TransportError
from fedlog.transport.memory import MemoryTransport
from fedlog.transport.topics import run_id, topic_names, topic_specs
from fedlog.wire import records, tensors
from fedlog.wire.limits import Limits
from unit.server.by_hand import BULK, INCARNATION, SITES, Bench, make_job

ONE_IS_ENOUGH = {"minClients": 1}


def test_the_largest_figures_leave_reports_finite(bench: Bench) -> None:
    running = bench.serve(make_job(bench.folder, rounds=1))
    bench.join(*SITES)
    work = bench.asked(1)
    huge = records.MAX_METRIC
    for client, value in zip(SITES, (huge, -huge), strict=True):
        bench.say(
            records.Evaluated(
                run=bench.run,
                client=client,
                incarnation=INCARNATION,
                version=0,
                digest=work.base,
                test_set="Clients",
                examples=2**53,
                metrics={"accuracy": value},
            )
        )
        bench.update(client, work, metrics={"loss": value}, examples=2**53)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
    first, second = read_metrics(bench.output.metrics)
    accuracy = first.metric("accuracy", "Clients")
    assert accuracy is not None
    assert math.isfinite(accuracy)
    assert math.isfinite(second.train_metrics["loss"])


@pytest.mark.parametrize("can_trim", [True, False])
def test_chunks_elsewhere_are_neither_read_nor_trimmed(
    bench: Bench, log: MemoryTransport, can_trim: bool
) -> None:
    log._can_trim = can_trim
    job = make_job(bench.folder, size=BULK, rounds=4, participation=ONE_IS_ENOUGH)
    running = bench.serve(job)
    bench.join(*SITES)
    log.create_topics([TopicSpec("own", 9)])
    for number in range(1, 5):
        work = bench.asked(number)
        bench.update("site/1", work, size=BULK, topic="own", partition=7)
        bench.update("site/0", work, size=BULK)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    result = running.verdict()
    assert result.participation == {"site/0": 4, "site/1": 0}
    reports = read_metrics(bench.output.metrics)
    assert [r.refused for r in reports[1:]] == [{"misplaced-bulk": 1}] * 4
    assert log.reader("own", partition=7).poll(0)[0].offset == 0


def test_what_cannot_be_trimmed_does_not_end_a_run(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(topic: str, partition: int, before_offset: int) -> None:
        tried.append(topic)
        raise TransportError("not authorized")

    monkeypatch.setattr(log, "trim", refuse)
    running = bench.serve(make_job(bench.folder, size=BULK, rounds=4))
    bench.play(4, size=BULK)
    assert running.verdict().outcome == "Complete"
    assert tried


def test_refused_updates_are_counted_once_and_apart_from_other_records(bench: Bench) -> None:
    running = bench.serve(make_job(bench.folder, rounds=1, participation=ONE_IS_ENOUGH))
    bench.join(*SITES)
    work = bench.asked(1)
    bench.say(records.Joined(run=bench.run, client="stranger/0", incarnation=INCARNATION))
    bench.say(records.Joined(run="another", client="site/0", incarnation=INCARNATION))
    bench.update("stranger/0", work)
    bench.update("site/0", work, value=math.nan)
    bench.update("site/1", work)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
    report = read_metrics(bench.output.metrics)[1]
    assert report.refused == {"unfit": 1, "not-a-member": 1}
    assert report.refused_records == {"unknown-client": 1, "other-run": 1}
    closed = bench.hear(records.Closed)
    assert closed.refused == {"site/0": "unfit"}  # the word alone: records are kept small


def test_only_the_manifest_that_is_refused_is_let_go(tmp_path: Path, log: MemoryTransport) -> None:
    """One step may refuse a manifest of before and keep the one that has just arrived."""
    job = make_job(tmp_path).job
    run = run_id(job, None)
    names = topic_names(job, run)
    created = set(log.create_topics(topic_specs(job, names)))
    weights = b"".join(tensors.encode({"w": np.zeros(8, np.float32)}))
    model = GlobalModel(bytearray(weights), Limits.for_model(len(weights)))
    folder = RunFolder(tmp_path)
    control = ControlLog(log, names, run)
    reporter = Reporter(job, run, folder)
    session = ServerSession(job, run, log, control, created, folder, model, reporter, Journal(run))
    bulk, payload = upload(
        log.writer(), [weights], topic="", partition=0, chunk_bytes=9, timeout_s=1
    )
    arrived = []
    for offset, client in enumerate(SITES):
        manifest = records.Updated(
            run=run,
            client=client,
            incarnation=INCARNATION,
            round=1,
            base=model.digest,
            examples=1,
            bulk=bulk,
        )
        record = Record(offset, 0, None, records.encode(manifest, payload))
        arrived.append(session._intake.take(record))
    assert isinstance(arrived[1], UpdateArrived)
    session._refuse(Refuse("site/0", "superseded-by-on-time", 0), arrived[1])
    session._refuse(Refuse("site/9", "unknown-client"), arrived[1])
    assert list(session._intake._held) == [1]
    assert reporter.refused_updates == {"superseded-by-on-time": 1}
    assert session._intake.refusals == {"unknown-client": 1}
    session.close()
    reporter.close()


@pytest.mark.parametrize("can_trim", [True, False])
def test_small_records_of_a_long_run_are_let_go_where_the_log_can(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch, can_trim: bool
) -> None:
    monkeypatch.setattr("fedlog.server.retention.RECORDS_PER_TRIM", 3)
    monkeypatch.setattr("fedlog.server.session._LOOK_BACK_RECORDS", 2)
    log._can_trim = can_trim
    retain = {"topics": {"deletionPolicy": "Retain"}}
    running = bench.serve(make_job(bench.folder, rounds=10, kafka=retain))
    bench.play(10)
    assert running.verdict().participation == dict.fromkeys(SITES, 10)
    for topic in (bench.names.events, bench.names.control):
        assert (log._topics[topic][1][0].start > 12) == can_trim, topic
    assert log._topics[bench.names.journal][1][0].start == 0


def test_payloads_are_not_held_after_they_are_folded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[int]] = []
    commit = ServerSession._commit

    def look(session: ServerSession, action: Any) -> Any:
        held.append([len(payload) for _, payload in session._intake._held.values()])
        return commit(session, action)

    monkeypatch.setattr(ServerSession, "_commit", look)
    running = bench.serve(make_job(bench.folder, rounds=2))
    bench.play(2)
    running.verdict()
    assert held == [[0, 0], [0, 0]]


def test_totals_are_the_sums_of_the_reports(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reporters: list[Reporter] = []
    made = Reporter.__init__

    def keep(reporter: Reporter, *arguments: Any) -> None:
        reporters.append(reporter)
        made(reporter, *arguments)

    monkeypatch.setattr(Reporter, "__init__", keep)
    running = bench.serve(make_job(bench.folder, size=BULK))
    bench.play(2, size=BULK)
    result = running.verdict()
    reports = read_metrics(bench.output.metrics)
    assert reports[0].bytes_down > BULK
    assert result.bytes_down == sum(r.bytes_down for r in reports)
    assert result.bytes_up == sum(r.bytes_up for r in reports) > 4 * BULK
    text = reporters[0].metrics.render().decode()
    assert f'{{direction="down",form="encoded"}} {float(result.bytes_down)}' in text
