"""The server's word on the log: the journal, and what is derived from it, in small transactions."""

from __future__ import annotations

from collections.abc import Sequence

from fedlog.server.journal import key_of
from fedlog.transport.base import Bytes, Pending, Transport, Writer
from fedlog.transport.patience import PATIENCE_S
from fedlog.transport.topics import TopicNames
from fedlog.wire import records


class ControlLog:
    """Writes `control` and `journal`. Opening it fences every older server of the run."""

    def __init__(self, transport: Transport, names: TopicNames, run: str) -> None:
        self._names = names
        self._writer: Writer = transport.writer(transactional_id=run)
        self.work_offset: int | None = None
        """Offset on control of the first announcement of the current work."""

    def say(
        self,
        told: Sequence[tuple[records.ControlRecord, Bytes]],
        journal: Sequence[tuple[records.JournalRecord, Bytes]] = (),
        *,
        new_work: bool = False,
    ) -> None:
        """One transaction: the journal's records first, acknowledged, then what is told.

        `new_work`: the last record told is the first announcement of new work. Raises FencedError
        when a newer server has taken over; nothing was told then.
        """
        with self._writer.transaction():
            written = [self._journal(record, payload) for record, payload in journal]
            for pending in written:
                pending.result(PATIENCE_S)
            sent = [
                self._writer.send(self._names.control, records.encode(record, payload))
                for record, payload in told
            ]
            offsets = [pending.result(PATIENCE_S) for pending in sent]
        if new_work:
            self.work_offset = offsets[-1]

    def _journal(self, record: records.JournalRecord, payload: Bytes) -> Pending:
        value = records.encode(record, payload)
        return self._writer.send(self._names.journal, value, key=key_of(record).encode())

    def close(self) -> None:
        self._writer.close()
