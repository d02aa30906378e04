"""A run's log in one file, `log.sqlite`, and that file as a log that can be read.

    archive(key TEXT PRIMARY KEY, value TEXT)       `format` (1) and `run`
    records(topic TEXT, partition INTEGER, offset INTEGER, timestamp INTEGER, key BLOB, value BLOB)
                                                    primary key (topic, partition, offset)

Topics, partitions and offsets are those of the broker, so that what one record says of another
stays true. It holds what is on `control`, `events` and `journal`, and the chunks that manifests
there name; chunks that nobody committed are left out. `timestamp` is in milliseconds since 1970,
the broker's; it is NULL for chunks.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from fedlog.transport.base import BulkReader, Reader, Record, TopicSpec, Transport, Writer
from fedlog.transport.errors import BulkMissingError, TransportError, UnknownTopicError
from fedlog.transport.reading import read_all
from fedlog.transport.topics import TopicNames
from fedlog.wire import records
from fedlog.wire.bulk import MAX_OFFSET, BulkManifest, check_manifest
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits

log = logging.getLogger(__name__)

FORMAT = "1"
_CHUNK_TIMEOUT_S = 60.0
_POLL_BYTES = 16 * 2**20
_LONGEST_VALUE = 128 * 2**20  # more than communication.maxMessageBytes may be
_TABLES = """
CREATE TABLE archive(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE records(
  topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
  timestamp INTEGER, key BLOB, value BLOB NOT NULL,
  PRIMARY KEY (topic, partition, offset)
);
"""


# ---- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What was written. missing: manifests whose chunks are not on the log any more."""

    records: int
    size_bytes: int
    missing: int


def export_log(
    transport: Transport,
    names: TopicNames,
    run: str,
    path: Path,
    *,
    chunk_bytes: int,
    turn: Callable[[], None] = lambda: None,
) -> Exported:
    """Write the run's log to `path`, which is replaced once all of it is there.

    Holds a few records at a time, whatever the log holds. turn: called between records; what it
    raises ends the export, and `path` stays as it was. Raises TransportError, also for a full disk.
    """
    with _replacing(path) as database:
        database.executemany(
            "INSERT INTO archive VALUES (?, ?)", [("format", FORMAT), ("run", run)]
        )
        export = _Export(transport, names, database, turn)
        with closing(transport.bulk_reader(chunk_bytes)) as chunks:
            for topic, committed in (
                (names.journal, True),
                (names.control, True),
                (names.events, False),
            ):
                for record in read_all(transport, topic, committed=committed):
                    export.add(topic, record, chunks)
    return Exported(export.count, path.stat().st_size, export.missing)


class _Export:
    def __init__(
        self,
        transport: Transport,
        names: TopicNames,
        database: sqlite3.Connection,
        turn: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._bulk = (names.model, names.updates)
        self._database = database
        self._turn = turn
        self.count = 0
        self.missing = 0

    def add(self, topic: str, record: Record, chunks: BulkReader) -> None:
        """A small record, and the chunks that it names."""
        self._turn()
        self._insert(topic, 0, record.offset, record.timestamp_ms, record.key, record.value)
        try:
            found, _ = records.decode(record.value)
        except WireError:
            return  # it is kept as it is; readers skip it, too
        manifest = records.manifest_of(found)
        if manifest is None or manifest.topic is None or not self._is_bulk(manifest.topic):
            return
        try:
            check_manifest(manifest, Limits(max_payload_bytes=manifest.size))
        except WireError:
            return  # nobody reads what it names
        try:
            self._add_chunks(manifest.topic, manifest, chunks)
        except BulkMissingError as error:
            self.missing += 1
            log.debug("%s, offset %d: %s", topic, record.offset, error)

    def _add_chunks(self, topic: str, manifest: BulkManifest, chunks: BulkReader) -> None:
        partition = manifest.partition
        wanted = [o for o in manifest.offsets() if not self._has(topic, partition, o)]
        for offset, value in zip(
            wanted, chunks.read(topic, partition, wanted, _CHUNK_TIMEOUT_S), strict=True
        ):
            self._turn()
            self._insert(topic, partition, offset, None, None, value)

    def _is_bulk(self, topic: str) -> bool:
        """A topic of the run's bulk or a generation of it: a manifest may name any topic."""
        name, _, number = topic.rpartition(".")
        return topic in self._bulk or (name in self._bulk and number.isdecimal())

    def _has(self, topic: str, partition: int, offset: int) -> bool:
        return bool(
            self._database.execute(
                "SELECT 1 FROM records WHERE topic = ? AND partition = ? AND offset = ?",
                (topic, partition, offset),
            ).fetchone()
        )

    def _insert(self, *row: str | int | bytes | None) -> None:
        self._database.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        self.count += 1


@contextmanager
def _replacing(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database that takes the place of `path` once it is complete; on an error `path` stays.

    Raises TransportError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary)) as database:
            # Nobody reads it before it is complete, so that it needs no journal of its own; pages
            # leave the cache (2 MB) as they are filled.
            database.execute("PRAGMA journal_mode = OFF")
            database.executescript(_TABLES)
            yield database
            database.commit()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (sqlite3.Error, OSError) as error:
        raise TransportError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


# ---- reading -------------------------------------------------------------------------------------


class ArchiveTransport:
    """A log that is read from a file; everything that would change it raises TransportError."""

    can_trim = False
    wakes_readers = True

    def __init__(self, path: Path) -> None:
        """Raises TransportError where there is no archive, or one of another format."""
        self._path = path
        with closing(_Database(path)) as database:
            database.check_plain()
            found = dict(
                database.rows(
                    "SELECT key, value FROM archive WHERE key IN ('format', 'run') LIMIT 2"
                )
            )
        if found.get("format") != FORMAT:
            raise TransportError(
                f"{path} has format {found.get('format')}; this Fedlog reads {FORMAT}"
            )
        self.run = str(found.get("run"))
        """The run's name in records and topics."""

    def partitions(self, topic: str, timeout_s: float = 0.0) -> int | None:
        del timeout_s  # nothing will appear
        with closing(_Database(self._path)) as database:
            ((last,),) = database.rows(
                "SELECT max(partition) FROM records "
                "WHERE topic = ? AND typeof(partition) = 'integer'",
                topic,
            )
        return None if last is None else int(last) + 1

    def reader(
        self,
        topic: str,
        *,
        partition: int = 0,
        start: int | None = 0,
        dense: bool = False,
        committed: bool = False,
        wait_s: float = 0.02,
    ) -> Reader:
        del dense, committed, wait_s  # what did not count was left out when it was written
        count = self.partitions(topic)
        if count is None or not 0 <= partition < count:
            raise UnknownTopicError(f"{self._path} has nothing of {topic}/{partition}")
        return _ArchiveReader(_Database(self._path), topic, partition, start)

    def bulk_reader(self, chunk_bytes: int) -> BulkReader:
        del chunk_bytes
        return _ArchiveBulkReader(_Database(self._path))

    def create_topics(self, specs: Sequence[TopicSpec]) -> frozenset[str]:
        del specs
        self._refuse()

    def delete_topics(self, names: Iterable[str]) -> None:
        del names
        self._refuse()

    def trim(self, topic: str, partition: int, before_offset: int) -> None:
        del topic, partition, before_offset
        self._refuse()

    def writer(self, *, transactional_id: str | None = None) -> Writer:
        del transactional_id
        self._refuse()

    def close(self) -> None:
        """Nothing is held; readers are closed by who opened them."""

    def _refuse(self) -> NoReturn:
        raise TransportError(f"{self._path} can only be read")


class _ArchiveReader:
    def __init__(self, database: _Database, topic: str, partition: int, start: int | None) -> None:
        self._database = database
        self._at = (topic, partition)
        self._position = self.end_offset() if start is None else start

    @property
    def position(self) -> int:
        return self._position

    def poll(self, timeout_s: float, max_records: int = 1000) -> Sequence[Record]:
        del timeout_s  # nothing comes later
        found: list[Record] = []
        size = 0
        rows = self._database.rows(
            "SELECT offset, CAST(coalesce(timestamp, 0) AS INTEGER), CAST(key AS BLOB), "
            "CAST(coalesce(value, '') AS BLOB) FROM records WHERE topic = ? AND partition = ? "
            "AND offset BETWEEN ? AND ? AND typeof(offset) = 'integer' ORDER BY offset LIMIT ?",
            *self._at,
            min(self._position, MAX_OFFSET),
            MAX_OFFSET if self._position <= MAX_OFFSET else -1,
            max_records,
        )
        for row in rows:
            found.append(Record(*row))
            size += len(found[-1].value)
            if size >= _POLL_BYTES:
                break
        if found:
            self._position = found[-1].offset + 1
        return found

    def seek(self, offset: int) -> None:
        self._position = offset

    def end_offset(self) -> int:
        ((last,),) = self._database.rows(
            "SELECT max(offset) FROM records "
            "WHERE topic = ? AND partition = ? AND typeof(offset) = 'integer'",
            *self._at,
        )
        return 0 if last is None else int(last) + 1

    def close(self) -> None:
        self._database.close()


class _ArchiveBulkReader:
    def __init__(self, database: _Database) -> None:
        self._database = database

    def read(
        self, topic: str, partition: int, offsets: Iterable[int], timeout_s: float
    ) -> Iterator[bytes]:
        del timeout_s
        for offset in offsets:
            found = list(
                self._database.rows(
                    "SELECT CAST(coalesce(value, '') AS BLOB) FROM records "
                    "WHERE topic = ? AND partition = ? AND offset = ?",
                    topic,
                    partition,
                    offset,
                )
            )
            if not found:
                raise BulkMissingError(f"{topic}/{partition} has no record at offset {offset}")
            yield found[0][0]

    def close(self) -> None:
        self._database.close()


class _Database:
    """The file, which may be anybody's: whatever is wrong with it is a TransportError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # immutable: nothing writes it, so that no lock is taken and a read-only folder will do.
        address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        try:
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._not_a_log(error) from error
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)

    def check_plain(self) -> None:
        """It has tables and nothing else: a view in the place of one could go on for ever."""
        for (sql,) in self.rows("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100"):
            if not str(sql).startswith("CREATE TABLE "):
                raise self._not_a_log(f"it has more than tables: {str(sql)[:80]!r}")

    def rows(self, query: str, *values: str | int) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(self._connection.execute(query, values)) as cursor:
                yield from cursor
        except sqlite3.Error as error:
            raise self._not_a_log(error) from error

    def close(self) -> None:
        self._connection.close()

    def _not_a_log(self, why: object) -> TransportError:
        return TransportError(f"{self._path} is not the log of a run, or only a part of it: {why}")
