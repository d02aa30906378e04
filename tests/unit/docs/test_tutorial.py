"""The tutorial's first page is followed to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedlog.job.loading import JobFile, load, loads
from fedlog.tasks.base import ClientData, Partition, TrainingConfig
from fedlog.tasks.loading import load_task
from fedlog.tasks.partitioners import make_partitioner

PAGE = Path(__file__).parents[3] / "docs" / "bring-your-own-task.md"
EXAMPLES = [  # cifar10 has no data here; its loader's tests make some
    path
    for path in sorted((Path(__file__).parents[3] / "examples").glob("*/*.yaml"))
    if path.parent.name != "cifar10"
]


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


MODULE, OWN_DATA, SKLEARN, LOOK = blocks("python")
JOB, GROUPS, SOURCE, CONFIG_MAP = blocks("yaml")


def one_fit(job_file: JobFile) -> tuple[float, float]:
    """Accuracy (else the negated loss) on a client's test data before and after one fit."""
    spec = job_file.job.spec
    task = load_task(spec.task, base=job_file.base, config_maps=job_file.config_maps)
    learner = task.model(spec.task.parameters, spec.seed)
    group = spec.clients[0]
    data: ClientData = task.data(
        Partition(
            0,
            spec.client_count,
            group.name,
            path=str(job_file.base / group.data.path) if group.data.path else None,
            partitioner=make_partitioner(spec.partitioning),
            seed=spec.seed,
        ),
        spec.task.parameters,
    )
    assert data.test is not None
    before = learner.evaluate(data.test).metrics
    learner.fit(
        data.train,
        TrainingConfig(20, spec.training.batch_size, float(spec.training.learning_rate), 0),
    )
    after = learner.evaluate(data.test).metrics
    if spec.evaluation.held_out is not None:
        held_out = task.held_out(Partition(0, 1, "evaluator"), spec.task.parameters)  # type: ignore[attr-defined]  # optional in the protocol
        assert learner.evaluate(held_out).examples == len(held_out[1])
    if "accuracy" in after:
        return before["accuracy"], after["accuracy"]
    return -before["loss"], -after["loss"]


def written(folder: Path, module: str, job: str) -> JobFile:
    (folder / "wine.py").write_text(module)
    (folder / "federatedjob.yaml").write_text(job)
    return load(folder / "federatedjob.yaml")


def test_the_module_and_the_job_as_written(tmp_path: Path) -> None:
    before, after = one_fit(written(tmp_path, MODULE, JOB))
    assert after > max(before, 0.8)


def test_the_scikit_learn_form(tmp_path: Path) -> None:
    replaced = MODULE.replace("task = KerasTask(model, data, held_out)\n", SKLEARN)
    assert replaced != MODULE
    before, after = one_fit(written(tmp_path, replaced, JOB))
    assert after > max(before, 0.8)


def test_data_of_each_sites_own(tmp_path: Path) -> None:
    module = MODULE.replace("task = KerasTask(model, data, held_out)\n", OWN_DATA + SKLEARN)
    module = module.replace(", held_out=held_out)", ")")
    job = re.sub(r"  partitioning:\n    name: Iid\n", "", JOB)
    job = re.sub(r"  clients:\n.*?(?=  training:)", GROUPS, job, flags=re.DOTALL)
    job = re.sub(r"  evaluation:\n.*", "", job, flags=re.DOTALL)
    job_file = written(tmp_path, module, job)
    assert [g.data.path for g in job_file.job.spec.clients] == ["data/north", "data/south"]
    y = np.arange(60) % 3
    x = np.random.default_rng(0).normal(size=(60, 13)) + y[:, None]
    (tmp_path / "data" / "north").mkdir(parents=True)
    table = np.concatenate([x, y[:, None]], axis=1)
    header = ",".join([*(f"x{i}" for i in range(13)), "grape"])
    np.savetxt(tmp_path / "data/north/bottles.csv", table, delimiter=",", header=header)
    before, after = one_fit(job_file)
    assert after > before


def test_the_module_inside_the_job_file(tmp_path: Path) -> None:
    module = MODULE.replace("task = KerasTask(model, data, held_out)\n", SKLEARN)
    job = re.sub(r"  task:\n.*?(?=    parameters:)", SOURCE, JOB, flags=re.DOTALL)
    indented = "".join(f"    {line}\n" for line in module.splitlines())
    text = job + CONFIG_MAP.replace("    # the module, indented\n", indented)
    job_file = loads(text, path=tmp_path / "job.yaml")
    assert list(job_file.config_maps) == ["wine-code"]
    before, after = one_fit(job_file)
    assert after > max(before, 0.8)


def test_looking_at_a_task_without_a_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    exec(compile(LOOK, "page", "exec"), {})
    shown = capsys.readouterr().out
    assert "'dense/kernel': (13, 16)" in shown
    assert "accuracy" in shown


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_example_learns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDUCED_DATA_SIZE", "100")
    before, after = one_fit(load(path))
    assert after > before
