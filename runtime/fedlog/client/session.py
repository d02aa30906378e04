"""The client's side of the protocol: a pure state machine without I/O and without a clock.

What comes in is a method: a control record, the result of work, time passing. What goes out is a
tuple of actions that the caller carries out in their order::

    actions = session.receive(record, offset, now)

`now` is in seconds on any monotonic clock of the caller's. The state consists of immutable values
only, so `copy.copy(session)` is a snapshot.

Work is identified by (round, base). A session does one piece of work at a time and remembers at
most one that waits, the newest: what a client cannot keep up with is left out, never queued.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

from fedlog import exit_codes
from fedlog.job.model import EVALUATOR_GROUP
from fedlog.wire.records import (
    Announced,
    Closed,
    ControlRecord,
    Failed,
    Heartbeat,
    Joined,
    Left,
    Stopped,
    Welcome,
)

FIRST_JOIN_DELAY_S = 2.0
LONGEST_JOIN_DELAY_S = 10.0
SHORTEST_SILENCE_S = 60.0
LONGEST_REASON = 2000  # as the records allow
DONE_REMEMBERED = 8

# ---- what the caller is asked to do --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Write this record to `events`."""

    record: Joined | Heartbeat | Failed | Left


@dataclass(frozen=True, slots=True)
class SeekControl:
    """Read control again from this offset on; the session drops what it has handled already."""

    offset: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure version `version` (identity `base`) and write Evaluated; answer with `evaluated`.

    Where a Train of the same announcement follows, do this first; a failure of this one is then
    not reported, since the training may still succeed.
    """

    version: int
    base: str
    test_set: Literal["HeldOut", "Clients"]
    announcement: Announced


@dataclass(frozen=True, slots=True)
class Train:
    """Train the announced version; answer with `trained` or `failed`."""

    announcement: Announced


@dataclass(frozen=True, slots=True)
class AbortTraining:
    """Stop the training or the upload of this work as soon as possible; answer nothing."""

    round: int
    base: str


@dataclass(frozen=True, slots=True)
class Upload:
    """Write the encoded update's chunks, then its manifest; answer with `uploaded` or `failed`.

    The encoded update is kept until Forget: the same may be asked again.
    """

    round: int
    base: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The encoded update of this work is not needed any more."""

    round: int
    base: str


@dataclass(frozen=True, slots=True)
class End:
    """The session is over; `exit_code` is one of `fedlog.exit_codes`."""

    exit_code: int
    reason: str


Action = Send | SeekControl | Evaluate | Train | AbortTraining | Upload | Forget | End
Actions = tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class _Work:
    """An announcement that asks this client for something."""

    announcement: Announced
    test_set: Literal["HeldOut", "Clients"] | None

    @property
    def round(self) -> int:
        return self.announcement.round

    @property
    def key(self) -> tuple[int, str, bool]:
        # The last version may be announced for evaluation under the (round, base) of a training
        # that was cut short, so the kind belongs to the key.
        return self.round, self.announcement.base, self.trains

    @property
    def trains(self) -> bool:
        return self.announcement.training is not None and self.test_set != "HeldOut"


@dataclass(frozen=True, slots=True)
class _Kept:
    """An update whose manifest is on the log, or will be; `epoch` of the server that asked."""

    round: int
    base: str
    epoch: int


