"""What the simulation would notice: one thing at a time is made wrong in the real code.

Each case names the invariant of `docs/log-protocol.md` that it breaks and what is said of it. The
same schedules without a mutation break nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fedlog.rounds import actions as do
from fedlog.rounds.engine import Engine, RoundState
from fedlog.rounds.membership import Joining
from fedlog.rounds.standing import Standing
from fedlog.server import federated, journal
from fedlog.server.control import ControlLog
from fedlog.server.session import ServerSession
from fedlog.transport.base import Bytes
from fedlog.transport.errors import FencedError
from fedlog.wire import records
from unit.rounds.simulation import Broken, Weather, federation
from unit.rounds.test_schedules import longest_s

Patch = pytest.MonkeyPatch
SCHEDULES = 60


def on_resume(patch: Patch, change: Callable[[Standing], Standing]) -> None:
    """Every new server goes on from what `change` makes of its predecessor's state."""
    resume = Engine.__dict__["resume"].__func__

    def changed(cls: type[Engine], config: Any, standing: Standing, now: float) -> Engine:
        engine: Engine = resume(cls, config, change(standing), now)
        return engine

    patch.setattr(Engine, "resume", classmethod(changed))


def what_counted_is_forgotten(patch: Patch) -> None:
    on_resume(patch, lambda standing: replace(standing, accepted={}))


def participation_is_forgotten(patch: Patch) -> None:
    on_resume(patch, lambda standing: replace(standing, participation={}))


def late_updates_are_forgotten(patch: Patch) -> None:
    on_resume(patch, lambda standing: replace(standing, late=()))


def deadlines_are_forgotten(patch: Patch) -> None:
    resume = Engine.__dict__["resume"].__func__

    def changed(cls: type[Engine], *args: Any) -> Engine:
        engine: Engine = resume(cls, *args)
        engine._deadline = 1e8
        if engine.round is not None:
            engine.round.deadline = 1e8
        return engine

    patch.setattr(Engine, "resume", classmethod(changed))


def members_are_those_of_now(patch: Patch) -> None:
    def everybody(members: Any, offset: int) -> dict[str, tuple[Joining, ...]]:
        del offset
        return {m.client: tuple(Joining(*each) for each in m.incarnations) for m in members}

    patch.setattr(journal, "_members_at", everybody)


def new_servers_read_from_the_end(patch: Patch) -> None:
    take_over = ServerSession._take_over

    def changed(server: ServerSession, *args: Any) -> None:
        take_over(server, *args)
        server._events.seek(server._events.end_offset())

    patch.setattr(ServerSession, "_take_over", changed)


def heads_pass_over_what_was_not_read(patch: Patch) -> None:
    head_now = ServerSession._head_now

    def changed(server: ServerSession) -> records.Head:
        head = head_now(server)
        return head.model_copy(update={"events_offset": server._events.end_offset() + 20})

    patch.setattr(ServerSession, "_head_now", changed)


def late_updates_come_first(patch: Patch) -> None:
    advance = Engine._advance_closing

    def changed(engine: Engine, current: RoundState) -> None:
        current.accepted.sort(key=lambda update: update.round)
        advance(engine, current)

    patch.setattr(Engine, "_advance_closing", changed)


def versions_depend_on_who_made_them(patch: Patch) -> None:
    commit = ServerSession._commit

    def changed(server: ServerSession, round_: do.CommitRound) -> Any:
        server._model.weights["w"][0] += server._epoch
        return commit(server, round_)

    patch.setattr(ServerSession, "_commit", changed)


def a_small_round_does_not_say_so(patch: Patch) -> None:
    advance = Engine._advance_closing

    def changed(engine: Engine, current: RoundState) -> None:
        current.below_quorum = False
        advance(engine, current)

    patch.setattr(Engine, "_advance_closing", changed)


def told_before_journaled(patch: Patch) -> None:
    say = ControlLog.say

    def changed(
        control: ControlLog,
        told: Sequence[tuple[records.ControlRecord, Bytes]],
        journaled: Sequence[tuple[records.JournalRecord, Bytes]] = (),
        *,
        new_work: bool = False,
    ) -> None:
        say(control, told, (), new_work=new_work)
        say(control, (), journaled)

    patch.setattr(ControlLog, "say", changed)


