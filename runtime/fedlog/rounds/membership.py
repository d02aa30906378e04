"""Who is a member, and who has fallen silent.

Silence counts only while the server itself reads `events` at its end: after a gap of its own it
cannot tell a silent client from an unread heartbeat, so counting starts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

READING_GAP_S = 2.0
FORMER_REMEMBERED = 16


class MemberState(StrEnum):
    """Live: welcome and heard of. Lost: silent too long. Left: said goodbye."""

    LIVE = "live"
    LOST = "lost"
    LEFT = "left"


class Joining(NamedTuple):
    """One incarnation of a client, and the offset of its `joined` on `events`."""

    incarnation: str
    offset: int


@dataclass
class Member:
    """One client; `seen` in seconds of the server's monotonic clock."""

    joinings: tuple[Joining, ...]
    """The current incarnation, which is the last, and those before it: what they still say does
    not count."""
    seen: float
    state: MemberState = MemberState.LIVE
    finishing: int | None = None
    """The closed round whose training the client still finishes (late updates are folded)."""

    @property
    def incarnation(self) -> str:
        return self.joinings[-1].incarnation


@dataclass
class Membership:
    """All clients that ever joined, by id."""

    lost_after_s: float
    members: dict[str, Member] = field(default_factory=dict)
    changes: int = 0
    """Grows whenever somebody becomes or stops being available."""
    live_count: int = 0
    _counting_since: float = float("-inf")
    _last_at_end: float = float("-inf")
    _next_scan: float = float("-inf")

    def is_former(self, client: str, incarnation: str) -> bool:
        """Whether another incarnation of the client has taken over from this one."""
        member = self.members.get(client)
        return member is not None and any(
            incarnation == former.incarnation for former in member.joinings[:-1]
        )

    def join(self, client: str, incarnation: str, offset: int, now: float) -> bool:
        """Whether this incarnation is new (else the same one asks again)."""
        known = self.members.get(client)
        if known is not None and known.incarnation == incarnation:
            self.see(client, incarnation, now)
            if known.state is MemberState.LEFT:
                self._revive(known)
            return False
        if known is None or known.state is not MemberState.LIVE:
            self.live_count += 1
        former = () if known is None else known.joinings[-FORMER_REMEMBERED:]
        self.members[client] = Member((*former, Joining(incarnation, offset)), now)
        self.changes += 1
        return True

    def restore(self, joinings: Mapping[str, tuple[Joining, ...]], now: float) -> None:
        """Members of a predecessor's server: as if heard of now, since nobody knows better."""
        for client, known in joinings.items():
            self.members[client] = Member(known, now)
            self.live_count += 1
            self.changes += 1

    def current(self, client: str, incarnation: str) -> Member | None:
        """The member, if this incarnation is its current one."""
        member = self.members.get(client)
        return member if member is not None and member.incarnation == incarnation else None

    def see(self, client: str, incarnation: str, now: float) -> bool:
        """Note a sign of life; whether a lost client is back by it."""
        member = self.current(client, incarnation)
        if member is None:
            return False
        member.seen = now
        if member.state is not MemberState.LOST:
            return False
        self._revive(member)
        return True

    def _revive(self, member: Member) -> None:
        member.state = MemberState.LIVE
        self.live_count += 1
        self.changes += 1

    def finished(self, member: Member) -> None:
        """The member is free: the work of a closed round is done, or given up."""
        if member.finishing is not None:
            member.finishing = None
            self.changes += 1

    def leave(self, client: str) -> None:
        self._part(self.members[client], MemberState.LEFT)

    def _part(self, member: Member, state: MemberState) -> None:
        if member.state is MemberState.LIVE:
            self.live_count -= 1
            self.changes += 1
        member.state = state
        member.finishing = None

    def read(self, at_end: bool, now: float) -> None:
        if not at_end:
            return
        if now - self._last_at_end > READING_GAP_S:
            self._counting_since = now
        self._last_at_end = now

    def fall_silent(self, now: float) -> list[str]:
        """Clients that are lost as of now; looked at a few times per `lost_after_s`."""
        if now < self._next_scan or now - self._last_at_end > READING_GAP_S:
            return []
        self._next_scan = now + min(1.0, self.lost_after_s / 8)
        lost = [
            client
            for client, member in self.members.items()
            if member.state is MemberState.LIVE
            and now - max(member.seen, self._counting_since) > self.lost_after_s
        ]
        for client in lost:
            self._part(self.members[client], MemberState.LOST)
        return lost

    def is_live(self, client: str) -> bool:
        member = self.members.get(client)
        return member is not None and member.state is MemberState.LIVE

    def available(self) -> Iterator[str]:
        """Live clients that are free for new work."""
        for client, member in self.members.items():
            if member.state is MemberState.LIVE and member.finishing is None:
                yield client
