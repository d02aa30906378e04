from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedlog.job.model import TaskSource, TaskSpec
from fedlog.tasks.base import Partition
from fedlog.tasks.errors import EntrypointError
from fedlog.tasks.loading import load_task

NOOP = """
from fedlog.tasks.noop import NoopTask
class Named(NoopTask):
    name = {name!r}
task = Named()
cls = Named
number = 3
"""


def load(entrypoint: str, base: Path, source: str | None = None, **maps: dict[str, str]) -> object:
    spec = TaskSpec(
        entrypoint=entrypoint, source=None if source is None else TaskSource(config_map=source)
    )
    return load_task(spec, base=base, config_maps=maps)


def test_an_installed_module(tmp_path: Path) -> None:
    from fedlog.tasks.noop import task

    assert load("fedlog.tasks.noop:task", tmp_path) is task


def test_a_file_beside_the_job_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "fedlog_test_neighbour.py").write_text("NAME = 'from neighbour'")
    (tmp_path / "sub" / "my-task.py").write_text(
        "from fedlog_test_neighbour import NAME\n" + NOOP.format(name="x").replace("'x'", "NAME")
    )
    assert load("sub/my-task.py:task", tmp_path).name == "from neighbour"  # type: ignore[attr-defined]  # set by NOOP


def test_a_module_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "fedlog_test_beside.py").write_text(NOOP.format(name="beside"))
    assert load("fedlog_test_beside:task", tmp_path).name == "beside"  # type: ignore[attr-defined]  # set by NOOP


def test_two_jobs_of_one_process_may_have_files_of_one_name(tmp_path: Path) -> None:
    names = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.py").write_text(NOOP.format(name=name))
        names.append(load("task.py:task", tmp_path / name).name)  # type: ignore[attr-defined]  # set by NOOP
    assert names == ["one", "two"]


def test_a_config_map_of_the_same_file(tmp_path: Path) -> None:
    files = {"task.py": NOOP.format(name="mapped"), "fedlog_test_mapped.txt": "1"}
    task = load("task.py:task", tmp_path, "code", code=files)
    assert task.name == "mapped"  # type: ignore[attr-defined]  # set by NOOP
    assert not (tmp_path / "task.py").exists()
    folder = Path(sys.modules[type(task).__module__].__file__ or "").parent
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == sorted(files)
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may write code into it"


def test_a_path_out_of_the_config_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EntrypointError, match="allowed is a file name"):
        load("task.py:task", tmp_path, "code", code={"../task.py": ""})


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("tsak.py:task", r'no file .*tsak\.py; did you mean "task\.py"'),
        ("zzzzz.py:task", "Python files there: broken.py, syntax.py, task.py, wants.py"),
        ("nosuchmodule:task", "no module 'nosuchmodule'; modules beside the job file .*broken, "),
        ("fedlog.tasks.mnits:task", 'did you mean "fedlog.tasks.mnist"'),
        ("fedlog.nothing_like_it.x:task", "no module 'fedlog.nothing_like_it'"),
        ("task.py:tusk", r'has no \'tusk\'; it has these tasks: task\. did you mean "task"'),
        ("task.py:number", "number is int, which lacks model and data"),
        ("task.py:cls", r"cls is the class Named, .*task = Named\(\)"),
        ("broken.py:task", r"ValueError: bad luck \(.*broken\.py, line 2: raise ValueError"),
        ("syntax.py:task", r"syntax\.py, line 1: def"),
        ("wants.py:task", "No module named 'surely_not_there'.*install 'surely_not_there'"),
    ],
)
def test_an_entrypoint_that_cannot_be_loaded(tmp_path: Path, entrypoint: str, message: str) -> None:
    (tmp_path / "task.py").write_text(NOOP.format(name="x"))
    (tmp_path / "broken.py").write_text("import json\nraise ValueError('bad luck')\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "wants.py").write_text("import surely_not_there\n")
    with pytest.raises(EntrypointError, match=message) as found:
        load(entrypoint, tmp_path)
    assert len(str(found.value).splitlines()) == 1


def test_an_unknown_config_map(tmp_path: Path) -> None:
    with pytest.raises(EntrypointError, match="'cod', the job file has these ConfigMaps: code"):
        load("task.py:task", tmp_path, "cod", code={})


def test_an_error_deep_in_a_library_names_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text("import json\n\nvalue = json.loads('{')\n")
    with pytest.raises(EntrypointError, match=r"deep\.py, line 3: value = json\.loads"):
        load("deep.py:task", tmp_path)


def test_noop_is_a_task_of_any_size(tmp_path: Path) -> None:
    task = load_task(TaskSpec(entrypoint="fedlog.tasks.noop:task"), base=tmp_path)
    learner = task.model({"sizeBytes": 4096}, 0)
    assert [a.nbytes for a in learner.weights().values()] == [4096]
    assert task.data(Partition(0, 1, "g"), {}).train.y.shape == (1,)
