"""A whole federation in virtual time: the real server (`FederatedServer` with all that is below it)
and the real client sessions, on a log that delays, duplicates and loses. Servers and clients are
killed, paused and started again, also between any two writes. The network, the training, the
status page and the clock are not real; nothing else is replaced.

The invariants are checked while it runs and at its end; `Broken` names the one that did not hold.
"""

from __future__ import annotations

import hashlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import fedlog.server.federated
import fedlog.server.intake
import fedlog.server.journal
import fedlog.server.refusals
import fedlog.server.reporting
import fedlog.server.retention
import fedlog.server.session
import fedlog.transport.bulk
from fedlog import exit_codes
from fedlog.client import session as client_side
from fedlog.client.session import ClientSession
from fedlog.client.worker import LOOK_BACK_RECORDS
from fedlog.job.loading import JobFile
from fedlog.job.model import FederatedJob, LateUpdates, OnTimeout
from fedlog.learning.strategies import make_strategy
from fedlog.learning.weights import Update
from fedlog.rounds import actions as do
from fedlog.rounds.config import EVALUATOR
from fedlog.rounds.events import UpdateFolded, UpdateRefused
from fedlog.server.federated import FederatedServer
from fedlog.server.folding import Folder
from fedlog.server.global_model import GlobalModel
from fedlog.server.session import ServerSession
from fedlog.telemetry.result import Result
from fedlog.transport.base import Bytes
from fedlog.transport.bulk import upload
from fedlog.transport.errors import FencedError, UnknownTopicError
from fedlog.transport.topics import topic_names
from fedlog.wire import records, tensors
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.limits import Limits
from unit.rounds.virtual_log import ClientWriter, VirtualLog, VirtualTransport
from unit.rounds.virtual_time import Killed, Process, VirtualTime, World

RUN = "fedlog.default.simulated.manual"
_TURN_S = 0.25


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Weather:
    """What goes wrong, and how often (probabilities per record, per write of a server, or per
    round of training).
    """

    delay_s: float = 0.05
    loses_process: float = 0.0  # a client's process is killed while it trains
    comes_back: float = 0.9  # … and another one starts in its place
    duplicates: float = 0.0  # a record is appended twice
    fails: float = 0.0  # the user's training code raises
    unfit: float = 0.0  # an update does not fit the model
    fold_s: float = 0.0  # reading an update takes up to so long
    silences: float = 0.0  # a client that trains is not heard of for a while
    pauses: float = 0.0  # a client's process stands still, and goes on much later
    twins: float = 0.0  # a client starts although one of its identity runs
    training_s: tuple[float, float] = (0.5, 5.0)
    straggler_s: float = 0.0  # every fourth client is so much slower
    inline: bool = True  # updates travel inside their manifests
    trimmed: float = 0.0  # a chunk is gone before it is read
    shows_aborted: bool = False  # as the embedded broker does
    can_trim: bool = True
    crashes: float = 0.0  # a server is killed before or after this write
    stalls: float = 0.0  # … or stands still there while another one starts
    most_mishaps: int = 0  # of servers, all in all
    both: float = 0.0  # with the server, all clients die
    second_server: bool = False  # another one starts some time, for no reason


@dataclass
class Client:
    """One incarnation of a client; its process."""

    session: ClientSession
    clock_s: float
    pace: float
    position: int = 0
    alive: bool = True
    silent_until: float = 0.0
    paused_until: float = 0.0
    job: int = 0  # grows with every piece of work that begins or is given up
    kept: dict[tuple[int, str], list[Bytes]] = field(default_factory=dict)
    topics: dict[tuple[int, str], str] = field(default_factory=dict)


