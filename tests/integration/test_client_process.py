"""`fedlog client` as a process of its own, over the embedded broker."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlog import exit_codes
from fedlog.job.loading import load
from fedlog.transport.embedded import EmbeddedBroker
from fedlog.transport.kafka import KafkaTransport
from fedlog.wire import records
from integration.server_by_hand import DEADLINE_S, SITE_0, Server, write_job
from processes import until

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path)


@pytest.fixture
def server(embedded_broker: EmbeddedBroker, job: Path) -> Iterator[Server]:
    transport = KafkaTransport(embedded_broker.bootstrap_servers)
    server = Server(transport, load(job))
    yield server
    transport.delete_topics(vars(server.names).values())
    transport.close()


@pytest.fixture
def start(embedded_broker: EmbeddedBroker, job: Path) -> Iterator[Start]:
    broker = embedded_broker.bootstrap_servers
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedlog", "client", str(job), "--broker", broker]
        process = subprocess.Popen(
            [*command, "--group", "site", "--index", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        print(process.communicate()[0])  # shown where a test fails


def a_round_in_progress(server: Server) -> None:
    """The one client is a member and trains, for as long as it is let."""
    server.welcome(*server.await_records(records.Joined))
    server.announce(1, rate=99.0)
    until(
        lambda: server.poll() or any(beat.round == 1 for beat in server.found(records.Heartbeat)),
        "a heartbeat that tells the round",
    )


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, exit_codes.TERMINATED), (signal.SIGINT, exit_codes.INTERRUPTED)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_ends_a_training_client_within_seconds(
    server: Server, start: Start, number: signal.Signals, exit_code: int
) -> None:
    process = start()
    a_round_in_progress(server)
    process.send_signal(number)
    assert process.wait(5.0) == exit_code
    (left,) = server.await_records(records.Left)
    assert left.reason == number.name


def test_a_killed_client_comes_back_as_another_incarnation_and_trains(
    server: Server, start: Start
) -> None:
    first = start()
    a_round_in_progress(server)
    first.kill()
    again, inline = server.announcement(1)
    offset = server.say(again, inline)
    second = start()
    before, joined = server.await_records(records.Joined, 2)
    assert joined.client == before.client == SITE_0
    assert joined.incarnation != before.incarnation
    server.welcome(joined, announcement=offset)
    (update,) = server.await_records(records.Updated)
    assert update.incarnation == joined.incarnation
    server.stop()
    assert second.wait(DEADLINE_S) == exit_codes.OK
