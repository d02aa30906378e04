"""Workers against a server that is driven by hand, over the in-memory log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlog import exit_codes
from fedlog.client import FederatedClient
from fedlog.client.worker import Worker
from fedlog.job.errors import JobError
from fedlog.job.loading import load
from fedlog.transport.base import BulkReader
from fedlog.transport.memory import MemoryTransport
from fedlog.transport.topics import run_id, topic_names
from fedlog.wire import records
from integration.server_by_hand import (
    DEADLINE_S,
    EDGE,
    EVALUATOR,
    SITE_0,
    SITE_1,
    Server,
    write_job,
)
from processes import until


class CountingLog(MemoryTransport):
    """Counts the records that bulk readers read."""

    reads = 0

    def bulk_reader(self, chunk_bytes: int) -> BulkReader:
        inner = super().bulk_reader(chunk_bytes)
        log = self

        class Counting:
            def read(self, *place: Any, **keywords: Any) -> Iterator[bytes]:
                for value in inner.read(*place, **keywords):
                    log.reads += 1
                    yield value

            def close(self) -> None:
                inner.close()

        return Counting()


class Hosted:
    """A worker in a thread of its own."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.exit_code = self.worker.run()

    def end(self) -> int | None:
        """The exit code, once it has one."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the worker did not end"
        return self.exit_code


class Federation:
    def __init__(self, folder: Path) -> None:
        self._path = write_job(folder)
        self._hosted: list[Hosted] = []
        self.log = CountingLog()
        self.configure()

    def configure(self, *overrides: str) -> None:
        self.job_file = load(self._path, overrides=overrides)

    def server(self) -> Server:
        return Server(self.log, self.job_file)

    def host(self, *clients: str, **options: Any) -> Hosted:
        worker = Worker(self.job_file, clients, transport=self.log, **options)
        hosted = Hosted(worker)
        self._hosted.append(hosted)
        return hosted

    def joined(self, *clients: str, **welcome: Any) -> tuple[Server, Hosted]:
        """A server, and a worker whose clients are members."""
        server = self.server()
        hosted = self.host(*clients)
        server.welcome(*server.await_records(records.Joined, len(clients)), **welcome)
        return server, hosted

    def close(self) -> None:
        for hosted in self._hosted:
            hosted.worker.stop(exit_codes.TERMINATED, "the test is over")
        for hosted in self._hosted:
            hosted.end()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    federation = Federation(tmp_path)
    yield federation
    federation.close()


def names(found: Sequence[records.EventRecord]) -> set[str]:
    return {event.client for event in found}


def test_clients_of_one_process_evaluate_train_and_leave_at_the_stop(
    federation: Federation,
) -> None:
    server, hosted = federation.joined(SITE_0, SITE_1, EDGE, EVALUATOR)
    work = server.announce(1, evaluate=True, evaluator=True)

    evaluated = server.await_records(records.Evaluated, 4)
    assert {(e.client, e.test_set, e.examples, e.metrics["accuracy"]) for e in evaluated} == {
        (SITE_0, "Clients", 2, 1.0),
        (SITE_1, "Clients", 2, 1.0),
        (EDGE, "Clients", 2, 1.0),
        (EVALUATOR, "HeldOut", 7, 1.0),
    }
    assert {(e.version, e.digest) for e in evaluated} == {(0, work.base)}

    updates = server.await_records(records.Updated, 3)
    assert {(u.client, u.examples) for u in updates} == {(SITE_0, 3), (SITE_1, 4), (EDGE, 5)}
    for number, client in enumerate((SITE_0, SITE_1, EDGE)):
        (update,) = server.found(records.Updated, client)
        assert (update.round, update.base) == (1, work.base)
        # 1 + 0.5 * (i + 1) after training; infinite figures are left out.
        change = 0.5 * (number + 1)
        assert update.metrics == {"loss": 0.5, "local_accuracy": 1 + change}
        delta = server.delta(update)
        np.testing.assert_array_equal(delta["w"], np.full(4, change, np.float32))
        np.testing.assert_array_equal(delta["steps"], [0])

    server.stop()
    assert hosted.end() == exit_codes.OK
    assert names(server.await_records(records.Left, 4)) == {SITE_0, SITE_1, EDGE, EVALUATOR}


def test_every_round_starts_from_the_announced_version(federation: Federation) -> None:
    server, _ = federation.joined(SITE_1)
    server.announce(1)
    server.await_records(records.Updated)
    server.weights["w"][...] = -3.0
    server.close_round(1)
    server.announce(2, evaluate=True)
    _, second = server.await_records(records.Updated, 2)
    assert second.round == 2
    assert second.metrics["local_accuracy"] == -3.0 + 0.5 * 2
    np.testing.assert_array_equal(server.delta(second)["w"], np.full(4, 1.0, np.float32))


def test_a_large_model_is_read_once_for_all_clients_of_a_process(federation: Federation) -> None:
    federation.configure("spec.task.parameters.size=100000")
    server, _ = federation.joined(SITE_0, SITE_1, EDGE)
    work = server.announce(1, evaluate=True)
    updates = server.await_records(records.Updated, 3)
    assert federation.log.reads == sum(count for _, count in work.model.runs) > 1

    partitions = {update.client: update.bulk.partition for update in updates}
    assert partitions == {SITE_0: 0, SITE_1: 1, EDGE: 2}
    uploading = {event.client: event for event in server.found(records.Uploading)}
    for update in updates:
        told = uploading[update.client]
        assert (told.topic, told.partition) == (update.bulk.topic, update.bulk.partition)
        assert told.first_offset == update.bulk.runs[0][0]
        np.testing.assert_array_equal(
            server.delta(update)["w"][[0, -1]], 0.5 * (update.bulk.partition + 1)
        )


def test_the_last_version_is_measured_only(federation: Federation) -> None:
    server, _ = federation.joined(SITE_0, EVALUATOR)
    server.announce(3, version=3, training=None, evaluator=True)
    evaluated = server.await_records(records.Evaluated, 2)
    assert {(e.client, e.version) for e in evaluated} == {(SITE_0, 3), (EVALUATOR, 3)}
    server.stop()
    server.await_records(records.Left, 2)
    assert not server.found(records.Updated)


def test_a_client_that_was_there_first_waits_for_the_server(federation: Federation) -> None:
    hosted = federation.host(SITE_0, label="early bird")
    server = federation.server()
    (joined,) = server.await_records(records.Joined)
    assert joined.label == "early bird"
    server.stop()
    assert hosted.end() == exit_codes.OK


def test_a_client_without_a_server_gives_up_and_creates_no_topic(federation: Federation) -> None:
    hosted = federation.host(SITE_0, server_timeout_s=0.5)
    assert hosted.end() == exit_codes.UNAVAILABLE
    run = run_id(federation.job_file.job, None)
    names = topic_names(federation.job_file.job, run)
    for topic in (names.control, names.events, names.model, names.updates, names.journal):
        assert federation.log.partitions(topic) is None


def test_a_server_that_never_answers_ends_the_client_as_unavailable(
    federation: Federation,
) -> None:
    server = federation.server()
    hosted = federation.host(SITE_0, server_timeout_s=1.0)
    assert hosted.end() == exit_codes.UNAVAILABLE
    (left,) = server.await_records(records.Left)
    assert "no word from the server" in left.reason


def test_a_client_that_comes_after_the_end_does_not_join(federation: Federation) -> None:
    server = federation.server()
    server.stop()
    assert federation.host(SITE_0).end() == exit_codes.OK
    server.poll()
    assert not server.found(records.Joined)


def test_a_client_that_joins_in_the_middle_gets_the_standing_work(federation: Federation) -> None:
    server = federation.server()
    announced, inline = server.announcement(2)
    offset = server.say(announced, inline)
    federation.host(SITE_0)
    server.welcome(*server.await_records(records.Joined), announcement=offset)
    (update,) = server.await_records(records.Updated)
    assert update.round == 2


def test_a_restarted_client_does_not_repeat_what_counts(federation: Federation) -> None:
    server = federation.server()
    announced, inline = server.announcement(2)
    offset = server.say(announced, inline)
    federation.host(SITE_0)
    server.welcome(
        *server.await_records(records.Joined), announcement=offset, committed={SITE_0: 2}
    )
    server.close_round(2)
    server.announce(3)
    (update,) = server.await_records(records.Updated)
    assert update.round == 3


def test_a_second_process_with_the_same_identity_ends_the_first(federation: Federation) -> None:
    server, first = federation.joined(SITE_0)
    second = federation.host(SITE_0)
    server.welcome(server.await_records(records.Joined, 2)[1])
    assert first.end() == exit_codes.REPLACED
    server.stop()
    assert second.end() == exit_codes.OK


def test_code_that_raises_is_reported_and_the_client_stays(federation: Federation) -> None:
    server, _ = federation.joined(SITE_0)
    server.announce(1, rate=13.0)
    (failed,) = server.await_records(records.Failed)
    assert (failed.round, failed.reason) == (1, "ValueError: thirteen")
    server.announce(2)
    (update,) = server.await_records(records.Updated)
    assert update.round == 2


def test_a_client_without_data_ends_and_the_others_go_on(federation: Federation) -> None:
    federation.configure("spec.task.parameters.withoutData=[1]")
    server, hosted = federation.joined(SITE_0, SITE_1)
    server.announce(1)
    (failed,) = server.await_records(records.Failed)
    (left,) = server.await_records(records.Left)
    assert (failed.client, failed.reason) == (SITE_1, "no folder /data")
    assert left.client == SITE_1
    assert server.await_records(records.Updated)[0].client == SITE_0
    server.stop()
    assert hosted.end() == exit_codes.TASK


def test_a_task_that_cannot_be_loaded_ends_every_client(federation: Federation) -> None:
    server = federation.server()
    federation.configure("spec.task.entrypoint=missing.py:task")
    hosted = federation.host(SITE_0, SITE_1)
    assert hosted.end() == exit_codes.TASK
    server.poll()
    assert names(server.found(records.Left)) <= {SITE_0, SITE_1}


def test_a_closed_round_stops_the_training_and_the_next_one_begins(
    federation: Federation,
) -> None:
    server, _ = federation.joined(SITE_0)
    server.announce(1, rate=99.0)
    until(
        lambda: server.poll() or any(h.round == 1 for h in server.found(records.Heartbeat)),
        "a heartbeat that tells the round",
    )
    server.close_round(1)
    server.announce(2)
    (update,) = server.await_records(records.Updated)
    assert update.round == 2


def test_stopping_the_process_stops_the_training_within_seconds(federation: Federation) -> None:
    server, hosted = federation.joined(SITE_0, SITE_1)
    server.announce(1, rate=99.0)
    until(
        lambda: server.poll() or any(h.round == 1 for h in server.found(records.Heartbeat)),
        "a heartbeat that tells the round",
    )
    begin = time.monotonic()
    hosted.worker.stop(exit_codes.TERMINATED, "SIGTERM")
    assert hosted.end() == exit_codes.TERMINATED
    assert time.monotonic() - begin < 3.0
    assert names(server.await_records(records.Left, 2)) == {SITE_0, SITE_1}


def test_an_update_whose_chunks_are_gone_is_uploaded_again(federation: Federation) -> None:
    federation.configure("spec.task.parameters.size=100000")
    server, _ = federation.joined(SITE_0)
    server.announce(1)
    (first,) = server.await_records(records.Updated)
    server.close_round(1, reupload=(SITE_0,))
    _, second = server.await_records(records.Updated, 2)
    assert second.bulk.digest == first.bulk.digest
    assert second.bulk.runs[0][0] > first.bulk.runs[0][0]


def test_a_model_that_is_not_what_it_claims_to_be_is_refused(federation: Federation) -> None:
    server, _ = federation.joined(SITE_0)
    announced, inline = server.announcement(1)
    server.say(announced, inline[:-1] + bytes([inline[-1] ^ 1]))
    (failed,) = server.await_records(records.Failed)
    assert "digest" in failed.reason
    server.weights = {"w": np.zeros(3, np.float32)}
    server.announce(2)
    _, failed = server.await_records(records.Failed, 2)
    assert failed.round == 2
    assert "the model is not the global one" in failed.reason
    assert not server.found(records.Updated)


def test_what_is_no_word_of_this_run_is_skipped(federation: Federation) -> None:
    server, hosted = federation.joined(SITE_0)
    server.writer.send(server.names.control, b"nonsense").result(DEADLINE_S)
    stopped = records.Stopped(run="another", epoch=9, outcome="Failed", reason="", round=0)
    server.say(stopped)
    server.writer.send(
        server.names.control,
        records.encode(
            records.Left(run=server.run, client=SITE_0, incarnation="0" * 16, reason="")
        ),
    ).result(DEADLINE_S)
    server.announce(1)
    server.await_records(records.Updated)
    assert hosted.exit_code is None


def test_digits_are_learned_from_the_updates_of_two_clients(federation: Federation) -> None:
    federation.configure(
        "spec.task.entrypoint=fedlog.tasks.digits:task",
        "spec.task.parameters={model: sklearn}",
        "spec.partitioning={name: Iid}",
    )
    server, _ = federation.joined(SITE_0, SITE_1, EVALUATOR)
    training = records.Training(local_epochs=5, batch_size=10, learning_rate=0.1)
    for round_ in (1, 2, 3):
        server.announce(round_, cohort=(SITE_0, SITE_1), training=training, evaluator=True)
        updates = server.await_records(records.Updated, 2 * round_)[-2:]
        examples = sum(update.examples for update in updates)
        for update in updates:
            for name, delta in server.delta(update).items():
                server.weights[name] += delta * np.float32(update.examples / examples)
        server.close_round(round_)
    accuracies = [e.metrics["accuracy"] for e in server.await_records(records.Evaluated, 3)]
    assert accuracies[0] < 0.3
    assert accuracies[2] > 0.8


def test_a_client_that_the_job_does_not_have_is_named(federation: Federation) -> None:
    with pytest.raises(JobError, match="no client site/2") as caught:
        Worker(federation.job_file, [SITE_0, "site/2"], transport=federation.log)
    assert "site/0 to /1" in str(caught.value)


def test_a_client_of_a_program_obeys_the_classic_variables(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_ID", "laptop")
    server = federation.server()
    client = FederatedClient(federation.job_file, "site", 1, transport=federation.log)
    with ThreadPoolExecutor(1) as pool:
        exit_code = pool.submit(client.run)
        (joined,) = server.await_records(records.Joined)
        client.stop(exit_codes.INTERRUPTED, "enough")
        assert exit_code.result(DEADLINE_S) == exit_codes.INTERRUPTED
    assert (joined.client, joined.label) == (SITE_1, "laptop")
