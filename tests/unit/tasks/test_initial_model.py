from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedlog import exit_codes
from fedlog.tasks.digits import task as digits
from fedlog.tasks.initial import main

JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {{name: digits}}
spec:
  task: {{entrypoint: "{entrypoint}", parameters: {parameters}}}
  rounds: 2
  seed: {seed}
  {more}
  clients: [{{name: site, replicas: 2}}]
"""


class Maker:
    """Runs the command in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "out" / "initial.safetensors"
        self.output.parent.mkdir()

    def __call__(
        self,
        entrypoint: str = "fedlog.tasks.digits:task",
        parameters: str = "{model: sklearn}",
        seed: int = 3,
        initial: str | None = None,
    ) -> int:
        more = f"initialModel: {initial}" if initial else ""
        (self.folder / "out" / "job.yaml").write_text(
            JOB.format(entrypoint=entrypoint, parameters=parameters, seed=seed, more=more)
        )
        job = str(self.folder / "out" / "job.yaml")
        return main([job, "--base", str(self.folder), "--output", str(self.output)])

    def result(self) -> dict[str, np.ndarray]:
        return dict(load_file(self.output))


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.mark.parametrize("model", ["sklearn", "mlp"])
def test_the_first_model_is_the_tasks_own_for_the_seed(make: Maker, model: str) -> None:
    assert make(parameters=f"{{model: {model}}}") == exit_codes.OK
    expected = digits.model({"model": model}, 3).weights()
    found = make.result()
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    assert [p.name for p in make.output.parent.iterdir() if ".part" in p.name] == []


@pytest.mark.parametrize("form", ["file", "run folder"])
def test_a_warm_start_from_safetensors(make: Maker, form: str) -> None:
    trained = {k: v + 1 for k, v in digits.model({"model": "sklearn"}, 0).weights().items()}
    path = make.folder / ("runs/one/model.safetensors" if form == "run folder" else "w.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(trained, path)
    assert make(initial="runs/one" if form == "run folder" else "w.safetensors") == exit_codes.OK
    found = make.result()
    assert all(np.array_equal(found[name], array) for name, array in trained.items())


def test_a_warm_start_from_keras(make: Maker) -> None:
    parameters = {"model": "mlp"}
    trained = {k: v + 1 for k, v in digits.model(parameters, 0).weights().items()}
    digits.save(trained, parameters, str(make.folder / "model.keras"))
    assert make(parameters="{model: mlp}", initial="model.keras") == exit_codes.OK
    found = make.result()
    assert all(np.array_equal(found[name], array) for name, array in trained.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefs_.0": np.zeros((64, 16), np.float32)}, "coefs_.0 is float32[64, 16], the task's"),
        ({"coefs_.1": np.zeros((32, 10))}, "coefs_.1 is float64[32, 10], the task's model has"),
        ({"coefs_.1": np.full((32, 10), np.nan, np.float32)}, "coefs_.1 holds NaN or infinity"),
        ({"other": np.zeros(1, np.float32)}, "other is not in the task's model"),
        ({"intercepts_.0": None}, "intercepts_.0 is missing"),
    ],
)
def test_a_model_of_another_layout_is_told_apart(
    make: Maker, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    weights = dict(digits.model({"model": "sklearn"}, 0).weights()) | change
    save_file({k: v for k, v in weights.items() if v is not None}, make.folder / "w.safetensors")
    assert make(initial="w.safetensors") == exit_codes.TASK
    assert message in capsys.readouterr().err
    assert not make.output.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"junk", "cannot be used"),
        ("w.bin", b"", "ends with .bin, allowed: .safetensors, .keras or a run folder"),
        ("w.keras", b"", "is a Keras file, and the task's model is none"),
        ("nothing.safetensors", None, "is not there"),
    ],
)
def test_a_file_that_is_no_model(
    make: Maker,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        (make.folder / name).write_bytes(content)
    assert make(initial=name) == exit_codes.TASK
    assert message in capsys.readouterr().err


def test_a_broken_keras_file(make: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    (make.folder / "w.keras").write_bytes(b"junk")
    assert make(parameters="{model: mlp}", initial="w.keras") == exit_codes.TASK
    assert "Keras cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("raise ValueError('bad luck')", "bad luck"),
        (
            "class T:\n    data = model = lambda self, *a: 1 / 0\ntask = T()",
            "ZeroDivisionError: division by zero",
        ),
    ],
    ids=["at import", "in model"],
)
def test_an_error_of_the_users_code_is_one_line_with_its_place(
    make: Maker, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    (make.folder / "mine.py").write_text(task)
    assert make("mine.py:task", "{}") == exit_codes.TASK
    error = capsys.readouterr().err
    assert message in error
    assert "mine.py, line" in error
    assert len(error.splitlines()) == 1


def test_a_wrong_job_file_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(tmp_path / "no.yaml"), "--output", str(tmp_path / "x")])
    assert code == exit_codes.USAGE
    assert "no.yaml" in capsys.readouterr().err
