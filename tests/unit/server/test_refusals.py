"""A flood of bad records: counted, listed with its senders, and told in a few lines."""

from __future__ import annotations

import logging

import pytest

from fedlog.rounds.events import ClientJoined, ClientSeen, UpdateArrived
from fedlog.server.intake import QUOTA_WINDOW_S, QUOTAS, Intake
from fedlog.server.refusals import Refusals
from fedlog.telemetry.bursts import BURST_S
from fedlog.telemetry.status import MAX_REFUSALS
from fedlog.transport.base import Record
from fedlog.wire import records
from fedlog.wire.bulk import build_manifest, chunk_digest

RUN = "fedlog.default.digits.manual"
INCARNATION = "a" * 16
INLINE = build_manifest(
    codec="none", size=4, encoded_size=4, chunk_bytes=4, digests=[chunk_digest(b"data")]
)


class Clock:
    """Time as the test says it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told(clock: Clock) -> Refusals:
    return Refusals(clock)


@pytest.fixture
def intake(told: Refusals, clock: Clock) -> Intake:
    return Intake(RUN, told, clock=clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def joined(client: str = "site/0") -> bytes:
    return records.encode(records.Joined(run=RUN, client=client, incarnation=INCARNATION))


def updated(client: str = "site/0") -> bytes:
    manifest = records.Updated(
        run=RUN,
        client=client,
        incarnation=INCARNATION,
        round=1,
        base="b" * 64,
        examples=1,
        bulk=INLINE,
    )
    return records.encode(manifest, b"data")


def test_a_burst_is_told_once_and_summed_up(
    told: Refusals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedlog.server.refusals")
    for offset in range(5000):
        clock.now += 0.001  # 5 s of flood
        told.add("malformed: no JSON", client="unknown", topic="events", offset=offset)
    told.add("quota: too many", client="site/1", topic="events", offset=5000)
    assert lines(caplog) == [
        "unknown: record 0 of events is refused: malformed: no JSON",
        "site/1: record 5000 of events is refused: quota: too many",
    ]
    clock.now += BURST_S
    told.tell()
    told.tell()
    assert lines(caplog)[2:] == ["4999 more records refused (malformed) within 15 s"]
    clock.now += BURST_S
    told.add("malformed: again", client="unknown", topic="events", offset=6000)
    assert lines(caplog)[3:] == ["unknown: record 6000 of events is refused: malformed: again"]
    assert told.totals == {"malformed": 5001, "quota": 1}


def test_one_entry_for_each_sender_and_reason_and_the_oldest_go_first(told: Refusals) -> None:
    for offset in range(3):
        told.add("unfit: NaN", client="site/0", topic="events", offset=offset)
    (entry,) = told.recent()
    assert (entry.reason, entry.client, entry.offset, entry.count) == ("unfit", "site/0", 2, 3)
    for number in range(MAX_REFUSALS - 1):
        told.add("unknown-client", client=f"stranger/{number}", topic="events", offset=number)
    assert entry in told.recent()
    told.add("late", client="site/1", topic="events", offset=99)
    assert len(told.recent()) == MAX_REFUSALS
    assert entry not in told.recent()
    assert told.recent()[-1].client == "site/1"


@pytest.mark.parametrize(
    ("value", "reason", "client"),
    [
        (b"", "malformed", "unknown"),
        (b"garbage" * 9, "malformed", "unknown"),
        (b"FLR2" + b"\0" * 20, "version", "unknown"),
        (joined().replace(RUN.encode(), b"another.default.digits.manua"), "other-run", "site/0"),
        (b"FLR1" + (2**31).to_bytes(4, "little") + b" " * 64, "too-large", "unknown"),
        (
            records.encode(
                records.Stopped(run=RUN, epoch=1, outcome="Complete", reason="", round=1)
            ),
            "misplaced",
            "unknown",
        ),
    ],
    ids=["empty", "garbage", "newer frame", "other run", "huge header", "server's record"],
)
def test_each_refusal_names_its_reason_sender_and_offset(
    intake: Intake, told: Refusals, value: bytes, reason: str, client: str
) -> None:
    assert intake.take(Record(7, 0, None, value)) is None
    (entry,) = told.recent()
    assert (entry.reason, entry.client, entry.topic, entry.offset) == (reason, client, "events", 7)
    assert intake.refusals == {reason: 1}


def test_a_client_above_its_quota_is_refused_and_others_are_not(
    intake: Intake, told: Refusals
) -> None:
    limit = QUOTAS[records.Updated]
    for offset in range(limit + 100):
        event = intake.take(Record(offset, 0, None, updated()))
        assert isinstance(event, UpdateArrived) == (offset < limit)
    assert intake.refusals == {"quota": 100}
    (entry,) = told.recent()
    assert (entry.reason, entry.client, entry.count) == ("quota", "site/0", 100)
    # One kind of one client: nothing else of it, and nobody else.
    assert isinstance(intake.take(Record(900, 0, None, updated("site/1"))), UpdateArrived)
    assert isinstance(intake.take(Record(901, 0, None, joined())), ClientJoined)


def test_a_new_round_or_a_minute_gives_a_new_quota(intake: Intake, clock: Clock) -> None:
    def taken() -> int:
        events = [intake.take(Record(n, 0, None, updated())) for n in range(50)]
        return sum(event is not None for event in events)

    assert (taken(), taken()) == (QUOTAS[records.Updated], 0)
    intake.keep_only(set())  # the round is over
    assert (taken(), taken()) == (QUOTAS[records.Updated], 0)
    clock.now += QUOTA_WINDOW_S
    assert (taken(), taken()) == (QUOTAS[records.Updated], 0)


def test_signs_of_life_have_no_quota(intake: Intake) -> None:
    """After an hour without a server there is an hour of them."""
    beat = records.encode(records.Heartbeat(run=RUN, client="site/0", incarnation=INCARNATION))
    events = [intake.take(Record(n, 0, None, beat)) for n in range(3600)]
    assert {type(event) for event in events} == {ClientSeen}


def test_strangers_cannot_fill_the_memory_by_their_names(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlog.server.intake._MAX_COUNTED", 10)
    for number in range(1000):
        intake.take(Record(number, 0, None, joined(f"stranger/{number}")))
    assert len(intake._taken) <= 10
