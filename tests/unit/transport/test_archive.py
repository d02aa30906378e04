"""A run's log in a file: what is written, what can be read again, what stays out."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from fedlog.transport.archive import ArchiveTransport, export_log
from fedlog.transport.base import TopicSpec
from fedlog.transport.bulk import download, upload
from fedlog.transport.errors import BulkMissingError, TransportError, UnknownTopicError
from fedlog.transport.memory import MemoryTransport
from fedlog.transport.reading import read_all
from fedlog.transport.topics import TopicNames
from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest
from fedlog.wire.limits import Limits

RUN = "fedlog.default.a.b"
NAMES = TopicNames(
    *(f"{RUN}.{name}" for name in ("control", "model", "updates", "events", "journal"))
)
SMALL = (NAMES.control, NAMES.events, NAMES.journal)


@pytest.fixture
def log() -> MemoryTransport:
    made = MemoryTransport()
    made.create_topics([TopicSpec(name) for name in (*SMALL, NAMES.model)])
    made.create_topics([TopicSpec(NAMES.updates, partitions=2), TopicSpec("somebody.elses")])
    return made


def updated(bulk: BulkManifest) -> records.Updated:
    return records.Updated(
        run=RUN,
        client="site/0",
        incarnation="a" * 16,
        round=1,
        base="0" * 64,
        examples=1,
        bulk=bulk,
    )


def write(
    log: MemoryTransport, payload: bytes, topic: str = NAMES.updates, chunk_bytes: int = 1000
) -> BulkManifest:
    """Chunks on partition 1 (if there is one) and their manifest on events."""
    writer = log.writer()
    bulk, inline = upload(
        writer,
        [payload],
        topic=topic,
        partition=(log.partitions(topic) or 1) - 1,
        chunk_bytes=chunk_bytes,
        inline_bytes=10,
        timeout_s=5,
    )
    writer.send(NAMES.events, records.encode(updated(bulk), inline))
    return bulk


def export(log: MemoryTransport, path: Path) -> ArchiveTransport:
    export_log(log, NAMES, RUN, path, chunk_bytes=1000)
    return ArchiveTransport(path)


def test_what_is_read_again_is_what_was_there(log: MemoryTransport, tmp_path: Path) -> None:
    payload = bytes(range(256)) * 20
    bulk = write(log, payload)
    with_key = log.writer(transactional_id=RUN)
    with with_key.transaction():
        with_key.send(NAMES.journal, b"not a record of ours", key=b"head")
    archive = export(log, tmp_path / "log.sqlite")
    assert archive.run == RUN
    for topic in (NAMES.events, NAMES.journal):
        assert list(read_all(archive, topic)) == list(read_all(log, topic))
    found = download(
        archive.bulk_reader(1000), bulk, b"", limits=Limits.for_model(len(payload)), timeout_s=5
    )
    assert bytes(found) == payload
    assert archive.partitions(NAMES.updates) == 2


def test_a_reader_of_an_archive_seeks_and_stops_at_the_end(
    log: MemoryTransport, tmp_path: Path
) -> None:
    for value in (b"zero", b"one", b"two"):
        log.writer().send(NAMES.control, value)
    reader = export(log, tmp_path / "log.sqlite").reader(NAMES.control)
    assert [each.value for each in reader.poll(0.1, 2)] == [b"zero", b"one"]
    assert (reader.position, reader.end_offset()) == (2, 3)
    reader.seek(1)
    assert [each.value for each in reader.poll(0.1)] == [b"one", b"two"]
    assert reader.poll(0.1) == []


def test_chunks_that_no_manifest_of_the_run_names_stay_out(
    log: MemoryTransport, tmp_path: Path
) -> None:
    """Neither an upload that was never committed, nor what a hostile client points to."""
    upload(
        log.writer(),
        [b"never committed" * 100],
        topic=NAMES.updates,
        partition=0,
        chunk_bytes=1000,
        inline_bytes=0,
        timeout_s=5,
    )
    write(log, b"another job's" * 100, topic="somebody.elses")
    archive = export(log, tmp_path / "log.sqlite")
    assert archive.partitions(NAMES.updates) is None
    assert archive.partitions("somebody.elses") is None


def test_chunks_that_are_gone_are_counted_and_the_rest_is_kept(
    log: MemoryTransport, tmp_path: Path
) -> None:
    gone = write(log, b"gone" * 1000)
    log.trim(NAMES.updates, 1, sum(gone.runs[-1]))
    there = write(log, b"there" * 1000)
    path = tmp_path / "log.sqlite"
    exported = export_log(log, NAMES, RUN, path, chunk_bytes=1000)
    assert (exported.missing, exported.records) == (1, 2 + there.chunk_count)
    assert exported.size_bytes == path.stat().st_size
    reader = ArchiveTransport(path).bulk_reader(1000)
    assert len(list(reader.read(NAMES.updates, 1, there.offsets(), 1))) == there.chunk_count
    with pytest.raises(BulkMissingError):
        next(reader.read(NAMES.updates, 1, gone.offsets(), 1))


def test_many_manifests_of_the_same_chunks_keep_them_once(
    log: MemoryTransport, tmp_path: Path
) -> None:
    bulk = write(log, b"once" * 1000)
    for _ in range(3):
        log.writer().send(NAMES.events, records.encode(updated(bulk)))
    exported = export_log(log, NAMES, RUN, tmp_path / "log.sqlite", chunk_bytes=1000)
    assert exported.records == 4 + bulk.chunk_count


@pytest.mark.parametrize(
    "runs",
    [((3, 1), (3, 1)), ((4, 1), (2, 1)), ((2**63 - 1, 2),), ((0, 2**62),)],
    ids=["twice the same", "descending", "beyond the largest offset", "more than it has"],
)
def test_what_no_manifest_can_mean_does_not_end_an_export(
    log: MemoryTransport, tmp_path: Path, runs: tuple[tuple[int, int], ...]
) -> None:
    """Anybody who may write to `events` could keep a run from having its log otherwise."""
    digests = b"x" * 64
    claim = BulkManifest(
        size=20,
        encoded_size=20,
        chunk_bytes=10,
        digest=hashlib.sha256(digests).hexdigest(),
        digests=base64.b64encode(digests).decode(),
        topic=NAMES.updates,
        partition=1,
        runs=runs,
    )
    log.writer().send(NAMES.events, records.encode(updated(claim)))
    bulk = write(log, b"abc" * 2000)
    archive = export(log, tmp_path / "log.sqlite")
    found = list(archive.bulk_reader(1000).read(NAMES.updates, 1, bulk.offsets(), 1))
    assert b"".join(found) == b"abc" * 2000
    assert len(list(read_all(archive, NAMES.events))) == 2


def test_memory_does_not_grow_with_the_log(log: MemoryTransport, tmp_path: Path) -> None:
    """50 MB of chunks; what Python holds meanwhile is less than a tenth of it. The log itself
    lends its values: nothing of it is allocated anew.
    """
    payload = bytes(1_000_000)
    for _ in range(50):
        write(log, payload, chunk_bytes=100_000)
    peaks: list[int] = []
    tracemalloc.start()
    try:
        export_log(
            log,
            NAMES,
            RUN,
            tmp_path / "log.sqlite",
            chunk_bytes=1000,
            turn=lambda: peaks.append(tracemalloc.get_traced_memory()[0]),
        )
    finally:
        tracemalloc.stop()
    assert (tmp_path / "log.sqlite").stat().st_size > 50_000_000
    assert max(peaks) - peaks[0] < 5_000_000


def test_an_export_that_is_broken_off_leaves_what_was_there(
    log: MemoryTransport, tmp_path: Path
) -> None:
    write(log, b"some" * 1000)
    path = tmp_path / "log.sqlite"
    path.write_bytes(b"a former one")

    def break_off() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_log(log, NAMES, RUN, path, chunk_bytes=1000, turn=break_off)
    assert path.read_bytes() == b"a former one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_of_ours(
    log: MemoryTransport, tmp_path: Path
) -> None:
    with pytest.raises(TransportError, match="cannot be written"):
        export_log(log, NAMES, RUN, tmp_path / "nowhere" / "log.sqlite", chunk_bytes=1000)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with pytest.raises(TransportError, match="not the log of a run"):
        ArchiveTransport(path)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(TransportError, match="not the log of a run"):
        ArchiveTransport(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE archive(key, value)")
    database.execute("INSERT INTO archive VALUES ('format', '2')")
    database.commit()
    database.close()
    with pytest.raises(TransportError, match="format 2; this Fedlog reads 1"):
        ArchiveTransport(path)


COUNTING = """CREATE VIEW records(topic, partition, offset, timestamp, key, value) AS
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n)
SELECT 'fedlog.default.a.b.events', 0, i, 0, NULL, x'00' FROM n"""
LOOSE = "CREATE TABLE records(topic, partition, offset, timestamp, key, value)"


def forged(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE archive(key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute("INSERT INTO archive VALUES ('format', '1'), ('run', 'r')")
        for statement in statements:
            database.execute(statement)
        database.commit()
    return path


@pytest.mark.parametrize("statements", [(), (COUNTING,)], ids=["no table", "a view"])
def test_a_forged_archive_is_an_error_of_ours(tmp_path: Path, statements: tuple[str, ...]) -> None:
    with pytest.raises(TransportError, match="not the log of a run"):
        list(read_all(ArchiveTransport(forged(tmp_path / "log.sqlite", *statements)), NAMES.events))


def test_values_of_any_kind_are_records_or_are_passed_over(tmp_path: Path) -> None:
    rows = (
        f"('{NAMES.events}', 'x', 0, 0, NULL, x'00')",
        f"('{NAMES.events}', 0, 'x', 0, NULL, x'00')",
        f"('{NAMES.events}', 0, 5, 'x', 'key', 'text')",
        f"('{NAMES.events}', 0, {2**63 - 1}, 0, NULL, NULL)",
    )
    path = forged(tmp_path / "log.sqlite", LOOSE, f"INSERT INTO records VALUES {', '.join(rows)}")
    archive = ArchiveTransport(path)
    assert archive.partitions(NAMES.events) == 1
    reader = archive.reader(NAMES.events)
    assert reader.poll(0) == [(5, 0, b"key", b"text"), (2**63 - 1, 0, None, b"")]
    assert reader.poll(0) == []
    assert list(archive.bulk_reader(1).read(NAMES.events, 0, [5], 0)) == [b"text"]


def test_an_archive_that_was_cut_short_is_an_error_of_ours(
    log: MemoryTransport, tmp_path: Path
) -> None:
    for _ in range(300):
        log.writer().send(NAMES.events, b"y" * 3000)
    archive = export(log, tmp_path / "log.sqlite")
    with (tmp_path / "log.sqlite").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(TransportError, match="or only a part of it"):
        list(read_all(archive, NAMES.events))


def test_large_records_come_a_few_at_a_time(
    log: MemoryTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10):
        log.writer().send(NAMES.events, b"y" * 3000)
    monkeypatch.setattr("fedlog.transport.archive._POLL_BYTES", 5000)
    reader = export(log, tmp_path / "log.sqlite").reader(NAMES.events)
    assert [record.offset for record in reader.poll(0)] == [0, 1]
    assert [record.offset for record in reader.poll(0)] == [2, 3]


def test_an_archive_is_never_written_to(log: MemoryTransport, tmp_path: Path) -> None:
    archive = export(log, tmp_path / "log.sqlite")
    for change in (
        lambda: archive.create_topics([TopicSpec("a")]),
        lambda: archive.delete_topics([NAMES.events]),
        lambda: archive.trim(NAMES.events, 0, 1),
        archive.writer,
    ):
        with pytest.raises(TransportError, match="can only be read"):
            change()
    with pytest.raises(UnknownTopicError):
        archive.reader("a")
