"""What `import fedlog` gives, and what it must not cost."""

import json
import subprocess
import sys

import pytest

import fedlog

HEAVY = ("tensorflow", "keras", "sklearn", "kafka", "pydantic", "numpy", "typer", "rich")


def test_the_exported_members_are_exactly_these():
    assert fedlog.__all__ == [
        "FederatedClient",
        "FederatedJob",
        "FederatedServer",
        "KerasTask",
        "Result",
        "SklearnTask",
        "Task",
        "__version__",
        "load_job",
        "resume",
        "run",
    ]
    for name in fedlog.__all__:
        assert getattr(fedlog, name) is not None, name


def test_an_unknown_member_is_an_attribute_error():
    with pytest.raises(AttributeError, match="FedMagic"):
        getattr(fedlog, "FedMagic")  # noqa: B009 - a plain access would not pass the type check


def modules_after(statement: str) -> set[str]:
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_fedlog_loads_nothing_heavy():
    loaded = modules_after("import fedlog")
    assert "fedlog" in loaded
    assert not loaded.intersection(HEAVY)


def test_no_member_of_the_api_loads_a_training_library():
    loaded = modules_after("import fedlog\nfor name in fedlog.__all__: getattr(fedlog, name)")
    assert "fedlog.tasks.keras" in loaded
    assert not loaded.intersection({"tensorflow", "keras", "sklearn"})
