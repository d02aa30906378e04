"""The broker of a run: an embedded one of its own, or somebody's Kafka that answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlog.job.loading import JobFile
from fedlog.transport.broker_process import BrokerProcess, answers, free_port
from fedlog.transport.embedded import EmbeddedBroker
from fedlog.transport.errors import BrokerUnavailableError

_START_S = 20.0
_POLL_S = 0.05
_LOOK_S = 1.0


@dataclass(frozen=True)
class RunningBroker:
    """address: `host:port[,…]`. process: the embedded broker, None where it is not ours to watch.
    kept: the same where it stays after the run. note: what a person should know about it, or empty.
    """

    address: str
    process: BrokerProcess | None = None
    kept: subprocess.Popen[bytes] | None = None
    note: str = ""

    @property
    def is_embedded(self) -> bool:
        return self.process is not None or self.kept is not None

    def check(self) -> None:
        """Raise BrokerUnavailableError when the embedded broker has ended."""
        words = ""
        code = None
        if self.process is not None:
            code, words = self.process.poll(), self.process.last_words()
        elif self.kept is not None:
            code = self.kept.poll()
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise BrokerUnavailableError(
                f"the embedded broker ended ({how}) and the run's log with it, which it kept in "
                "memory: the run cannot go on. A run that outlives its broker's crash needs one "
                f"that keeps its log on disk: --broker HOST:PORT of a Kafka{words and ': '}{words}"
            )

    def answers(self) -> bool:
        """Whether one of the servers takes a connection."""
        for server in self.address.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S):
                    return True
            except OSError:
                continue
        return False


@contextmanager
def broker_for(address: str | None, *, keep: bool, log: Path) -> Iterator[RunningBroker]:
    """The given broker; without an address an embedded one, for so long.

    keep: the embedded broker stays when this process ends; the note says how to stop it. log: the
    output of a broker that is kept. Raises BrokerUnavailableError.
    """
    if address is not None:
        yield RunningBroker(address)
    elif keep:
        running = _start_kept(log)
        try:
            yield running
        finally:
            if running.kept is not None:
                # Not ours to wait for any more: without this Python warns that it still runs.
                running.kept.returncode = 0
    else:
        with EmbeddedBroker() as broker:
            yield RunningBroker(broker.bootstrap_servers, broker)


def check_answers(address: str, job_file: JobFile) -> None:
    """Raise BrokerUnavailableError unless one of the servers speaks Kafka's protocol, and
    SecurityError where it refuses what the job says of authentication.
    """
    for server in address.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BrokerUnavailableError(
                f"{server.strip()!r} is not a broker's address: HOST:PORT is, several with commas"
            )
    from fedlog.transport.kafka import KafkaTransport

    transport = KafkaTransport.of(job_file, address)
    try:
        transport.check()
    except BrokerUnavailableError as error:
        raise BrokerUnavailableError(
            f"no Kafka broker answers at {address}: start one there (`fedlog broker`), correct "
            "--broker or BOOTSTRAP_SERVERS, or leave both out to use the embedded broker"
        ) from error
    finally:
        transport.close()


def _start_kept(log: Path) -> RunningBroker:
    """A broker of its own, not tied to this process."""
    port = free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", "fedlog", "broker", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ.copy(),
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while not answers("127.0.0.1", port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise BrokerUnavailableError(
                f"the embedded broker did not start: {log.read_text(errors='replace').strip()}"
            )
        time.sleep(_POLL_S)
    note = (
        f"the embedded broker stays: 127.0.0.1:{port}, process {process.pid}; "
        f"`kill {process.pid}` stops it"
    )
    return RunningBroker(f"127.0.0.1:{port}", kept=process, note=note)
