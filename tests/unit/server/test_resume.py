"""A server that takes over from the log alone: what it publishes, counts and asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlog.job.errors import JobError
from fedlog.server import federated
from fedlog.server.errors import ServerError
from fedlog.telemetry.run_folder import RunFolder, read_metrics
from fedlog.transport.errors import FencedError
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest
from unit.server.by_hand import BULK, INCARNATION, SITES, Bench, make_job

LATER = "b" * 16


def journal_of(bench: Bench, log: MemoryTransport) -> list[records.AnyRecord]:
    reader = log.reader(bench.names.journal, committed=True)
    found = []
    while batch := reader.poll(0.01):
        found += [records.decode(record.value)[0] for record in batch]
    return found


def announced(bench: Bench, epoch: int, round_: int) -> records.Announced:
    return bench.hear(records.Announced, lambda a: a.epoch == epoch and a.round == round_)


def welcomed(bench: Bench, epoch: int, client: str, incarnation: str) -> records.Welcome:
    return bench.hear(
        records.Welcome, lambda w: w.epoch == epoch and w.clients.get(client) == incarnation
    )


def killed(bench: Bench) -> None:
    """The server ends without a word: nothing is written when it is asked to end."""
    bench.end()
    bench._servers.clear()


@pytest.mark.parametrize("size", [4096, BULK], ids=["inline", "chunks"])
def test_the_next_server_goes_on_where_the_first_one_stopped(bench: Bench, size: int) -> None:
    job = make_job(bench.folder, size=size, rounds=3)
    bench.serve(job)
    bench.join(*SITES)
    first = bench.asked(1)
    for client in SITES:
        bench.update(client, first, size=size)
    second = bench.asked(2)
    bench.update(SITES[0], second, size=size)
    killed(bench)

    running = bench.serve(job, output=bench.folder / "elsewhere")
    again = announced(bench, 2, 2)
    assert (again.base, again.cohort) == (second.base, second.cohort)
    assert again.model == second.model
    bench.update(SITES[1], again, size=size)
    third = bench.asked(3)
    for client in SITES:
        bench.update(client, third, size=size)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    result = running.verdict()
    assert (result.outcome, result.rounds) == ("Complete", 3)
    assert result.participation == {"site/0": 3, "site/1": 3}
    # What was folded, round by round, is as if there had been one server.
    reports = read_metrics(RunFolder(bench.folder / "elsewhere").metrics)
    assert [(r.round, r.accepted) for r in reports] == [(0, 0), (1, 2), (2, 2), (3, 2)]
    assert reports[1].participants == SITES
    assert reports[1].digest == second.base


def test_the_rounds_come_out_as_with_one_server(tmp_path: Path) -> None:
    digests = []
    for name, stops in (("one", False), ("two", True)):
        bench = Bench(tmp_path, MemoryTransport(), run=name)
        job = make_job(tmp_path, rounds=2)
        running = bench.serve(job, output=tmp_path / name)
        bench.join(*SITES)
        work = bench.asked(1)
        bench.update("site/1", work, value=0.3, examples=3)
        if stops:
            killed(bench)
            running = bench.serve(job, output=tmp_path / name)
        bench.update("site/0", work, value=0.7, examples=5)
        work = bench.asked(2)
        for client in SITES:
            bench.update(client, work, value=0.1)
        bench.hear(records.Announced, lambda a: a.training is None)
        bench.leave(*SITES)
        digests.append((work.base, running.verdict().digest))
    assert digests[0] == digests[1]


def test_a_client_that_restarts_too_learns_that_its_update_counts(bench: Bench) -> None:
    job = make_job(bench.folder, rounds=2)
    bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    bench.update("site/0", work)
    killed(bench)
    # While nobody serves: the client ends, and another process starts in its place.
    bench.say(records.Joined(run=bench.run, client="site/0", incarnation=LATER))
    bench.serve(job)
    welcome = welcomed(bench, 2, "site/0", LATER)
    assert welcome.committed == {"site/0": 1}
    bench.update("site/1", work)
    closed = bench.hear(records.Closed)
    assert sorted(closed.accepted) == ["site/0", "site/1"]


def test_a_client_that_was_replaced_before_the_crash_counts_once(bench: Bench) -> None:
    """The journal knows the new incarnation; its predecessor's update is older, and counts."""
    job = make_job(bench.folder, rounds=2)
    bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    bench.update("site/0", work)
    bench.say(records.Joined(run=bench.run, client="site/0", incarnation=LATER))
    assert welcomed(bench, 1, "site/0", LATER).committed == {"site/0": 1}
    killed(bench)
    bench.serve(job)
    bench.update("site/1", work)
    closed = bench.hear(records.Closed)
    assert sorted(closed.accepted) == ["site/0", "site/1"]
    # The replaced process wakes up late: it is no member any more, for the new server neither.
    bench.say(records.Joined(run=bench.run, client="site/0", incarnation=INCARNATION))
    bench.say(records.Joined(run=bench.run, client="site/1", incarnation=LATER))
    welcomed(bench, 2, "site/1", LATER)
    told = [r for r in bench._heard if isinstance(r, records.Welcome) and r.epoch == 2]
    assert all(w.clients.get("site/0") != INCARNATION for w in told)


