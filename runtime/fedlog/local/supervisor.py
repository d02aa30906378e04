"""Watching a running federation: its processes, its status, its end."""

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
from fedlog.telemetry.status import Status

STATUS_EVERY_S = 0.5
FAREWELL_S = 10.0
"""How long workers may take to read the server's stop once the server has ended."""

_LOOK_EVERY_S = 0.1
_MAX_STATUS_BYTES = 8 * 2**20


class Supervisor:
    """Follows one server and its workers until the server has ended."""

    def __init__(
        self,
        spec: Spec,
        server: Child,
        workers: Mapping[Child, Worker],
        broker: RunningBroker,
        status_file: Path,
        verdict: Path,
        *,
        on_status: Callable[[Status], None],
        say: Callable[[str], None],
    ) -> None:
        """status_file: where the server writes its address; verdict: where it writes its result.
        say: gets the news that a person should read at once, such as a worker's death.
        """
        self._quorum = quorum(spec)
        self._clients = spec.client_count
        self._server = server
        self._workers = workers
        self._broker = broker
        self._status_file = status_file
        self._verdict = verdict
        self._on_status = on_status
        self._say = say
        self._dead: dict[Child, str] = {}

    def follow(self) -> None:
        """Return once the server has ended with its verdict.

        Raises ProcessDiedError when the server died, or when with the workers that died the
        quorum is out of reach; BrokerUnavailableError when the embedded broker ended.
        """
        next_status = 0.0
        while self._server.exit_code is None:
            self._broker.check()
            self._look_after_workers()
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + STATUS_EVERY_S
                self._tell_status()
            self._wait_a_little()
        if not self._verdict.exists():  # the exit code alone does not tell: a crash is 1, too
            raise ProcessDiedError(f"the run cannot go on: {self._server.obituary()}")
        wait_all(self._workers, FAREWELL_S)

    def _wait_a_little(self) -> None:
        try:
            self._server.process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            return

    def _look_after_workers(self) -> None:
        fresh = [
            child
            for child in self._workers
            if child not in self._dead and child.exit_code not in {None, exit_codes.OK}
        ]
        if not fresh:
            return
        self._dead.update((child, child.obituary()) for child in fresh)
        lost = sum(
            not client.startswith(f"{EVALUATOR_GROUP}/")
            for child in self._dead
            for client in self._workers[child].clients
        )
        left = self._clients - lost
        if left < self._quorum:
            codes = {child.exit_code for child in self._dead}
            raise ProcessDiedError(
                f"{left} of {self._clients} clients are left, and a round needs "
                f"{self._quorum}:\n" + "\n".join(self._dead.values()),
                exit_codes.TASK if codes == {exit_codes.TASK} else exit_codes.FAILED,
            )
        for child in fresh:
            self._say(f"lost {', '.join(self._workers[child].clients)}: {self._dead[child]}")

    def _tell_status(self) -> None:
        for status in read_status(self._status_file):
            self._on_status(status)


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