@dataclass
class Federation:
    """spec: of a FederatedJob, without its task; `clients` is a number."""

    spec: dict[str, Any]
    weather: Weather
    seed: int
    folder: Path
    results: list[Result] = field(default_factory=list)
    trainings: int = 0
    measured: list[do.Measured] = field(default_factory=list)
    commits: dict[tuple[int, int], do.CommitRound] = field(default_factory=dict)
    """By server and round: also those that never reached the journal."""
    crashes: int = 0
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.job = FederatedJob.model_validate(
            {
                "apiVersion": "fedlog.dev/v1alpha1",
                "kind": "FederatedJob",
                "metadata": {"name": "simulated"},
                "spec": {
                    "task": {"entrypoint": "fedlog.tasks.noop:task"},
                    "output": {"keepBest": False},
                    "kafka": {"topics": {"deletionPolicy": "Retain"}},
                    **self.spec,
                },
            }
        )
        self.names = topic_names(self.job, RUN)
        self.world = World()
        self.log = VirtualLog(
            shows_aborted=self.weather.shows_aborted, can_trim=self.weather.can_trim
        )
        self.log.on_visible = self._control_grew
        self.known = self.job.spec.client_ids()
        self.clients: dict[str, Client] = {}
        self.joined_at: dict[str, int] = {}
        self.joinings: dict[str, list[tuple[int, str]]] = {}
        self.manifests: dict[tuple[str, int], list[int]] = {}
        self.updates: dict[int, tuple[records.Updated, Update | None]] = {}
        self.gone: set[int] = set()  # offsets of manifests whose chunks are gone
        self.asked: dict[tuple[int, str], set[str]] = {}
        self._decoded: dict[int, records.ControlRecord] = {}
        self._checked = 0  # control up to this offset
        self._closed: dict[int, str] = {}
        self._verdict: str | None = None
        self._epochs: dict[int, object] = {}
        self._promised: dict[tuple[str, int], int] = {}  # client, round -> offset of its manifest
        self._mishaps = 0
        self._servers = 0
        self._sessions: dict[Process, int] = {}
        self.initial = self.folder / "initial.safetensors"
        self.initial.write_bytes(b"".join(tensors.encode({"w": np.zeros(2, np.float32)})))
        held_out = self.job.spec.evaluation.held_out is not None
        for client in [*self.known, *([EVALUATOR] if held_out else [])]:
            self.world.at(self.random.uniform(0, 3), lambda c=client: self.start(c))
        self.start_server()
        if self.weather.second_server:
            self.world.at(self.random.uniform(0, 40), self.start_server)

    def note(self, text: str) -> None:
        self.trace.append(f"{self.world.now:8.2f} {text}")

    def run(self, until_s: float) -> None:
        """Until a verdict stands and everybody has ended. Raises Broken."""
        with self._virtual():
            in_time = self.world.run(until_s)
        if not in_time and not self.results:
            raise Broken(f"not over after {until_s:g} s")
        self._check_end()

    @contextmanager
    def _virtual(self) -> Iterator[None]:
        """The modules under test see virtual time, and no status page."""
        time = VirtualTime(self.world)
        with pytest.MonkeyPatch.context() as patch:
            for module in (
                fedlog.server.federated,
                fedlog.server.journal,
                fedlog.server.reporting,
                fedlog.server.session,
                fedlog.transport.bulk,
            ):
                patch.setattr(module, "time", time)
            session = fedlog.server.session
            patch.setattr(session, "_STATUS_EVERY_S", 1e9)
            patch.setattr(session, "_POLL_WHILE_FOLDING_S", _TURN_S)
            patch.setattr(session, "Folder", self._make_folder)
            patch.setattr(session.ServerSession, "_commit", self._watch(ServerSession._commit))
            patch.setattr(session.ServerSession, "_measured", self._hear(ServerSession._measured))
            patch.setattr(fedlog.server.retention, "GENERATION_BYTES", 1500)
            patch.setattr(fedlog.server.federated, "_STAND_BY_POLL_S", 2.0)
            patch.setattr(fedlog.server.federated, "StatusServer", _NoStatusServer)
            logging.disable(logging.CRITICAL)
            try:
                yield
            finally:
                logging.disable(logging.NOTSET)

    # ---- servers --------------------------------------------------------------------------------

    def start_server(self) -> None:
        """As a cluster does when the one before has died, or seems to have."""
        self._servers += 1
        number = self._servers
        self.note(f"server {number} starts")
        clock_s = self.random.uniform(0, 1e6)
        self.world.spawn(
            f"server {number}", lambda process: self._serve(process, number), clock_s=clock_s
        )

    def _serve(self, process: Process, number: int) -> None:
        self._sessions[process] = number
        folder = self.folder / f"server-{number}"
        folder.mkdir()
        server = FederatedServer(
            JobFile(self.job, folder / "job.yaml", {}),
            transport=VirtualTransport(self.log, process, self._hazard),
            output=folder,
            initial=self.initial,
        )
        try:
            result = server.run()
        except FencedError as error:
            self.note(f"server {number} is fenced for good: {error}")
            return
        self.note(f"server {number}: {result.outcome}, {result.reason}")
        self.results.append(result)
        self.world.stop()

    def _hazard(self, process: Process, what: str) -> None:
        weather = self.weather
        if self._mishaps >= weather.most_mishaps:
            return
        chance = self.random.random()
        if chance < weather.crashes:
            self._mishaps += 1
            self.crashes += 1
            self.note(f"{process.name} is killed {what}")
            self.world.at(self.random.uniform(0.1, 10), self.start_server)
            process.kill()
            if self.random.random() < weather.both:
                for client in list(self.clients.values()):
                    self.kill(client, comes_back=True)
            raise Killed
        if chance < weather.crashes + weather.stalls:
            self._mishaps += 1
            pause_s = self.random.uniform(1, 60)
            self.note(f"{process.name} stands still for {pause_s:.1f} s {what}")
            if self.random.random() < 0.7:
                self.world.at(self.random.uniform(0, pause_s), self.start_server)
            process.wait(pause_s)

    def _make_folder(
        self, transport: VirtualTransport, fold: Callable[[Update], None], limits: Limits, size: int
    ) -> Folder:
        return _SlowFolder(self, transport, fold, limits, size)

    def _watch(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        """`_commit` of a session, after a look at what it is to commit."""

        def watched(session: ServerSession, round_: do.CommitRound) -> Any:
            running = self.world.running
            assert running is not None
            self.note(f"{running.name} closes round {round_.round}: {round_.accepted}")
            self._check_commit(round_)
            self.commits[self._sessions[running], round_.round] = round_
            return commit(session, round_)

        return watched

    def _hear(self, measured: Callable[..., None]) -> Callable[..., None]:
        def heard(session: ServerSession, figures: do.Measured) -> None:
            self.measured.append(figures)
            measured(session, figures)

        return heard

    # ---- clients --------------------------------------------------------------------------------

    def start(self, client: str) -> None:
        if self.names.events not in self.log.topics:
            self.world.at(0.5, lambda: self.start(client))
            return
        incarnation = f"{self.random.getrandbits(64):016x}"
        session = ClientSession(client, incarnation, RUN)
        clock_s, pace = self.random.uniform(0, 1e6), self.random.uniform(0.98, 1.02)
        control = self.log.partition(self.names.control)
        process = Client(session, clock_s, pace, max(0, control.end - LOOK_BACK_RECORDS))
        self.note(f"{client} starts as {incarnation[:4]}")
        self._read_control(process)
        self.clients[client] = process
        self._carry_out(process, session.start(self._clock(process)))
        self._wake(process)
        if self.random.random() < self.weather.twins / 4:
            self.world.at(self.random.uniform(0, 30), lambda: self.start(client))

    def _clock(self, client: Client) -> float:
        return client.clock_s + client.pace * self.world.now

    def kill(self, client: Client, *, comes_back: bool | None = None) -> None:
        if not client.alive:
            return
        client.alive = False
        self.note(f"{client.session.client} {client.session.incarnation[:4]} is killed")
        if comes_back is None:
            comes_back = self.random.random() < self.weather.comes_back
        if comes_back:
            self.world.at(self.random.uniform(0.1, 8), lambda: self.start(client.session.client))

    def _awake(self, client: Client, again: Callable[[], None]) -> bool:
        """Whether it runs; what it has missed while it stands still comes when it goes on."""
        if not client.alive:
            return False
        left_s = client.paused_until - self.world.now
        if left_s > 0:
            self.world.at(left_s + 0.01, again)
        return left_s <= 0

    def _wake(self, client: Client) -> None:
        if not self._awake(client, lambda: self._wake(client)) or client.session.ended:
            return
        chance = self.random.random()
        if chance < self.weather.silences / 10:
            client.silent_until = self.world.now + self.random.uniform(5, 40)
        elif chance < (self.weather.silences + self.weather.pauses) / 10:
            pause_s = self.random.uniform(5, 80)
            client.paused_until = self.world.now + pause_s
            name = client.session.client
            self.note(f"{name} {client.session.incarnation[:4]} stands still for {pause_s:.1f} s")
            if self.random.random() < 0.5:
                self.world.at(self.random.uniform(1, pause_s), lambda: self.start(name))
        self._read_control(client)
        self._carry_out(client, client.session.tick(self._clock(client)))
        self.world.at(1.0, lambda: self._wake(client))

    def _control_grew(self) -> None:
        for client in list(self.clients.values()):
            if client.alive:
                delay_s = self.random.uniform(0, 2 * self.weather.delay_s)
                self.world.at(delay_s, lambda c=client: self._read_control(c))
        self._check_visible()

    def control(
        self, start: int, limit: int = 1000
    ) -> tuple[list[records.ControlRecord], list[int]]:
        """What readers see on control from `start` on, and its offsets."""
        found, _ = self.log.read(self.names.control, 0, start, limit, committed=True)
        for record in found:
            if record.offset not in self._decoded:
                decoded, _ = records.decode(record.value)
                assert isinstance(decoded, records.ControlRecord)
                self._decoded[record.offset] = decoded
        return [self._decoded[r.offset] for r in found], [r.offset for r in found]

    def _read_control(self, client: Client) -> None:
        if client.paused_until > self.world.now:
            return  # `_wake` reads later
        while client.alive:
            said, offsets = self.control(client.position, 1)
            if not said:
                return
            client.position = offsets[0] + 1
            actions = client.session.receive(said[0], offsets[0], self._clock(client))
            self._carry_out(client, actions)

    def _carry_out(self, client: Client, actions: client_side.Actions) -> None:
        session = client.session
        for action in actions:
            match action:
                case client_side.Send(records.Heartbeat()) if self.world.now < client.silent_until:
                    pass
                case client_side.Send():
                    self._append(client, action.record)
                case client_side.SeekControl():
                    client.position = action.offset
                    self.world.at(0.01, lambda: self._read_control(client))
                case client_side.Evaluate():
                    self._evaluate(client, action)
                case client_side.Train():
                    self._train(client, action.announcement)
                case client_side.AbortTraining():
                    client.job += 1
                case client_side.Upload():
                    self._upload(client, action.round, action.base)
                case client_side.Forget():
                    client.kept.pop((action.round, action.base), None)
                case client_side.End():
                    client.alive = False
                    self.note(f"{session.client} {session.incarnation[:4]}: {action.reason}")
                    _, latest = self.joinings[session.client][-1]
                    if action.exit_code == exit_codes.REPLACED and session.incarnation == latest:
                        raise Broken(f"{session.client} was replaced by a predecessor")
                    # Who was replaced before its first welcome is told nothing, and may give up.
                    if action.exit_code == exit_codes.UNAVAILABLE and session.incarnation == latest:
                        raise Broken(f"{session.client} gave up: {action.reason}")

    def _append(
        self,
        client: Client,
        record: records.EventRecord,
        payload: Bytes = b"",
        then: Callable[[int], None] | None = None,
        update: Update | None = None,
    ) -> None:
        """A client's own records stay in order; those of others come between."""
        value = records.encode(record, payload)
        first_offset = 0

        def arrive() -> int:
            offset: int = self.log.partition(self.names.events).append(None, value, None)
            if isinstance(record, records.Updated):
                self.updates[offset] = (record, update)
                self.manifests.setdefault((record.client, record.round), []).append(offset)
                self.note(f"{record.client} has its update of {record.round} at {offset}")
            elif isinstance(record, records.Joined) and record.incarnation not in self.joined_at:
                self.joined_at[record.incarnation] = offset
                self.joinings.setdefault(record.client, []).append((offset, record.incarnation))
            return offset

        def acknowledged() -> None:
            if then is not None and self._awake(client, acknowledged):
                then(first_offset)

        def first() -> None:
            nonlocal first_offset
            first_offset = arrive()
            acknowledged()
            if self.random.random() < self.weather.duplicates:
                self.world.at(self.random.uniform(0, self.random.choice((2, 20))), arrive)

        self.world.at(self.weather.delay_s, first)

    def _evaluate(self, client: Client, action: client_side.Evaluate) -> None:
        session = client.session
        record = records.Evaluated(
            run=RUN,
            client=session.client,
            incarnation=session.incarnation,
            version=action.version,
            digest=action.base,
            test_set=action.test_set,
            examples=10,
            metrics={"accuracy": 1 - 0.5 ** (1 + action.version)},
        )

        def done() -> None:
            if not self._awake(client, done):
                return
            round_ = action.announcement.round
            if session.is_evaluator and self.random.random() < self.weather.fails:
                failed = session.failed(round_, action.base, "no data", self._clock(client))
                self._carry_out(client, failed)
            else:
                self._append(client, record)
                done_ = session.evaluated(round_, action.base, self._clock(client))
                self._carry_out(client, done_)

        self.world.at(self.random.uniform(0.1, 1.0), done)

    def _train(self, client: Client, announced: records.Announced) -> None:
        session, weather = client.session, self.weather
        self._check_training(session, announced)
        self.trainings += 1
        self.note(f"{session.client} {session.incarnation[:4]} trains {announced.round}")
        client.job += 1
        job = client.job
        slow = weather.straggler_s if hash_of(session.client) % 4 == 0 else 0.0
        duration = self.random.uniform(*weather.training_s) + slow
        if self.random.random() < weather.loses_process:
            self.world.at(self.random.uniform(0, duration + 0.3), lambda: self.kill(client))

        def done() -> None:
            if not self._awake(client, done) or client.job != job:
                return
            round_, base = announced.round, announced.base
            if self.random.random() < weather.fails:
                self._carry_out(client, session.failed(round_, base, "boom", self._clock(client)))
                return
            size = 3 if self.random.random() < weather.unfit else 2
            value = np.full(size, hash_of(session.incarnation) % 100 / 7, np.float32)
            client.kept[round_, base] = tensors.encode({"w": value})
            client.topics[round_, base] = announced.updates_topic
            self._carry_out(client, session.trained(round_, base, self._clock(client)))

        self.world.at(duration, done)

    def _upload(self, client: Client, round_: int, base: str) -> None:
        session = client.session

        def write() -> None:
            if not self._awake(client, write):
                return
            if (round_, base) not in client.kept:
                reason = "the update is no longer in memory"
                self._carry_out(client, session.failed(round_, base, reason, self._clock(client)))
                return
            payload = client.kept[round_, base]
            topic = client.topics[round_, base]
            bulk, inline = upload(
                ClientWriter(self.log),
                payload,
                topic=topic,
                partition=0,
                chunk_bytes=70_000,
                inline_bytes=65_536 if self.weather.inline else 0,
                timeout_s=60,
            )
            weights = tensors.decode(b"".join(payload), Limits.for_model(1000))
            examples = 1 + hash_of(session.client) % 7
            record = records.Updated(
                run=RUN,
                client=session.client,
                incarnation=session.incarnation,
                round=round_,
                base=base,
                examples=examples,
                bulk=bulk,
            )
            if not bulk.inline and self.random.random() < self.weather.trimmed:
                lost = self.log.partition(topic) if topic in self.log.topics else None
                if lost is not None:
                    self.world.at(self.random.uniform(0, 3), lambda: lost.drop(lost.end))
            update = Update(session.client, weights, examples)
            self._append(client, record, inline, uploaded, update)

        def uploaded(offset: int) -> None:
            self._carry_out(client, session.uploaded(round_, base, offset, self._clock(client)))

        self.world.at(0.1, write)

    # ---- what must hold -------------------------------------------------------------------------

    def _check_commit(self, commit: do.CommitRound) -> None:
        """What a server is about to commit."""
        clients = [update.client for update in commit.accepted]
        if len(set(clients)) != len(clients):
            raise Broken(f"round {commit.round}: a client counts twice in {clients}")
        for update in commit.accepted:
            manifest, _ = self.updates.get(update.offset, (None, None))
            if (
                manifest is None
                or (manifest.client, manifest.round) != (update.client, update.round)
                or manifest.examples != update.examples
            ):
                raise Broken(f"round {commit.round}: offset {update.offset} is no such manifest")
        if both := set(clients) & set(commit.refused):
            raise Broken(f"round {commit.round}: {both} accepted and refused")
        order = [(update.round != commit.round, update.offset) for update in commit.accepted]
        replaced = any(
            not self._is_there(self.updates[offset][0].bulk)
            for client in clients
            for offset in self.manifests.get((client, commit.round), ())
        )
        if order != sorted(order) and not replaced:
            raise Broken(f"round {commit.round}: folded out of order: {order}")
        on_time = sum(update.round == commit.round for update in commit.accepted)
        participation = self.job.spec.participation
        if on_time < participation.min_clients and not commit.below_quorum:
            raise Broken(f"round {commit.round} closed with {on_time} updates and does not say so")
        if commit.below_quorum and participation.on_timeout is not OnTimeout.PROCEED:
            raise Broken(f"round {commit.round} went on below the quorum")

    def _check_training(self, session: ClientSession, announced: records.Announced) -> None:
        """No training starts for work whose manifest is on the log and can count.

        A welcome tells what was on the log when the client joined.
        """
        joined = self.joined_at.get(session.incarnation, 1 << 60)
        offsets = self.manifests.get((session.client, announced.round), ())
        for offset in offsets:
            manifest, _ = self.updates[offset]
            if (
                manifest.base == announced.base
                and (offset < joined or manifest.incarnation == session.incarnation)
                and self._can_count(offset)
            ):
                raise Broken(
                    f"{session.client} trains round {announced.round} again, its manifest is at "
                    f"{offset}"
                )

    def _can_count(self, offset: int) -> bool:
        """Not what a process wrote after another one had joined in its place, nor what does not
        fit or whose chunks are gone.
        """
        manifest, update = self.updates[offset]
        before = [i for joined, i in self.joinings[manifest.client] if joined < offset]
        if not before or before[-1] != manifest.incarnation:
            return False
        if update is None or update.delta["w"].size != 2:
            return False
        return self._is_there(manifest.bulk)

    def _is_there(self, bulk: BulkManifest) -> bool:
        if bulk.topic is None:
            return True
        try:
            partition = self.log.partition(bulk.topic, bulk.partition)
        except UnknownTopicError:
            return False
        return set(bulk.offsets()) <= set(partition.offsets)

    def _check_visible(self) -> None:
        """What has become visible on control."""
        if self.names.control not in self.log.topics:
            return
        said, offsets = self.control(self._checked)
        if not offsets:
            return
        self._checked = offsets[-1] + 1
        for record, offset in zip(said, offsets, strict=True):
            writer = self.log.writer_of(self.names.control, offset)
            if self._epochs.setdefault(record.epoch, writer) is not writer:
                raise Broken(f"two servers are number {record.epoch}")
            match record:
                case records.Welcome():
                    for client, round_ in record.committed.items():
                        self._promise(client, record.clients[client], round_)
                case records.Closed():
                    known = self._closed.setdefault(record.version, record.digest)
                    if known != record.digest:
                        raise Broken(f"version {record.version} is published with two digests")
                case records.Announced():
                    asked = self.asked.setdefault((record.round, record.base), set())
                    asked.update(record.cohort)
                case records.Stopped():
                    if self._verdict not in (None, record.outcome):
                        raise Broken(f"{record.outcome} after {self._verdict}")
                    self._verdict = record.outcome

    def _promise(self, client: str, incarnation: str, round_: int) -> None:
        """A client was told that an update counts that it knows nothing of."""
        for offset in self.manifests.get((client, round_), ()):
            if (
                self.updates[offset][0].incarnation != incarnation
                and offset < self.joined_at[incarnation]
            ):
                self._promised[client, round_] = offset

    def journal(self) -> fedlog.server.journal.Journal:
        journal = fedlog.server.journal.Journal(RUN)
        found, _ = self.log.read(self.names.journal, 0, 0, 1 << 30, committed=True)
        for record in found:
            journal.take(record)
        return journal

    def _check_end(self) -> None:
        """The whole log: what was published, what is journaled, and what it says of the end."""
        journal = self.journal()
        head = journal.head
        assert head is not None
        rounds = list(journal.committed())
        if [c.round for c in rounds] != list(range(1, head.version + 1)):
            raise Broken(f"version {head.version} of rounds {[c.round for c in rounds]}")
        digests = {c.round: c.digest for c in rounds}
        for version, digest in self._closed.items():
            if digests.get(version) != digest:
                raise Broken(f"version {version} is published, but not what the journal has")
        if not self.weather.shows_aborted and self._closed != digests:
            raise Broken("a round of the journal is not published")
        seen: Counter[tuple[str, int]] = Counter()
        participation: Counter[str] = Counter()
        for committed in rounds:
            clients = [client for client, *_ in committed.accepted]
            if len(clients) != len(set(clients)):
                raise Broken(f"a client counts twice in version {committed.round}: {clients}")
            seen.update((client, number) for client, _, _, number in committed.accepted)
            participation.update(clients)
            base = journal.started.digest if journal.started else ""
            base = digests.get(committed.round - 1, base)
            if committed.base != base:
                raise Broken(f"version {committed.round} is not made of the one before")
            late_updates = self.job.spec.participation.late_updates
            for client in committed.unanswered:
                told = self._promised.get((client, committed.round))
                if (
                    told is not None
                    and late_updates is LateUpdates.DISCARD  # else it may be for the next version
                    and self._can_count(told)
                ):
                    raise Broken(f"{client} was told that its update at {told} counts")
            for client, offset, _, number in committed.accepted:
                manifest, _ = self.updates[offset]
                if client not in self.asked.get((number, manifest.base), ()):
                    raise Broken(f"{client} was not asked in round {number}")
        if twice := [each for each, count in seen.items() if count > 1]:
            raise Broken(f"counted in two versions: {twice}")
        self._fold_again(rounds)
        for result in self.results:
            if result.outcome != head.outcome or self._verdict != head.outcome:
                raise Broken(f"{result.outcome}, but the journal says {head.outcome}")
            took_part = {c: n for c, n in result.participation.items() if n}
            if took_part != dict(participation) or result.rounds != head.version:
                raise Broken(f"{took_part} took part, the journal says {dict(participation)}")
            if result.digest != head.digest:
                raise Broken("the result is not the journal's version")

    def _fold_again(self, rounds: list[records.Committed]) -> None:
        model = GlobalModel.load(self.initial)
        strategy = make_strategy(self.job.spec.strategy)
        state = strategy.init(model.weights)
        for committed in rounds:
            aggregation = strategy.begin(model.weights, state)
            for _, offset, _, _ in committed.accepted:
                update = self.updates[offset][1]
                assert update is not None
                aggregation.fold(update)
            state = aggregation.close_into(model.weights)
            model.advance()
            if model.digest != committed.digest:
                raise Broken(f"version {committed.round} is not what its updates come to")


@contextmanager
def federation(spec: dict[str, Any], weather: Weather, seed: int) -> Iterator[Federation]:
    """A federation whose run folders lie in memory, if there is such a place, and then go."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Federation(spec, weather, seed, Path(folder))


class _SlowFolder(Folder):
    """Folds in virtual time: one update after the other, each as soon as it is read."""

    def __init__(self, federation: Federation, *args: Any) -> None:
        super().__init__(*args)
        self._federation = federation
        self._queue: list[tuple[float, tuple[Any, ...]]] = []
        self._free_at = 0.0

    def submit(self, *job: Any) -> UpdateFolded | UpdateRefused | None:
        federation = self._federation
        slow_s = federation.weather.fold_s
        if slow_s == 0.0 and not self._queue:
            return self._fold_now(job)
        begins = max(federation.world.now, self._free_at)
        self._free_at = begins + federation.random.uniform(0, slow_s)
        self._queue.append((self._free_at, job))
        self.in_flight += 1
        return None

    def _fold_now(self, job: tuple[Any, ...]) -> UpdateFolded | UpdateRefused:
        reader = self._transport.bulk_reader(70_000)
        return self._do(fedlog.server.folding._Job(*job), reader)

    def results(self, timeout_s: float = 0.0) -> list[UpdateFolded | UpdateRefused]:
        found = []
        while self._queue and self._queue[0][0] <= self._federation.world.now:
            found.append(self._fold_now(self._queue.pop(0)[1]))
            self.in_flight -= 1
        return found


class _NoStatusServer:
    address = "127.0.0.1:0"

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def beat(self) -> None:
        """Nobody looks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