def test_what_came_while_nobody_served_is_folded(bench: Bench) -> None:
    job = make_job(bench.folder, rounds=1)
    bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    killed(bench)
    for client in SITES:
        bench.update(client, work)
    running = bench.serve(job)
    bench.hear(records.Closed)
    bench.leave(*SITES)
    assert running.verdict().rounds == 1


def test_late_updates_and_unfinished_clients_survive_the_server(bench: Bench) -> None:
    job = make_job(
        bench.folder,
        rounds=3,
        participation={
            "clientsPerRound": 1,
            "minClients": 1,
            "overSelection": "2",
            "lateUpdates": "FoldNext",
        },
    )
    bench.serve(job)
    bench.join(*SITES)
    first = bench.asked(1)
    bench.update("site/0", first)
    bench.hear(records.Closed, lambda c: c.round == 1)
    late = bench.update("site/1", first)  # kept for the next version
    second = bench.asked(2)
    killed(bench)
    bench.serve(job)
    again = announced(bench, 2, 2)
    assert again.base == second.base
    bench.update("site/0", again)
    closed = bench.hear(records.Closed, lambda c: c.round == 2)
    assert closed.accepted["site/1"] == late


def test_the_verdict_is_the_journals_where_the_server_died_after_it(
    bench: Bench, log: MemoryTransport
) -> None:
    job = make_job(bench.folder, rounds=1, kafka={"topics": {"deletionPolicy": "Retain"}})
    running = bench.serve(job)
    bench.play(1, metrics={"loss": 0.5})
    before = running.verdict()
    bench.output.result.unlink()
    bench.output.model.unlink()
    after = bench.serve(job).verdict()
    same = {"seconds", "versions"}
    assert after.model_dump(exclude=same) == before.model_dump(exclude=same)
    stops = [r for r in bench._heard if isinstance(r, records.Stopped)]
    bench.hear(records.Stopped, lambda s: s.epoch == 2)
    assert len(stops) <= 2


def test_a_server_that_dies_after_it_has_deleted_the_topics_does_not_begin_anew(
    bench: Bench, log: MemoryTransport
) -> None:
    job = make_job(bench.folder, rounds=1)
    running = bench.serve(job)
    bench.play(1)
    before = running.verdict()
    assert log._topics == {}
    assert bench.serve(job).verdict().digest == before.digest
    assert log._topics == {}


def test_members_that_the_job_does_not_have_are_nobody(bench: Bench, log: MemoryTransport) -> None:
    job = make_job(bench.folder, rounds=3)
    bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    killed(bench)
    forged = records.MemberOf(run=bench.run, client="stranger/7", incarnations=((LATER, 0),))
    log.writer().send(bench.names.journal, records.encode(forged)).result(5)
    bench.serve(job)
    for client in SITES:
        bench.update(client, work)
    assert bench.asked(2).cohort == SITES


