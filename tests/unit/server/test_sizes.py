"""The limit of clients per round, and what travels inside records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedlog.job.errors import JobError
from fedlog.job.model import FederatedJob
from fedlog.server.sizes import (
    INLINE_BUDGET_BYTES,
    asked_per_round,
    check_fits_message,
    inline_model_bytes,
    round_record_bytes,
)
from fedlog.wire import records
from fedlog.wire.bulk import INLINE_BYTES, build_manifest, chunk_digest
from unit.server.by_hand import make_job

RUN = f"fedlog.{'n' * 63}.{'j' * 63}.12345678"
DIGEST = "0" * 64


def job(clients: int, *, name: str = "site", **spec: Any) -> FederatedJob:
    groups = [{"name": name, "replicas": clients}]
    return make_job(Path("."), clients=groups, **spec).job


@pytest.mark.parametrize("name", ["a", "fifteen-letters"])
@pytest.mark.parametrize("late", ["Discard", "FoldNext"])
def test_the_estimate_is_an_upper_bound_of_the_real_records(name: str, late: str) -> None:
    spec = job(5000, name=name, participation={"lateUpdates": late})
    clients = spec.spec.client_ids()
    model_bytes = 50_000_000
    chunks = [chunk_digest(b"x")] * -(-model_bytes // 890_000)
    manifest = build_manifest(
        codec="zstd",
        size=model_bytes,
        encoded_size=model_bytes,
        chunk_bytes=890_000,
        digests=chunks,
        raw_digest=DIGEST,
        topic="t" * 249,
        offsets=range(10**12, 10**12 + len(chunks)),
    )
    every: list[records.AnyRecord] = [
        records.Committed(
            run=RUN,
            epoch=1,
            round=10**6,
            base=DIGEST,
            digest=DIGEST,
            accepted=tuple((client, 10**11, 10**10, 10**6) for client in clients),
        ),
        records.Closed(
            run=RUN,
            epoch=1,
            round=10**6,
            version=10**6,
            digest=DIGEST,
            accepted=dict.fromkeys(clients[::2], 10**11),
            refused=dict.fromkeys(clients[1::2], "superseded-by-on-time"),
        ),
        records.Announced(
            run=RUN,
            epoch=1,
            round=10**6,
            version=10**6,
            base=DIGEST,
            model=manifest,
            cohort=tuple(clients),
            training=None,
            evaluate=True,
            evaluator=True,
            keep_training=True,
            deadline_s=1e9,
            updates_topic="t" * 249,
        ),
    ]
    needed = round_record_bytes(spec, model_bytes)
    largest = max(len(records.encode(record)) for record in every)
    assert largest <= needed < 1.5 * largest


def test_too_many_clients_a_round_are_refused_with_the_field_and_the_cure() -> None:
    check_fits_message(job(16_000), 1000)
    with pytest.raises(JobError) as caught:
        check_fits_message(job(25_000), 1000)
    (problem,) = caught.value.problems
    assert problem.path == "spec.communication.maxMessageBytes"
    assert "25000 clients" in problem.found
    assert "clientsPerRound" in problem.suggestion
    check_fits_message(job(25_000, participation={"clientsPerRound": 100}), 1000)
    check_fits_message(job(25_000, communication={"maxMessageBytes": 2_000_000}), 1000)


def test_models_travel_apart_where_a_long_run_would_pile_them_up() -> None:
    few, many = job(4, rounds=100), job(4, rounds=100_000)
    assert inline_model_bytes(few, 4096) == INLINE_BYTES
    assert inline_model_bytes(many, 4096) == 0
    assert many.spec.rounds * (1 + asked_per_round(many.spec)) * 4096 > INLINE_BUDGET_BYTES


def test_an_announcement_with_its_model_fits_into_a_message() -> None:
    spec = job(500, communication={"maxMessageBytes": 70_000})
    room = inline_model_bytes(spec, 60_000)
    assert 0 < room < 60_000
    assert room + round_record_bytes(spec, 60_000) <= 70_000
