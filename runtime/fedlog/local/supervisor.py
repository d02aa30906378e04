"""Watching a running federation: its processes, started again where they die, its status, its end.

A process that ends without need is started again, within the bounds of the job's `failurePolicy`:
the server goes on from the log, and a client learns from its welcome what it has done already.
Who ends because no broker answers is started again, too, and that is no crash.
"""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from fedlog import exit_codes
from fedlog.job.model import EVALUATOR_GROUP, OnTimeout, Spec
from fedlog.local.broker import RunningBroker
from fedlog.local.children import Child, wait_all
from fedlog.local.errors import ProcessDiedError
from fedlog.local.placement import Worker
from fedlog.local.restarts import PERMANENT, Crashes, pause_s
from fedlog.telemetry.status import ClientState, Status
from fedlog.transport.errors import BrokerUnavailableError

STATUS_EVERY_S = 0.5
FAREWELL_S = 10.0
"""How long workers may take to read the server's stop once the server has ended."""
AWAY_S = 600.0
"""So long a run without any progress waits for a broker that does not answer."""

_LOOK_EVERY_S = 0.1
_LOOK_FOR_BROKER_EVERY_S = 2.0
_MAX_STATUS_BYTES = 8 * 2**20
_SERVER = "server"


class _Process:
    """One process of the run, through all its lives."""

    def __init__(
        self, name: str, clients: tuple[str, ...], limit: int, start: Callable[[], Child]
    ) -> None:
        self.name = name
        self.clients = clients
        self.crashes = Crashes(clients or (_SERVER,), limit)
        self._start = start
        self.child: Child = start()
        self.start_at: float | None = None
        """When it is started again; None while it runs or stays ended."""
        self.lost = ""
        """Why it is not started again."""
        self.away_since: float | None = None
        """Since when it ends because it finds no broker, without progress in between."""
        self.away_times = 0

    def progressed(self, name: str) -> None:
        self.crashes.progressed(name)
        self.back()

    def back(self) -> None:
        self.away_since, self.away_times = None, 0

    def start(self) -> None:
        self.start_at = None
        self.child = self._start()


