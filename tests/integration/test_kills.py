"""Kill the server, clients and both at random moments: nothing is lost, nobody trains twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlog import exit_codes
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.kafka import KafkaTransport
from integration.killing import LEARNINGS, check_log, random_kills, running, write_job

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Figures are shown whether the test passes or not."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say


@pytest.fixture
def watching(broker: BrokerProcess) -> Iterator[KafkaTransport]:
    """The test's own look at the log."""
    transport = KafkaTransport(broker.bootstrap_servers, deadline_s=120)
    yield transport
    transport.close()


SMALL = ["server", "client", "both"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("learning", "kinds", "seed"),
    [
        pytest.param("noop", SMALL, 1, id="noop"),
        *(
            pytest.param(learning, SMALL * 3, seed, id=f"{learning}-9", marks=pytest.mark.soak)
            for seed, learning in enumerate(("noop", "sklearn", "keras"), 2)
        ),
    ],
)
def test_kills_at_random_moments(
    tmp_path: Path,
    broker: BrokerProcess,
    watching: KafkaTransport,
    say: Say,
    learning: str,
    kinds: list[str],
    seed: int,
) -> None:
    job = write_job(tmp_path, LEARNINGS[learning], rounds=7 * len(kinds) + 5)
    with running(job, watching, broker.bootstrap_servers) as run:
        random_kills(run, kinds, random.Random(seed))
        assert run.end() == exit_codes.OK, run.output
        say(f"{broker.name}, {learning}: {check_log(run, watching)}")
    watching.delete_topics(f"{run.name()}.{each}" for each in TOPICS)


TOPICS = ("control", "events", "journal", "model", "updates")
