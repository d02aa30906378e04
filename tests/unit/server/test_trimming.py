"""Old bulk is deleted as rounds end, and never what may still count, whoever serves."""

from __future__ import annotations

import numpy as np
import pytest

from fedlog.transport.bulk import upload
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records, tensors
from unit.server.by_hand import BULK, INCARNATION, SITES, Bench, make_job

LATE_UPDATES = {
    "clientsPerRound": 1,
    "minClients": 1,
    "overSelection": "2",
    "lateUpdates": "FoldNext",
}


def first_offset(log: MemoryTransport, topic: str) -> int:
    return log._topics[topic][1][0].start


@pytest.mark.parametrize("restart", [False, True], ids=["one server", "a new server"])
def test_the_chunks_of_a_slow_client_wait_for_its_manifest(
    bench: Bench, log: MemoryTransport, restart: bool
) -> None:
    """site/1 writes its chunks in round 1 and its manifest in round 4. They lie before all that
    site/0 writes meanwhile in the same partition.
    """
    job = make_job(bench.folder, size=BULK, rounds=6, participation=LATE_UPDATES)
    running = bench.serve(job)
    bench.join(*SITES)
    first = bench.asked(1)
    bulk, _ = upload(
        log.writer(),
        tensors.encode({"w": np.ones(BULK // 4, np.float32)}),
        topic=first.updates_topic,
        partition=0,
        chunk_bytes=70_000,
        timeout_s=5,
    )
    bench.update("site/0", first, size=BULK)
    for number in (2, 3):
        bench.update("site/0", bench.asked(number), size=BULK)
    fourth = bench.asked(4)
    if restart:
        bench.end()
        bench._servers.clear()
        running = bench.serve(job)
        bench.hear(records.Announced, lambda a: a.epoch == 2)
    assert first_offset(log, bench.names.updates) <= bulk.runs[0][0]
    manifest = bench.say(
        records.Updated(
            run=bench.run,
            client="site/1",
            incarnation=INCARNATION,
            round=1,
            base=first.base,
            examples=1,
            bulk=bulk,
        )
    )
    bench.update("site/0", fourth, size=BULK)
    closed = bench.hear(records.Closed, lambda c: "site/1" in c.accepted)
    assert closed.accepted["site/1"] == manifest
    # From here on both are asked and answer; what was folded late goes with the others.
    for number in range(closed.round + 1, 7):
        work = bench.asked(number)
        for client in work.cohort:
            bench.update(client, work, size=BULK)
    bench.hear(records.Announced, lambda a: a.training is None)
    assert first_offset(log, bench.names.updates) > bulk.runs[-1][0]
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