class Supervisor:
    """Runs one server and its workers until the server has its verdict."""

    def __init__(
        self,
        spec: Spec,
        start_server: Callable[[], Child],
        start_workers: Mapping[Worker, Callable[[], Child]],
        broker: RunningBroker,
        status_file: Path,
        verdict: Path,
        *,
        on_status: Callable[[Status], None],
        say: Callable[[str], None],
    ) -> None:
        """start_server, start_workers: start the process, each time they are called. status_file:
        where the server writes its address; verdict: where it writes its result. say: gets the news
        that a person should read at once, such as a worker's death.
        """
        policy = spec.failure_policy
        self._quorum = quorum(spec)
        self._clients = spec.client_count
        self._most_lost = policy.max_lost_clients
        self._broker = broker
        self._status_file = status_file
        self._verdict = verdict
        self._on_status = on_status
        self._say = say
        self._finished = 0  # rounds
        self._updated: dict[str, int] = {}  # client -> the round of its last update
        self._broker_away_since: float | None = None
        self._next_look_at_broker = 0.0
        status_file.unlink(missing_ok=True)
        self._server = _Process(_SERVER, (), policy.max_server_restarts, start_server)
        self._workers = [
            _Process(worker.name, worker.clients, policy.max_client_restarts, start)
            for worker, start in start_workers.items()
        ]

    def follow(self) -> None:
        """Return once the server has ended with its verdict.

        Raises ProcessDiedError when the server died too often or for good, or when too many
        clients are lost; BrokerUnavailableError when the embedded broker ended, or another one
        stayed away for AWAY_S.
        """
        next_status = 0.0
        while not self._is_over():
            self._broker.check()
            for process in (self._server, *self._workers):
                self._look_after(process)
            self._look_at_broker()
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + STATUS_EVERY_S
                self._tell_status()
            self._wait_a_little()
        wait_all([process.child for process in self._workers], FAREWELL_S)

    def _is_over(self) -> bool:
        """Whether the server has a verdict; the exit code alone does not tell: a crash is 1, too.

        It is not started again to clean up: where the run's topics are deleted already, it would
        begin a new run.
        """
        return self._server.child.exit_code is not None and self._verdict.exists()

    def _wait_a_little(self) -> None:
        if self._server.start_at is not None:
            time.sleep(_LOOK_EVERY_S)
            return
        try:
            self._server.child.process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            return

    # ---- processes -------------------------------------------------------------------------------

    def _look_after(self, process: _Process) -> None:
        if process.lost:
            return
        if process.start_at is not None:
            if time.monotonic() >= process.start_at:
                process.start()
            return
        code = process.child.exit_code
        is_server = process is self._server
        if code is None or (code == exit_codes.OK and not is_server):
            return
        if is_server:
            if self._verdict.exists():
                return
            self._status_file.unlink(missing_ok=True)
        if code in PERMANENT:
            self._give_up(process, process.child.obituary())
        elif code == exit_codes.UNAVAILABLE:
            self._start_again_for_broker(process)
        else:
            self._start_again(process)

    def _start_again(self, process: _Process) -> None:
        self._tell_status()  # its progress until now counts
        crashes = process.crashes
        crashes.crashed()
        if crashes.exceeded:
            field = "maxClientRestarts" if process.clients else "maxServerRestarts"
            since = "since its last update" if process.clients else "since the last finished round"
            obituary = process.child.obituary()
            self._give_up(
                process,
                f"{obituary}\n{process.name} died {crashes.count} times {since}, and "
                f"failurePolicy.{field} is {crashes.limit}",
            )
            return
        pause = pause_s(crashes.count)
        when = f"starts again in {pause:.1f} s" if pause else "started again"
        self._say(
            f"{process.name} died ({process.child.cause()}) in round {self._finished + 1}, {when} "
            f"({crashes.count}/{crashes.limit})"
        )
        process.start_at = time.monotonic() + pause

    def _start_again_for_broker(self, process: _Process) -> None:
        now = time.monotonic()
        if process.away_since is None:
            process.away_since = now
        if now - process.away_since > AWAY_S:
            if process is self._server:
                raise BrokerUnavailableError(
                    f"no broker answered the server for {AWAY_S / 60:g} minutes: "
                    f"{process.child.obituary()}"
                )
            self._give_up(process, process.child.obituary())
            return
        process.away_times += 1
        pause = pause_s(process.away_times)
        when = f"starts again in {pause:.1f} s" if pause else "started again"
        self._say(
            f"{process.name} got no answer from the broker in round {self._finished + 1}, {when}"
        )
        process.start_at = now + pause

    def _give_up(self, process: _Process, why: str) -> None:
        """Go on without this process, where that is possible."""
        if process is self._server:
            raise ProcessDiedError(f"the run cannot go on: {why}")
        process.lost = why
        lost = [each for each in self._workers if each.lost]
        gone = sum(
            not client.startswith(f"{EVALUATOR_GROUP}/") for each in lost for client in each.clients
        )
        left = self._clients - gone
        reasons = "\n".join(each.lost for each in lost)
        codes = {each.child.exit_code for each in lost}
        code = exit_codes.TASK if codes == {exit_codes.TASK} else exit_codes.FAILED
        if left < self._quorum:
            raise ProcessDiedError(
                f"{left} of {self._clients} clients are left, and a round needs {self._quorum}:\n"
                f"{reasons}",
                code,
            )
        if self._most_lost is not None and gone > self._most_lost:
            raise ProcessDiedError(
                f"{gone} of {self._clients} clients are lost, and failurePolicy.maxLostClients is "
                f"{self._most_lost}:\n{reasons}",
                code,
            )
        self._say(f"lost {', '.join(process.clients)}: {why}")

    # ---- the broker ------------------------------------------------------------------------------

    def _look_at_broker(self) -> None:
        """Tell that the broker is away, and that it is back: processes wait for it in silence."""
        now = time.monotonic()
        if self._broker.is_embedded or now < self._next_look_at_broker:
            return
        self._next_look_at_broker = now + _LOOK_FOR_BROKER_EVERY_S
        answers = self._broker.answers()
        if answers and self._broker_away_since is not None:
            away_s = now - self._broker_away_since
            self._say(f"the broker at {self._broker.address} answers again after {away_s:.0f} s")
            self._broker_away_since = None
        elif not answers and self._broker_away_since is None:
            self._broker_away_since = now
            self._say(
                f"the broker at {self._broker.address} does not answer; the run waits for it, up "
                f"to {AWAY_S / 60:g} minutes"
            )

    # ---- the status ------------------------------------------------------------------------------

    def _tell_status(self) -> None:
        for status in read_status(self._status_file):
            self._note_progress(status)
            self._on_status(status)

    def _note_progress(self, status: Status) -> None:
        finished = max((report.round for report in status.history), default=0)
        if finished > self._finished:
            self._finished = finished
            self._server.progressed(_SERVER)
            for worker in self._workers:
                worker.back()
        updated = {client: r.round for r in status.history for client in r.participants}
        updated |= {
            client.id: client.round
            for client in status.clients
            if client.state is ClientState.UPLOADED and client.round is not None
        }
        for worker in self._workers:
            for client in worker.clients:
                if updated.get(client, 0) > self._updated.get(client, 0):
                    self._updated[client] = updated[client]
                    worker.progressed(client)


def quorum(spec: Spec) -> int:
    """How many clients a round cannot do without."""
    if spec.participation.on_timeout is OnTimeout.PROCEED:
        return 1
    return spec.participation.min_clients


def read_status(status_file: Path) -> Iterator[Status]:
    """The server's status, or nothing while it cannot be had (the next poll asks again)."""
    try:
        address = urlsplit(status_file.read_text(encoding="utf-8").strip())
        connection = http.client.HTTPConnection(address.netloc, timeout=2)
        try:
            connection.request("GET", "/status")
            content = connection.getresponse().read(_MAX_STATUS_BYTES)
        finally:
            connection.close()
        yield Status.model_validate_json(content)
    except (OSError, http.client.HTTPException, ValidationError):
        return
