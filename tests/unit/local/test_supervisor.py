"""Which ends of a process are survived: real processes that end as they are told to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlog import exit_codes
from fedlog.job.model import FederatedJob, Spec
from fedlog.local import supervisor
from fedlog.local.broker import RunningBroker
from fedlog.local.children import Child, end_all
from fedlog.local.errors import ProcessDiedError
from fedlog.local.placement import Worker
from fedlog.local.supervisor import Supervisor
from fedlog.transport.broker_process import free_port
from fedlog.transport.errors import BrokerUnavailableError

SCRIPT = """
import sys, time
from pathlib import Path
name, *codes = sys.argv[1:]
lives = Path(f"{name}.lives")
life = int(lives.read_text()) if lives.exists() else 0
lives.write_text(str(life + 1))
if life < len(codes):
    sys.exit(int(codes[life]))
if name == "server":
    Path("result.json").write_text("{}")
    sys.exit(0)
while not Path("result.json").exists():
    time.sleep(0.01)
"""
SITE_0, SITE_1 = Worker("site-0", ("site/0",)), Worker("site-1", ("site/1",))


def spec(**changes: object) -> Spec:
    return FederatedJob.model_validate(
        {
            "metadata": {"name": "watched"},
            "spec": {
                "task": {"entrypoint": "fedlog.tasks.noop:task"},
                "rounds": 1,
                "clients": [{"name": "site", "replicas": 2}],
                "participation": {"minClients": 1},
                **changes,
            },
        }
    ).spec


class Watched:
    """A supervisor over processes that end with these codes, one a life, and then do well."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.children: list[Child] = []
        self._folder = folder
        (folder / "spoken.py").write_text(SCRIPT)

    def _starting(self, name: str, codes: tuple[int, ...]) -> Callable[[], Child]:
        def start() -> Child:
            child = Child(
                name,
                "spoken",
                [name, *map(str, codes)],
                log=self._folder / f"{name}.log",
                environment={**os.environ, "PYTHONPATH": str(self._folder)},
            )
            self.children.append(child)
            return child

        return start

    def follow(self, spec: Spec, **codes: tuple[int, ...]) -> None:
        Supervisor(
            spec,
            self._starting("server", codes.get("server", ())),
            {
                worker: self._starting(worker.name, codes.get(worker.name.replace("-", "_"), ()))
                for worker in (SITE_0, SITE_1)
            },
            RunningBroker(f"127.0.0.1:{free_port()}"),
            self._folder / "status",
            self._folder / "result.json",
            on_status=lambda status: None,
            say=self.said.append,
        ).follow()

    def lives(self, name: str) -> int:
        return int((self._folder / f"{name}.lives").read_text())


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.chdir(tmp_path)
    watched = Watched(tmp_path)
    yield watched
    end_all(watched.children, grace_s=0.1)


def test_a_server_that_crashes_is_started_again_until_it_has_a_verdict(watched: Watched) -> None:
    watched.follow(spec(), server=(1, 143))
    assert watched.lives("server") == 3
    lines = [line for line in watched.said if line.startswith("server died")]
    assert lines[0] == "server died (exit code 1) in round 1, started again (1/5)"
    assert lines[1].startswith("server died (exit code 143) in round 1, starts again in 0.")


def test_a_crash_too_many_is_one_error_with_the_last_words(watched: Watched) -> None:
    policy = {"maxServerRestarts": 1}
    with pytest.raises(ProcessDiedError, match=r"died 2 times .*maxServerRestarts is 1") as caught:
        watched.follow(spec(failurePolicy=policy), server=(1, 1, 1))
    assert "server ended with exit code 1" in str(caught.value)
    assert watched.lives("server") == 2


@pytest.mark.parametrize("code", [exit_codes.USAGE, exit_codes.REPLACED, exit_codes.DENIED])
def test_what_starting_again_does_not_help_ends_the_run(watched: Watched, code: int) -> None:
    with pytest.raises(ProcessDiedError, match=f"exit code {code}"):
        watched.follow(spec(), server=(code,))
    assert watched.lives("server") == 1


def test_who_finds_no_broker_is_started_again_and_that_is_no_crash(watched: Watched) -> None:
    policy = {"maxServerRestarts": 0, "maxClientRestarts": 0}
    away = exit_codes.UNAVAILABLE
    watched.follow(spec(failurePolicy=policy), server=(away, away), site_0=(away,))
    assert watched.lives("server") == 3
    assert "server got no answer from the broker in round 1, started again" in watched.said
    assert any("does not answer; the run waits for it" in line for line in watched.said)


def test_a_broker_that_stays_away_ends_the_run(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "AWAY_S", 0.2)
    away = (exit_codes.UNAVAILABLE,) * 9
    with pytest.raises(BrokerUnavailableError, match="no broker answered the server"):
        watched.follow(spec(), server=away)


def test_a_client_that_cannot_work_is_lost_and_the_run_goes_on(watched: Watched) -> None:
    watched.follow(spec(), site_0=(exit_codes.TASK,), server=(1,) * 3)
    assert any(
        line.startswith("lost site/0: site-0 ended with exit code 3") for line in watched.said
    )
    assert watched.lives("site-0") == 1


def test_no_client_left_is_a_fault_of_the_task_where_all_say_so(watched: Watched) -> None:
    task = (exit_codes.TASK,)
    with pytest.raises(ProcessDiedError, match="0 of 2 clients are left") as caught:
        watched.follow(spec(), site_0=task, site_1=task, server=(1,) * 5)
    assert caught.value.exit_code == exit_codes.TASK
