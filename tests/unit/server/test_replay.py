"""Replay: the log makes the versions that the journal names, and a tampered one does not."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlog.job.model import StrategyParameters, StrategySpec
from fedlog.server.errors import ReplayError
from fedlog.server.replay import ReplayedRound, Rule, Verdict, replay
from fedlog.telemetry.run_folder import read_metrics
from fedlog.transport.archive import ArchiveTransport
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records, tensors
from fedlog.wire.limits import Limits
from unit.server.by_hand import BULK, SITES, SMALL, Bench, make_job

KEPT = {"topics": {"retain": "All", "deletionPolicy": "Retain"}}
VALUES = ((0.5, -0.25), (1.0, 0.125), (-0.75, 0.5))  # of site/0 and site/1, round by round


def played(bench: Bench, size: int = SMALL, kafka: dict[str, Any] = KEPT) -> None:
    """A finished run of as many rounds as VALUES; site/1 has three times the examples."""
    running = bench.serve(make_job(bench.folder, size=size, rounds=len(VALUES), kafka=kafka))
    bench.join(*SITES)
    for number, values in enumerate(VALUES, 1):
        work = bench.asked(number)
        for client, value, examples in zip(SITES, values, (1, 3), strict=True):
            bench.update(client, work, size=size, value=value, examples=examples)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"


def verdicts(found: list[ReplayedRound]) -> list[str]:
    return [str(each.verdict) for each in found]


def tampered(log: MemoryTransport, topic: str, offset: int, value: bytes) -> None:
    """Put another value where a record is, as only who owns the broker's disk can."""
    partition = log._topics[topic][1][0]
    position = partition.index(offset)
    entry = partition.entries[position]
    assert entry.offset == offset
    partition.entries[position] = replace(entry, record=entry.record._replace(value=value))


def manifests(bench: Bench, log: MemoryTransport) -> list[tuple[int, records.Updated, bytes]]:
    found = []
    for record in log.reader(bench.names.events).poll(0.1, 10_000):
        said, payload = records.decode(record.value)
        if isinstance(said, records.Updated):
            found.append((record.offset, said, bytes(payload)))
    return found


@pytest.mark.parametrize("size", [SMALL, BULK], ids=["inline", "chunks"])
def test_every_version_comes_out_as_the_journal_names_it(
    bench: Bench, log: MemoryTransport, size: int
) -> None:
    played(bench, size)
    seen = []
    found = replay(log, bench.run, on_round=lambda each, of: seen.append((each.round, of)))
    assert verdicts(found) == ["ok"] * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    reports = read_metrics(bench.output.metrics)
    assert [each.digest for each in found] == [r.digest for r in reports if r.round]
    assert [each.updates for each in found] == [2, 2, 2]


def test_an_update_that_was_changed_on_the_log_is_named(bench: Bench, log: MemoryTransport) -> None:
    """Round 2 cannot be what the journal says; round 3 departs from the version on the log."""
    played(bench, BULK)
    _, manifest, _ = next(m for m in manifests(bench, log) if m[1].round == 2)
    topic, first = manifest.bulk.topic, manifest.bulk.runs[0][0]
    assert topic is not None
    before = next(log.bulk_reader(1).read(topic, 0, [first], 1))
    tampered(log, topic, first, before[:-1] + bytes([before[-1] ^ 1]))
    found = replay(log, bench.run)
    assert verdicts(found) == ["ok", "differs", "ok"]
    assert f"the update of {manifest.client}" in found[1].reason
    assert "digest" in found[1].reason