class ClientSession:
    """One incarnation of one client; see the module."""

    def __init__(
        self,
        client: str,
        incarnation: str,
        run: str,
        *,
        heartbeat_s: float = 3.0,
        server_timeout_s: float = 600.0,
        label: str = "",
    ) -> None:
        self.client = client
        self.incarnation = incarnation
        self.run = run
        self.heartbeat_s = heartbeat_s
        self.server_timeout_s = server_timeout_s
        self.label = label
        self.is_evaluator = client.partition("/")[0] == EVALUATOR_GROUP

        self.ended = False
        self._epoch = 0  # the highest seen
        self._handled = -1  # control up to this offset was handled as a member
        self._welcome_offset: int | None = None  # the latest welcome of this incarnation
        self._welcome_epoch = 0  # of the server that sent it
        self._committed = -1  # last round in which the update counts, as the server says
        self._closed = -1  # rounds up to this one are over
        self._current: _Work | None = None
        self._waiting: _Work | None = None  # starts when `_current` is finished
        self._uploading = False  # of `_current`
        self._kept: _Kept | None = None
        self._done: tuple[tuple[int, str, bool], ...] = ()

        self._heard_at = 0.0
        self._silence_s = SHORTEST_SILENCE_S
        self._joining_since: float | None = None
        self._join_attempts = 0
        self._join_at = 0.0
        self._heartbeat_at = 0.0

    @property
    def joined(self) -> bool:
        """Whether the server has welcomed this incarnation."""
        return self._welcome_offset is not None

    @property
    def working_on(self) -> int | None:
        """The round that the client works on."""
        return None if self._current is None else self._current.round

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do at the latest."""
        if self._joining_since is None:
            return min(self._heartbeat_at, self._heard_at + self._silence_s)
        due = min(self._join_at, self._joining_since + self.server_timeout_s)
        return min(due, self._heartbeat_at) if self.joined else due

    # ---- time ------------------------------------------------------------------------------------

    def start(self, now: float) -> Actions:
        """The first call."""
        self._heard_at = now
        return self._join(now)

    def tick(self, now: float) -> Actions:
        """Time has passed; may be called at any time."""
        if self.ended:
            return ()
        actions: Actions = ()
        if self._joining_since is None and now >= self._heard_at + self._silence_s:
            actions = self._join(now)
        elif self._joining_since is not None:
            if now >= self._joining_since + self.server_timeout_s:
                return self.leave(
                    exit_codes.UNAVAILABLE,
                    f"no word from the server of {self.run} for {self.server_timeout_s:.0f} s: "
                    "see whether it runs and uses the same broker, then start the client again",
                )
            if now >= self._join_at:
                actions = self._send_joined(now)
        if self.joined and now >= self._heartbeat_at:
            self._heartbeat_at = now + self.heartbeat_s
            heartbeat = Heartbeat(
                run=self.run,
                client=self.client,
                incarnation=self.incarnation,
                round=self.working_on,
            )
            actions += (Send(heartbeat),)
        return actions

    def leave(self, exit_code: int, reason: str) -> Actions:
        """End now, by a signal for example: says `left`, then ends."""
        if self.ended:
            return ()
        aborted = self._abort()
        self.ended = True
        left = Left(
            run=self.run,
            client=self.client,
            incarnation=self.incarnation,
            reason=reason[:LONGEST_REASON],
        )
        return (*aborted, Send(left), End(exit_code, reason))

    # ---- control ---------------------------------------------------------------------------------

    def receive(self, record: ControlRecord, offset: int, now: float) -> Actions:
        """A record of this run at this offset of control."""
        if self.ended or offset <= self._handled or record.epoch < self._epoch:
            return ()
        self._heard_at = now
        if record.epoch > self._epoch:
            # Another server: it knows better which rounds are over (its predecessor's last words
            # may have been part of a transaction that was never committed).
            self._epoch = record.epoch
            self._closed = -1
        if isinstance(record, Stopped):
            return self.leave(exit_codes.OK, f"the run has ended: {record.outcome}")
        actions: Actions = ()
        if isinstance(record, Welcome):
            actions = self._welcomed(record, offset, now)
        elif self.joined:  # else it is read again after the welcome, which says where
            self._handled = offset
            actions = (
                self._round_closed(record)
                if isinstance(record, Closed)
                else self._asked(record, offset)
            )
        if (
            self.joined
            and not self.ended
            and self._welcome_epoch < self._epoch
            and self._joining_since is None
        ):
            # A server that has just started may not know this client.
            actions += self._join(now)
        return actions

    def _welcomed(self, welcome: Welcome, offset: int, now: float) -> Actions:
        incarnation = welcome.clients.get(self.client)
        first = self._welcome_offset is None
        if not first:
            self._handled = offset
        if incarnation is None:
            return ()
        if incarnation != self.incarnation:
            # Before the own welcome it is that of a predecessor, which is gone.
            if self._welcome_offset is None or offset < self._welcome_offset:
                return ()
            aborted = self._abort()
            self.ended = True
            return (
                *aborted,
                End(
                    exit_codes.REPLACED,
                    f"another process has joined as {self.client}: give each its own group and "
                    "index",
                ),
            )
        self._welcome_offset = offset
        self._welcome_epoch = welcome.epoch
        self._joining_since = None
        self._join_attempts = 0
        self._committed = max(self._committed, welcome.committed.get(self.client, -1))
        if not first:
            return ()
        self._heartbeat_at = now + self.heartbeat_s
        if welcome.announcement is None or welcome.announcement >= offset:
            self._handled = offset
            return ()
        self._handled = welcome.announcement - 1
        return (SeekControl(welcome.announcement),)

    def _asked(self, announced: Announced, offset: int) -> Actions:
        if announced.training is not None and announced.round <= self._closed:
            return ()  # an old record, written once more: it must not stop what is going on
        self._silence_s = max(2 * announced.deadline_s, SHORTEST_SILENCE_S)
        actions = self._rounds_over(announced.round - 1, final=announced.training is None)
        if self._current is not None and self._current.round > announced.round:
            # Asked by a server whose last round was never committed.
            self._waiting = None
            actions += self._abort()
        test_set: Literal["HeldOut", "Clients"] | None = None
        if self.is_evaluator:
            if not announced.evaluator:
                return actions
            test_set = "HeldOut"
        else:
            if self.client not in announced.cohort:
                return actions
            if announced.evaluate or announced.training is None:
                test_set = "Clients"
        work = _Work(announced, test_set)
        if work.trains and announced.round <= max(self._closed, self._counted(announced, offset)):
            return actions
        if self._current is not None and self._current.key == work.key:
            return actions
        if work.key in self._done:
            return actions + self._asked_again(work)
        if self._current is None:
            return actions + self._begin(work)
        self._waiting = work
        return actions

    def _counted(self, announced: Announced, offset: int) -> int:
        """The last round in which an update of this client counts, as far as it is known here.

        What a server asks for after it has welcomed this client, it does not have: an update that
        counted then has lost its chunks since.
        """
        welcomed_before = self._welcome_offset is not None and self._welcome_offset < offset
        if welcomed_before and self._welcome_epoch == announced.epoch:
            return -1
        return self._committed

    def _asked_again(self, work: _Work) -> Actions:
        """What to do about work that is done already.

        A server that has just started publishes its predecessor's announcement again, which asks
        for nothing new; one that names the client twice itself has not got the update.
        """
        kept = self._kept
        if (
            kept is None
            or not work.trains
            or (kept.round, kept.base) != (work.round, work.announcement.base)
        ):
            return ()
        if kept.epoch == work.announcement.epoch:
            return (Upload(kept.round, kept.base),)
        self._kept = _Kept(kept.round, kept.base, work.announcement.epoch)
        return ()

    def _round_closed(self, closed: Closed) -> Actions:
        counts = self.client in closed.accepted or self.client in closed.refused
        actions: Actions = ()
        current = self._current
        if counts and self._uploading and current is not None and current.round == closed.round:
            # The manifest's acknowledgement is still on its way here; the log has it.
            actions += self._finish(current)
        actions += self._rounds_over(closed.round, final=False)
        kept = self._kept
        if kept is None or kept.round > closed.round or self._uploading:
            return actions
        if self.client in closed.reupload:
            return (*actions, Upload(kept.round, kept.base))
        if counts or kept.round < closed.round:
            self._kept = None
            return (*actions, Forget(kept.round, kept.base))
        return actions

    def _rounds_over(self, round_: int, *, final: bool) -> Actions:
        """Rounds up to `round_` are closed; `final`: no later update counts."""
        self._closed = max(self._closed, round_)
        waiting = self._waiting
        if waiting is not None and waiting.trains and waiting.round <= round_:
            self._waiting = None
        current = self._current
        if current is None or not current.trains:
            return ()
        late = current.round <= round_ and not current.announcement.keep_training
        if final or late:
            return self._abort() + self._next()
        return ()

    # ---- work ------------------------------------------------------------------------------------

    def trained(self, round_: int, base: str, now: float) -> Actions:
        """The training is done and its update is encoded."""
        del now
        current = self._current
        if self.ended or current is None or current.key != (round_, base, True):
            return ()
        self._uploading = True
        replaced: Actions = ()
        if self._kept is not None:
            replaced = (Forget(self._kept.round, self._kept.base),)
        self._kept = _Kept(round_, base, current.announcement.epoch)
        return (*replaced, Upload(round_, base))

    def uploaded(self, round_: int, base: str, manifest_offset: int, now: float) -> Actions:
        """The manifest is on `events`, at this offset."""
        del manifest_offset, now
        if self.ended:
            return ()
        key = (round_, base, True)
        if self._current is not None and self._current.key == key:
            return self._finish(self._current)
        # Aborted too late, or uploaded again.
        self._remember(key)
        return ()

    def evaluated(self, round_: int, base: str, now: float) -> Actions:
        """The evaluation that this announcement asked for is done and its record written."""
        del now
        current = self._current
        if self.ended or current is None or current.key != (round_, base, False):
            return ()
        return self._finish(current)

    def failed(
        self, round_: int, base: str, reason: str, now: float, *, permanent: bool = False
    ) -> Actions:
        """The work could not be done. `permanent`: neither will any other."""
        del now
        if self.ended:
            return ()
        record = Failed(
            run=self.run,
            client=self.client,
            incarnation=self.incarnation,
            round=round_,
            reason=reason[:LONGEST_REASON],
        )
        if permanent:
            return (Send(record), *self.leave(exit_codes.TASK, reason))
        current = self._current
        if current is not None and (current.round, current.announcement.base) == (round_, base):
            # Not remembered as done: a server that names the client again gets another try.
            self._current = None
            self._uploading = False
            forgotten: Actions = ()
            kept = self._kept
            if kept is not None and (kept.round, kept.base) == (round_, base):
                self._kept = None
                forgotten = (Forget(round_, base),)
            return (Send(record), *forgotten, *self._next())
        return (Send(record),)

    def _begin(self, work: _Work) -> Actions:
        self._current = work
        announced = work.announcement
        actions: Actions = ()
        if work.test_set is not None:
            actions = (Evaluate(announced.version, announced.base, work.test_set, announced),)
        return (*actions, Train(announced)) if work.trains else actions

    def _finish(self, work: _Work) -> Actions:
        self._remember(work.key)
        self._current = None
        self._uploading = False
        return self._next()

    def _next(self) -> Actions:
        work, self._waiting = self._waiting, None
        return () if work is None else self._begin(work)

    def _remember(self, key: tuple[int, str, bool]) -> None:
        if key not in self._done:
            self._done = (*self._done, key)[-DONE_REMEMBERED:]

    def _abort(self) -> Actions:
        current, self._current = self._current, None
        uploading, self._uploading = self._uploading, False
        if current is None or not current.trains:
            return ()
        aborted = AbortTraining(current.round, current.announcement.base)
        if uploading and self._kept is not None:
            kept, self._kept = self._kept, None
            return (aborted, Forget(kept.round, kept.base))
        return (aborted,)

    # ---- joining ---------------------------------------------------------------------------------

    def _join(self, now: float) -> Actions:
        self._joining_since = now
        self._join_attempts = 0
        return self._send_joined(now)

    def _send_joined(self, now: float) -> Actions:
        delay = min(FIRST_JOIN_DELAY_S * 1.5**self._join_attempts, LONGEST_JOIN_DELAY_S)
        # Jitter without a generator of its own: many clients that wait for one server spread out.
        seed = f"{self.client} {self.incarnation} {self._join_attempts}".encode()
        self._join_at = now + delay * (1 - 0.25 * zlib.crc32(seed) / 2**32)
        self._join_attempts += 1
        return (
            Send(
                Joined(
                    run=self.run,
                    client=self.client,
                    incarnation=self.incarnation,
                    label=self.label,
                )
            ),
        )
