"""The thread that folds: what it cannot survive reaches the main thread, and it ends soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from fedlog.learning.weights import Update
from fedlog.rounds.actions import FoldUpdate
from fedlog.rounds.events import UpdateFolded
from fedlog.server.folding import Folder
from fedlog.transport.base import BulkReader, TopicSpec
from fedlog.transport.bulk import download, upload
from fedlog.transport.errors import BrokerUnavailableError, TransportError
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records, tensors
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.limits import Limits

CHUNK = 70_000
LIMITS = Limits.for_model(200_000)


def write(log: MemoryTransport) -> BulkManifest:
    log.create_topics([TopicSpec("updates")])
    weights = {"w": np.ones(50_000, np.float32)}
    bulk, _ = upload(
        log.writer(),
        tensors.encode(weights),
        topic="updates",
        partition=0,
        chunk_bytes=CHUNK,
        timeout_s=5,
    )
    return bulk


def submit(folder: Folder, bulk: BulkManifest, offset: int = 0) -> None:
    manifest = records.Updated(
        run="r",
        client="a/0",
        incarnation="0" * 16,
        round=1,
        base="0" * 64,
        examples=1,
        bulk=bulk,
    )
    assert folder.submit(FoldUpdate("a/0", offset, 1, 1), manifest, b"") is None


def results(folder: Folder) -> list[object]:
    return list(folder.results(10.0))


def folder_of(log: MemoryTransport, fold: Callable[[Update], None]) -> Folder:
    return Folder(log, fold, LIMITS, CHUNK)


def test_what_a_fold_raises_is_raised_again_by_results() -> None:
    def fail(update: Update) -> None:
        raise MemoryError("no room")

    log = MemoryTransport()
    folder = folder_of(log, fail)
    submit(folder, write(log))
    with pytest.raises(MemoryError, match="no room"):
        results(folder)
    folder.close()


def test_a_reader_that_cannot_be_opened_is_an_error_of_the_main_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(chunk_bytes: int) -> BulkReader:
        raise BrokerUnavailableError("nobody answers")

    log = MemoryTransport()
    monkeypatch.setattr(log, "bulk_reader", nobody)
    folder = folder_of(log, lambda update: None)
    submit(folder, write(log))
    with pytest.raises(BrokerUnavailableError):
        results(folder)
    folder.close()


def test_closing_does_not_wait_for_what_is_queued() -> None:
    started, go_on = threading.Event(), threading.Event()
    folded = []

    def fold(update: Update) -> None:
        started.set()
        assert go_on.wait(10)
        folded.append(update.client)

    log = MemoryTransport()
    bulk = write(log)
    folder = folder_of(log, fold)
    for offset in range(50):
        submit(folder, bulk, offset)
    assert started.wait(10)
    closer = threading.Thread(target=folder.close)
    closer.start()
    assert folder._closing.wait(10)
    go_on.set()
    closer.join(10)
    assert not closer.is_alive()
    assert folder._thread is not None
    assert not folder._thread.is_alive()
    assert len(folded) == 1


def test_results_come_in_the_order_of_asking() -> None:
    log = MemoryTransport()
    bulk = write(log)
    folder = folder_of(log, lambda update: None)
    for offset in range(5):
        submit(folder, bulk, offset)
    found: list[object] = []
    deadline = time.monotonic() + 10
    while len(found) < 5 and time.monotonic() < deadline:
        found += results(folder)
    assert found == [UpdateFolded(offset) for offset in range(5)]
    assert folder.in_flight == 0
    folder.close()


def test_a_whole_download_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk comes within the time, and all together take longer."""
    log = MemoryTransport()
    bulk = write(log)
    now = [0.0]
    monkeypatch.setattr("fedlog.transport.bulk.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow:
        def read(
            self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
        ) -> Iterator[bytes]:
            for value in log.bulk_reader(CHUNK).read(topic, partition, offsets, timeout_s):
                now[0] += 0.6 * timeout_s
                yield value

        def close(self) -> None: ...

    assert bulk.chunk_count == 3
    with pytest.raises(TransportError, match="2 of 3 chunks"):
        download(Slow(), bulk, b"", limits=LIMITS, timeout_s=10)