def test_rounds_without_a_head_are_not_begun_anew(bench: Bench, log: MemoryTransport) -> None:
    """A broker that compacts has kept garbage under the head's key instead."""
    job = make_job(bench.folder, rounds=3)
    bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    for client in SITES:
        bench.update(client, work)
    bench.asked(2)
    killed(bench)
    partition = log._topics[bench.names.journal][1][0]
    partition.entries = [e for e in partition.entries if e.record.key != b"head"]
    running = bench.serve(job)
    with pytest.raises(ServerError, match="--run"):
        running.verdict()
    bench._servers.clear()


def test_another_job_cannot_take_a_run_over(bench: Bench) -> None:
    first = bench.serve(make_job(bench.folder, rounds=2))
    bench.join(*SITES)
    bench.asked(1)
    other = make_job(bench.folder, rounds=2, clients=[{"name": "site", "replicas": 3}])
    with pytest.raises(JobError, match=r"spec\.clients[\s\S]*--run"):
        bench.serve(other, output=bench.folder / "other").verdict()
    assert first.alive
    bench._servers.pop()
    bench.play(2)
    assert first.verdict().outcome == "Complete"


def test_of_two_servers_the_older_is_fenced_stands_by_and_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(bench.folder, rounds=2)
    first = bench.serve(job)
    bench.join(*SITES)
    bench.asked(1)
    second = bench.serve(job, output=bench.folder / "second")
    announced(bench, 2, 1)
    bench.play(2)
    assert second.verdict().outcome == "Complete"
    with pytest.raises(FencedError, match="has ended the run"):
        first.verdict()
    bench._servers.clear()
    assert not bench.output.result.exists()
    assert "fenced: another server" in caplog.text
    closed = [r for r in bench._heard if isinstance(r, records.Closed)]
    assert [c.version for c in closed] == [1, 2]


def test_a_fenced_server_takes_over_again_when_the_other_one_is_silent(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federated, "LEASES", 0.01)
    running = bench.serve(make_job(bench.folder, rounds=1))
    bench.join(*SITES)
    bench.asked(1)
    log.writer(transactional_id=bench.run)  # a server that dies before its first word
    bench.play(1)
    assert running.verdict().outcome == "Complete"


def test_chunks_that_are_gone_are_asked_for_again(bench: Bench, log: MemoryTransport) -> None:
    job = make_job(bench.folder, size=BULK, rounds=1)
    running = bench.serve(job)
    bench.join(*SITES)
    work = bench.asked(1)
    gone = BulkManifest.model_validate(
        {**work.model.model_dump(), "topic": work.updates_topic, "raw_digest": None}
    )
    bench.say(
        records.Updated(
            run=bench.run,
            client="site/0",
            incarnation=INCARNATION,
            round=1,
            base=work.base,
            examples=1,
            bulk=gone,
        )
    )
    bench.update("site/1", work, size=BULK)
    asked = bench.hear(records.Announced, lambda a: a.cohort == ("site/0",))
    bench.update("site/0", asked, size=BULK)
    closed = bench.hear(records.Closed)
    assert sorted(closed.accepted) == ["site/0", "site/1"]
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"


def test_the_time_left_is_journaled(
    bench: Bench, log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlog.server import session

    monkeypatch.setattr(session, "_HEAD_EVERY_S", 0.05)
    job = make_job(bench.folder, participation={"roundTimeoutSeconds": 1, "maxRetries": 1})
    bench.serve(job)
    bench.join(*SITES)
    bench.asked(1)
    bench._until(
        lambda: any(
            isinstance(r, records.Head) and r.deadline_s is not None and r.deadline_s < 0.9
            for r in journal_of(bench, log)
            if not isinstance(r, records.Head) or r.work is not None
        ),
        "a head with less time left",
    )
