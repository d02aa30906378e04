"""Reading, verifying and folding updates, one after the other, in the order of asking.

A small update came inside its manifest and is folded at once by the caller's thread. A large one
is read from the log by a thread of its own, into one buffer that is used again and again, while
the caller goes on reading `events`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedlog.learning.errors import LearningError
from fedlog.learning.weights import Update
from fedlog.rounds.actions import FoldUpdate
from fedlog.rounds.events import UpdateFolded, UpdateRefused
from fedlog.transport.base import BulkReader, Transport
from fedlog.transport.bulk import download
from fedlog.transport.errors import BrokerUnavailableError, BulkMissingError, TransportError
from fedlog.transport.patience import PATIENCE_S
from fedlog.wire import records
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits
from fedlog.wire.updates import decode_update

log = logging.getLogger(__name__)

_END_TIMEOUT_S = 5.0
FoldResult = UpdateFolded | UpdateRefused


@dataclass(frozen=True)
class _Job:
    update: FoldUpdate
    manifest: records.Updated
    payload: bytes | memoryview


class Folder:
    """Feeds verified updates to `fold`, which adds them to the round's sum."""

    def __init__(
        self, transport: Transport, fold: Callable[[Update], None], limits: Limits, chunk_bytes: int
    ) -> None:
        self._transport = transport
        self._fold = fold
        self._limits = limits
        self._chunk_bytes = chunk_bytes
        self._buffer = bytearray()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[FoldResult | BaseException] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.in_flight = 0
        self.seconds = 0.0
        """Time spent on reading, checking and folding, over the run."""

    def submit(
        self, update: FoldUpdate, manifest: records.Updated, payload: bytes | memoryview
    ) -> FoldResult | None:
        """Fold now and return the result, or queue and return None; `results` has it later."""
        job = _Job(update, manifest, payload)
        if manifest.bulk.inline and self.in_flight == 0:
            return self._do(job, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="fold", daemon=True)
            self._thread.start()
        self.in_flight += 1
        self._jobs.put(job)
        return None

    def results(self, timeout_s: float = 0.0) -> list[FoldResult]:
        """What was finished since the last call; waits up to `timeout_s` for the first.

        Raises what ended the thread: it folds nothing more then.
        """
        found: list[FoldResult] = []
        wait_s = timeout_s
        while len(found) < self.in_flight:
            try:
                result = self._results.get(timeout=wait_s) if wait_s else self._results.get_nowait()
            except queue.Empty:
                break
            if isinstance(result, BaseException):
                raise result
            found.append(result)
            wait_s = 0.0
        self.in_flight -= len(found)
        return found

    def close(self) -> None:
        """End soon: what is queued is not folded any more."""
        if self._thread is not None:
            self._closing.set()
            self._jobs.put(None)
            self._thread.join(_END_TIMEOUT_S)

    def _work(self) -> None:
        try:
            reader = self._transport.bulk_reader(self._chunk_bytes)
            try:
                while (job := self._jobs.get()) is not None and not self._closing.is_set():
                    self._results.put(self._do(job, reader))
            finally:
                reader.close()
        except BaseException as error:  # noqa: BLE001 - raised again by `results`
            self._results.put(error)

    def _do(self, job: _Job, reader: BulkReader | None) -> FoldResult:
        started = time.perf_counter()
        offset = job.update.offset
        try:
            self._read_and_fold(job, reader)
        except WireError as error:
            log.warning("%s: update refused: %s", job.update.client, error)
            return UpdateRefused(offset, f"{error.reason}: {error}"[:300])
        except LearningError as error:
            log.warning("%s: update refused: %s", job.update.client, error)
            return UpdateRefused(offset, f"unfit: {error}"[:300])
        except BulkMissingError as error:
            log.warning("%s: chunks of the update are gone: %s", job.update.client, error)
            return UpdateRefused(offset, f"missing: {error}"[:300], missing=True)
        except BrokerUnavailableError:
            raise  # nobody's update is to blame for that
        except TransportError as error:
            log.warning("%s: update cannot be read: %s", job.update.client, error)
            return UpdateRefused(offset, f"unreadable: {error}"[:300])
        finally:
            self.seconds += time.perf_counter() - started
        return UpdateFolded(offset)

    def _read_and_fold(self, job: _Job, reader: BulkReader | None) -> None:
        bulk = job.manifest.bulk
        if reader is None and not bulk.inline:
            raise WireError("a manifest without its chunks")
        if not bulk.inline and len(self._buffer) < min(bulk.size, self._limits.max_payload_bytes):
            self._buffer = bytearray(min(bulk.size, self._limits.max_payload_bytes))
        payload = download(
            reader,
            bulk,
            job.payload,
            limits=self._limits,
            into=None if bulk.inline else self._buffer,
            timeout_s=PATIENCE_S,
        )
        update = job.update
        self._fold(
            decode_update(payload, self._limits, client=update.client, examples=update.examples)
        )