def fenced_servers_go_on(patch: Patch) -> None:
    say = ControlLog.say

    def changed(control: ControlLog, *args: Any, **options: Any) -> None:
        try:
            say(control, *args, **options)
        except FencedError:
            control.work_offset = control.work_offset or 0

    patch.setattr(ControlLog, "say", changed)


def epochs_stay(patch: Patch) -> None:
    read = journal.read_journal

    def changed(*args: Any) -> journal.Journal:
        found = read(*args)
        if found.head is not None:
            head = found.head.model_copy(update={"epoch": found.head.epoch - 1})
            found.head = head
        return found

    patch.setattr(federated, "read_journal", changed)


def nothing(patch: Patch) -> None:
    del patch


ROUGH = Weather(
    delay_s=0.3,
    loses_process=0.2,
    comes_back=1.0,
    duplicates=0.2,
    unfit=0.02,
    pauses=0.05,
    straggler_s=15.0,
    crashes=0.04,
    stalls=0.02,
    most_mishaps=6,
)


def spec(**participation: Any) -> dict[str, Any]:
    return {
        "clients": [{"name": "site", "replicas": 5}],
        "rounds": 4,
        "participation": {
            "minClients": 2,
            "joinTimeoutSeconds": 30,
            "roundTimeoutSeconds": 20,
            **participation,
        },
    }


LATE = spec(lateUpdates="FoldNext")


SMALL = spec(minClients=4, onTimeout="Proceed")
ALL = spec(minClients=5)
CASES = [
    # what is made wrong, job, weather, what is said of it, a seed that shows it today
    ("1-counted", what_counted_is_forgotten, LATE, replace(ROUGH, fails=0.4), "count|again", 0),
    ("2-order", late_updates_come_first, LATE, ROUGH, "out of order", 0),
    ("2-function", versions_depend_on_who_made_them, spec(), ROUGH, "come to|digests", 0),
    ("2-told-first", told_before_journaled, spec(), ROUGH, "are number|digests|journal has", 3),
    ("2-members", members_are_those_of_now, spec(), ROUGH, "told that", 21),
    ("3-unread", new_servers_read_from_the_end, spec(), ROUGH, "again", 0),
    ("3-passed-over", heads_pass_over_what_was_not_read, spec(), ROUGH, "again", 39),
    ("4-quorum", a_small_round_does_not_say_so, SMALL, ROUGH, "does not say so", 0),
    ("4-participation", participation_is_forgotten, spec(), ROUGH, "took part", 0),
    ("5-deadline", deadlines_are_forgotten, ALL, replace(ROUGH, comes_back=0.2), "not over", 0),
    ("fenced", fenced_servers_go_on, spec(), replace(ROUGH, stalls=0.1), "journal|digests", 0),
    ("epochs", epochs_stay, spec(), ROUGH, "two servers are number", 0),
]


@pytest.mark.parametrize(
    ("mutate", "job", "weather", "said", "known"),
    [pytest.param(*case, id=name) for name, *case in CASES],
)
def test_the_simulation_notices(
    mutate: Callable[[Patch], None],
    job: dict[str, Any],
    weather: Weather,
    said: str,
    known: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    mutate(monkeypatch)
    for seed in (known, *range(SCHEDULES)):
        with federation(job, replace(weather, shows_aborted=seed % 2 == 1), seed) as made:
            try:
                made.run(longest_s(made))
            except Broken as broken:
                found.append(str(broken))
        if found and re.search(said, found[-1]):
            return
    pytest.fail(f"{SCHEDULES} schedules: {found or 'nothing is broken'}")


@pytest.mark.parametrize("job", [spec(), LATE], ids=["discard", "fold-next"])
def test_the_same_schedules_break_nothing_without_a_mutation(job: dict[str, Any]) -> None:
    for seed in range(40):
        with federation(job, replace(ROUGH, shows_aborted=seed % 2 == 1), seed) as made:
            made.run(longest_s(made))
