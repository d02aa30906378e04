from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from pydantic import BaseModel, ValidationError

from fedlog.telemetry.result import Best, Result
from fedlog.telemetry.status import ClientStatus, Evaluation, RoundReport, Status
from fedlog.telemetry.versions import installed_versions

MODELS = [Status, RoundReport, ClientStatus, Evaluation, Result, Best]


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_a_reader_ignores_members_of_a_later_server() -> None:
    text = '{"run": "r", "job": "j", "phase": "Training", "rounds": 3, "epsilon": 1.5}'
    assert Status.model_validate_json(text).rounds == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"phase": "Napping"},
        {"eta_s": float("nan")},
        {"history": [{"round": 1, "version": 1, "digest": "d", "seconds": 1}] * 21},
        {"waiting_for": ["a/0"] * 51},
    ],
    ids=["version", "phase", "not a number", "history", "waiting"],
)
def test_a_status_keeps_its_bounds(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Status.model_validate({"run": "r", "job": "j", "phase": "Training", "rounds": 3} | wrong)


def test_the_largest_status_stays_small() -> None:
    """A poller may bound what it reads: 20 rounds and 1,000 clients with long names fit."""
    ids = tuple(f"a-group-of-15chr/{n:06d}" for n in range(1000))
    metrics = {f"metric_{n}": 0.123456789 for n in range(8)}
    evaluation = Evaluation(version=1, examples=10**6, clients=1000, metrics=metrics)
    report = RoundReport(
        round=1,
        version=1,
        digest="sha256:" + "a" * 64,
        seconds=1.5,
        participants=ids,
        evaluations={"HeldOut": evaluation, "Clients": evaluation},
    )
    clients = [ClientStatus(id=client, state="training", last_seen_s=1.5) for client in ids]
    status = Status(
        run="r", job="j", phase="Training", rounds=9, history=[report] * 20, clients=clients
    )
    assert len(status.model_dump_json()) < 1_000_000


def test_versions_are_those_of_what_is_installed_and_load_nothing() -> None:
    assert installed_versions()["numpy"] == version("numpy")
    code = (
        "import sys; from fedlog.telemetry.versions import installed_versions as v; v(); "
        "import fedlog.telemetry.http, fedlog.telemetry.progress, fedlog.telemetry.report; "
        "print({'tensorflow', 'keras', 'sklearn', 'kafka', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