def test_an_update_that_was_exchanged_for_a_valid_one_makes_another_version(
    bench: Bench, log: MemoryTransport
) -> None:
    played(bench)
    offset, manifest, payload = next(m for m in manifests(bench, log) if m[1].round == 2)
    weights = {"w": np.full(SMALL // 4, 0.25, np.float32)}
    forged = b"".join(tensors.encode(weights))
    assert len(forged) == len(payload)
    from fedlog.wire.bulk import build_manifest, chunk_digest

    bulk = build_manifest(
        codec="none",
        size=len(forged),
        encoded_size=len(forged),
        chunk_bytes=len(forged),
        digests=[chunk_digest(forged)],
    )
    value = records.encode(manifest.model_copy(update={"bulk": bulk}), forged)
    tampered(log, bench.names.events, offset, value)
    found = replay(log, bench.run)
    assert verdicts(found) == ["ok", "differs", "ok"]
    assert found[1].digest not in (None, found[1].committed)


def test_an_announcement_of_a_huge_version_is_passed_over(
    bench: Bench, log: MemoryTransport
) -> None:
    """Anybody who may write to `control` could say where a version is."""
    played(bench, BULK)
    said = next(r for r in bench._heard if isinstance(r, records.Announced) and r.round == 2)
    claim = said.model.model_copy(
        update={"size": 2**60, "chunk_bytes": -(-(2**60) // said.model.chunk_count)}
    )
    value = records.encode(said.model_copy(update={"model": claim}))
    log.writer().send(bench.names.control, value)
    assert verdicts(replay(log, bench.run, number=2)) == ["ok"]


def test_deleted_rounds_are_named_with_the_cure(bench: Bench, log: MemoryTransport) -> None:
    played(bench, BULK, {"topics": {"deletionPolicy": "Retain"}})
    found = replay(log, bench.run)
    assert verdicts(found) == ["not there", "not there", "ok"]
    wanted = r"round 1 was deleted: the job has topics.retain: Resume; set All before the run"
    assert found[0].reason == wanted
    with pytest.raises(ReplayError, match=wanted):
        replay(log, bench.run, number=1)


def test_a_run_that_the_log_does_not_have_is_refused(bench: Bench, log: MemoryTransport) -> None:
    with pytest.raises(ReplayError, match=r"no journal of fedlog\.default\.other"):
        replay(log, "fedlog.default.other")
    played(bench)
    with pytest.raises(ReplayError, match="no round 4: 3 rounds"):
        replay(log, bench.run, number=4)
    with pytest.raises(ReplayError, match="no client site/2"):
        replay(log, bench.run, rule=Rule(without=frozenset({"site/2"})))


def test_without_a_client_the_round_is_what_the_others_make_of_it(
    bench: Bench, log: MemoryTransport, tmp_path: Path
) -> None:
    """Round 1 departs from zeros. With both: (1 * 0.5 + 3 * -0.25) / 4 = -0.0625; with site/0
    alone: 0.5. So they are sqrt(n) * 0.5625 apart, and the committed step is sqrt(n) * 0.0625.
    """
    played(bench)
    path = tmp_path / "other.safetensors"
    rule = Rule(without=frozenset({"site/1"}))
    (found,) = replay(log, bench.run, number=1, rule=rule, save=path)
    assert found.verdict is Verdict.OK
    other = found.other
    assert other is not None
    root = np.sqrt(SMALL // 4)
    assert other.difference == pytest.approx(0.5625 * root)
    assert other.step == pytest.approx(0.0625 * root)
    assert [(w.client, w.examples, w.share) for w in other.weighed] == [("site/0", 1, 1.0)]
    saved = tensors.decode(path.read_bytes(), Limits.for_model(SMALL))
    assert set(np.unique(saved["w"])) == {np.float32(0.5)}


def test_another_rule_is_applied_to_each_round_from_the_committed_version(
    bench: Bench, log: MemoryTransport
) -> None:
    """At half the server's learning rate each round stops half way: half a step apart."""
    played(bench)
    half = StrategySpec(parameters=StrategyParameters(server_learning_rate=Decimal("0.5")))
    found = replay(log, bench.run, rule=Rule(strategy=half))
    assert verdicts(found) == ["ok"] * 3
    for each in found:
        assert each.other is not None
        assert each.other.step is not None
        assert each.other.difference == pytest.approx(each.other.step / 2)
        assert [w.share for w in each.other.weighed] == [0.25, 0.75]


def test_a_rule_that_leaves_nobody_makes_no_version(bench: Bench, log: MemoryTransport) -> None:
    played(bench)
    found = replay(log, bench.run, rule=Rule(without=frozenset(SITES)))
    assert verdicts(found) == ["ok"] * 3
    assert all(each.other is not None and each.other.problem for each in found)


def test_with_all_the_run_folder_has_the_log_when_the_topics_are_gone(
    bench: Bench, log: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    played(bench, BULK, {"topics": {"retain": "All"}})
    assert log.partitions(bench.names.journal) is None
    archive = ArchiveTransport(bench.output.log)
    assert archive.run == bench.run
    assert verdicts(replay(archive, archive.run)) == ["ok"] * 3
    assert re.search(r"log\.sqlite: \d+ records, 2\.\d MB", caplog.text)


def test_where_the_topics_stay_the_log_stays_there(bench: Bench, log: MemoryTransport) -> None:
    played(bench)
    assert not bench.output.log.exists()
    assert verdicts(replay(log, bench.run)) == ["ok"] * 3


def test_a_log_that_cannot_be_written_keeps_the_topics(
    bench: Bench, log: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.output.path / f".log.sqlite.{os.getpid()}").mkdir(parents=True)  # in its way
    played(bench, SMALL, {"topics": {"retain": "All"}})
    assert "its topics are not deleted" in caplog.text
    assert verdicts(replay(log, bench.run)) == ["ok"] * 3


def test_updates_that_cover_a_part_of_the_model_are_folded_as_the_server_did(
    bench: Bench, log: MemoryTransport
) -> None:
    """Half the tensor is covered by both clients, the other half by one; and in other rounds."""
    running = bench.serve(make_job(bench.folder, rounds=2, weightAdaptation="Adapt", kafka=KEPT))
    bench.join(*SITES)
    for number, sizes in ((1, (SMALL, SMALL // 2)), (2, (SMALL // 4, SMALL // 2))):
        work = bench.asked(number)
        for client, size in zip(SITES, sizes, strict=True):
            bench.update(client, work, size=size, value=0.1 * number, examples=number)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
    found = replay(log, bench.run)
    assert verdicts(found) == ["ok", "ok"]
    assert found[1].committed == running.verdict().digest
