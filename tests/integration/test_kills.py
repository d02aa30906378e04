"""Kill the server, clients, both and the broker, cut the network: nothing is lost, nobody trains
twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedlog import exit_codes
from fedlog.transport.apache import ApacheKafka
from fedlog.transport.broker_process import BrokerProcess
from fedlog.transport.kafka import KafkaTransport
from integration.killing import (
    LEARNINGS,
    SLOW_S,
    by_hand,
    check_log,
    random_kills,
    running,
    write_job,
)
from integration.network import network_namespace

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
    transport = KafkaTransport(broker.bootstrap_servers, deadline_s=LOOK_S)
    yield transport
    transport.close()


LOOK_S = 300.0
TOPICS = ("control", "events", "journal", "model", "updates")
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


@pytest.mark.apache_kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("learning", "kills", "away_s"),
    [
        pytest.param("noop", 1, 0.0, id="once"),
        pytest.param("sklearn", 3, 0.0, id="three-times", marks=pytest.mark.soak),
        pytest.param("noop", 1, 130.0, id="away-for-130-s", marks=pytest.mark.soak),
    ],
)
def test_kafka_is_killed_in_mid_round(
    tmp_path: Path, kafka_jars: Path, say: Say, learning: str, kills: int, away_s: float
) -> None:
    chance = random.Random(kills)
    with ApacheKafka(kafka_jars, tmp_path / "kafka") as kafka, ExitStack() as stack:
        watching = KafkaTransport(kafka.bootstrap_servers, deadline_s=LOOK_S)
        stack.callback(watching.close)
        job = write_job(tmp_path, LEARNINGS[learning], rounds=8 * kills + 5)
        run = stack.enter_context(running(job, watching, kafka.bootstrap_servers))
        for _ in range(kills):
            run.rounds_pass(1)
            run.wander(chance.uniform(0.0, 4 * SLOW_S))
            run.killed("Kafka")
            kafka.kill()
            run.wander(away_s)
            kafka.start()
        run.rounds_pass(1)
        assert run.end() == exit_codes.OK, run.output
        say(f"Apache Kafka killed, {learning}: {check_log(run, watching)}")
        assert "died" not in run.output


@pytest.mark.apache_kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(4.0, id="4-s"),
        pytest.param(30.0, id="30-s", marks=pytest.mark.soak),
    ],
)
def test_a_client_is_cut_off_from_the_broker(
    tmp_path: Path, kafka_jars: Path, say: Say, seconds: float
) -> None:
    """One of the clients lives in a network namespace, whose cable is drawn for a while."""
    with ExitStack() as stack:
        cable = stack.enter_context(network_namespace())
        kafka = stack.enter_context(
            ApacheKafka(kafka_jars, port=cable.plain, settings=cable.listeners())
        )
        watching = KafkaTransport(kafka.bootstrap_servers, deadline_s=LOOK_S)
        stack.callback(watching.close)
        job = write_job(tmp_path, LEARNINGS["noop"], rounds=13)
        run = stack.enter_context(by_hand(job, watching, kafka.bootstrap_servers, cable))
        run.rounds_pass(2)
        run.killed("network")
        with cable.drawn():
            run.wander(seconds)
        run.rounds_pass(1)
        assert run.end() == exit_codes.OK, run.output
        say(f"{seconds:g} s without a network: {check_log(run, watching)}")
