"""What is deleted, when, and what is never touched."""

from __future__ import annotations

import pytest

from fedlog.server.retention import RECORDS_PER_TRIM, BulkTopic, SmallTopic, keep_from
from fedlog.transport.base import TopicSpec
from fedlog.transport.bulk import upload
from fedlog.transport.errors import TransportError
from fedlog.transport.memory import MemoryTransport
from fedlog.wire.bulk import BulkManifest


def write(log: MemoryTransport, topic: str, partition: int = 0) -> BulkManifest:
    manifest, _ = upload(
        log.writer(),
        [bytes(1000)],
        topic=topic,
        partition=partition,
        chunk_bytes=400,
        inline_bytes=0,
        timeout_s=5,
    )
    return manifest


def first_offset(log: MemoryTransport, topic: str, partition: int = 0) -> int:
    return log._topics[topic][1][partition].start


def bulk_topic(log: MemoryTransport, *, ours: bool = True) -> BulkTopic:
    spec = TopicSpec("updates", partitions=2)
    created = log.create_topics([spec])
    return BulkTopic(log, spec, set(created) if ours else set())


def test_a_late_update_goes_with_the_commit_that_took_it() -> None:
    """Commit 2 takes one update of its round and a late one of round 1; one of round 2 waits."""
    log = MemoryTransport()
    topic = bulk_topic(log)
    on_time, waits, late = (write(log, "updates") for _ in range(3))
    topic.holds(2, on_time)
    topic.holds(2, late)
    topic.let_go(keep_from(2, finishing=[], late=[2], lateness=10))
    assert first_offset(log, "updates") <= waits.runs[0][0]
    topic.let_go(3)
    assert first_offset(log, "updates") == sum(late.runs[-1])


def test_a_member_that_never_finishes_keeps_a_bounded_number_of_rounds() -> None:
    assert keep_from(5, finishing=[2], late=[], lateness=10) == 2
    assert keep_from(50, finishing=[2], late=[], lateness=10) == 41
    assert keep_from(50, finishing=[2], late=[39], lateness=10) == 39
    assert keep_from(50, finishing=[], late=[], lateness=10) == 50


def test_only_live_generations_and_partitions_that_exist_take_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedlog.server.retention.GENERATION_BYTES", 500)
    log = MemoryTransport(can_trim=False)
    topic = bulk_topic(log)
    log.create_topics([TopicSpec("own", partitions=3)])
    old = write(log, "updates", partition=1)
    assert topic.takes(old)
    assert not topic.takes(write(log, "own"))
    assert not topic.takes(old.model_copy(update={"partition": 2}))

    topic.holds(1, old)
    topic.begin_after(1)
    assert topic.current == "updates.1"
    assert topic.takes(write(log, topic.current))
    assert topic.takes(old)
    topic.let_go(1)
    assert log.partitions("updates") == 2
    topic.let_go(2)
    assert log.partitions("updates") is None
    assert not topic.takes(old)
    assert topic.created == {"updates.1"}


@pytest.mark.parametrize("ours", [True, False])
def test_a_generation_that_a_dead_predecessor_made_goes_with_the_others(
    monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """It died before its head named the new topic. Beside a topic of somebody else's it stays."""
    monkeypatch.setattr("fedlog.server.retention.GENERATION_BYTES", 500)
    log = MemoryTransport(can_trim=False)
    topic = bulk_topic(log, ours=ours)
    log.create_topics([TopicSpec("updates.1", partitions=2)])
    for number in (1, 2):
        topic.holds(number, write(log, topic.current))
        topic.begin_after(number)
    assert topic.current == "updates.2"
    topic.let_go(3)
    gone = {name for name in ("updates", "updates.1") if log.partitions(name) is None}
    assert gone == ({"updates", "updates.1"} if ours else set())


def test_what_the_run_did_not_create_is_left_alone() -> None:
    log = MemoryTransport()
    topic = bulk_topic(log, ours=False)
    topic.holds(1, write(log, "updates"))
    topic.let_go(9)
    assert first_offset(log, "updates") == 0
    small = SmallTopic(log, "updates", created=set())
    small.let_go(10 * RECORDS_PER_TRIM)
    assert first_offset(log, "updates") == 0


@pytest.mark.parametrize("can_trim", [True, False])
def test_what_cannot_be_deleted_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, can_trim: bool
) -> None:
    def refuse(*_: object) -> None:
        raise TransportError("not authorized")

    monkeypatch.setattr("fedlog.server.retention.GENERATION_BYTES", 500)
    log = MemoryTransport(can_trim=can_trim)
    topic = bulk_topic(log)
    topic.holds(1, write(log, "updates"))
    topic.begin_after(1)
    monkeypatch.setattr(log, "trim", refuse)
    monkeypatch.setattr(log, "delete_topics", refuse)
    topic.let_go(5)
    assert "not authorized" in caplog.text
    assert "updates" in topic.created  # deleted with the others when the run ends


def test_small_records_are_trimmed_many_at_a_time() -> None:
    log = MemoryTransport()
    created = log.create_topics([TopicSpec("events")])
    writer = log.writer()
    for _ in range(2 * RECORDS_PER_TRIM):
        writer.send("events", b"x")
    small = SmallTopic(log, "events", created)
    small.let_go(RECORDS_PER_TRIM - 1)
    assert first_offset(log, "events") == 0
    small.let_go(RECORDS_PER_TRIM + 7)
    assert first_offset(log, "events") == RECORDS_PER_TRIM + 7
    small.let_go(2 * RECORDS_PER_TRIM)
    assert first_offset(log, "events") == RECORDS_PER_TRIM + 7
