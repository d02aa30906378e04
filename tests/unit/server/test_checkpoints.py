"""Every version that output.checkpointEvery names is a file, whoever serves meanwhile."""

from __future__ import annotations

from pathlib import Path

from fedlog.server.global_model import GlobalModel
from fedlog.server.replay import replay
from fedlog.telemetry.run_folder import RunFolder
from fedlog.transport.memory import MemoryTransport
from fedlog.wire import records
from unit.server.by_hand import SITES, Bench, make_job

SPEC = {
    "rounds": 6,
    "output": {"checkpointEvery": 2},
    "kafka": {"topics": {"retain": "All", "deletionPolicy": "Retain"}},
}


def kept(folder: RunFolder) -> dict[int, str]:
    """Version -> digest of what its file holds."""
    return {
        int(path.stem.removeprefix("version-")): GlobalModel.load(path).digest
        for path in sorted(folder.checkpoints.glob("version-*"))
    }


def round_of(bench: Bench, number: int) -> None:
    work = bench.asked(number)
    for client in SITES:
        bench.update(client, work, value=0.5**number)


def test_a_restart_costs_no_checkpoint(bench: Bench, log: MemoryTransport) -> None:
    """One change of servers between two of them, one right after a version was committed whose
    file was not written any more.
    """
    job = make_job(bench.folder, **SPEC)
    bench.serve(job)
    bench.join(*SITES)
    for number in (1, 2, 3):
        round_of(bench, number)
    bench.asked(4)
    killed(bench)

    bench.serve(job)
    round_of(bench, 4)
    bench.asked(5)
    killed(bench)
    bench.output.checkpoint(4).unlink()

    running = bench.serve(job)
    for number in (5, 6):
        round_of(bench, number)
    bench.hear(records.Announced, lambda a: a.training is None)
    bench.leave(*SITES)
    assert running.verdict().outcome == "Complete"
    digests = {each.round: each.digest for each in replay(log, bench.run)}
    assert kept(bench.output) == {version: digests[version] for version in (2, 4, 6)}


def test_a_new_server_elsewhere_keeps_what_it_can_have(bench: Bench, tmp_path: Path) -> None:
    """The log has the current version: it is written where the new server writes."""
    job = make_job(bench.folder, **SPEC)
    bench.serve(job)
    bench.join(*SITES)
    for number in (1, 2):
        round_of(bench, number)
    base = bench.asked(3).base
    killed(bench)
    elsewhere = RunFolder(tmp_path / "elsewhere")
    bench.serve(job, output=elsewhere.path)
    bench.hear(records.Announced, lambda a: a.epoch == 2)
    assert kept(elsewhere) == {2: base}


def killed(bench: Bench) -> None:
    """The server ends without a word: nothing is written when it is asked to end."""
    bench.end()
    bench._servers.clear()
