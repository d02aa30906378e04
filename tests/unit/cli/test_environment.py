"""The classic variables and the order in which flag, variable and file are heard."""

from pathlib import Path

import pytest
import typer

from fedlog.cli.environment import broker_address, read_job
from fedlog.cli.options import parse_data
from fedlog.job.environment import classic_overrides

JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: words}
spec:
  task: {entrypoint: "fedlog.tasks.digits:task", parameters: {model: keras}}
  rounds: 2
  clients: [{name: a, replicas: 2}]
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize("off", ["", "0", "false", "No", "off"])
def test_a_switch_that_is_off_changes_nothing(off):
    assert classic_overrides({"USE_LIGHTWEIGHT_MODEL": off, "REDUCED_DATA_SIZE": off}) == []


def test_variables_beat_the_file(job):
    environ = {
        "USE_LIGHTWEIGHT_MODEL": "1",
        "REDUCED_DATA_SIZE": "1",
        "MODEL_TOPIC": "model_topic",
        "UPDATE_TOPIC": "update_topic",
    }
    spec = read_job(job, environ, []).job.spec
    assert spec.task.parameters == {"model": "lightweight", "reducedDataSize": 1000}
    assert (spec.kafka.topics.model, spec.kafka.topics.updates) == ("model_topic", "update_topic")


def test_a_number_of_examples_is_taken_as_it_is(job):
    spec = read_job(job, {"REDUCED_DATA_SIZE": "250"}, []).job.spec
    assert spec.task.parameters["reducedDataSize"] == 250


def test_flags_beat_variables(job):
    overrides = ["task.parameters.model=keras"]
    spec = read_job(job, {"USE_LIGHTWEIGHT_MODEL": "1"}, overrides).job.spec
    assert spec.task.parameters["model"] == "keras"


def test_relative_paths_start_from_the_base(job, tmp_path):
    assert read_job(job, {}, []).base == tmp_path
    assert read_job(job, {}, [], Path("/elsewhere")).base == Path("/elsewhere")


@pytest.mark.parametrize(
    ("given", "in_file", "expected"),
    [
        ("flag:1", "file:2", "flag:1"),
        (None, "file:2", "file:2"),
        (None, None, "localhost:9094"),
    ],
)
def test_where_the_broker_is(job, given, in_file, expected):
    overrides = [] if in_file is None else [f"kafka.bootstrapServers={in_file}"]
    assert broker_address(given, read_job(job, {}, overrides)) == expected


def test_data_pairs():
    assert parse_data(["a=/x", "b=c=d"]) == {"a": Path("/x"), "b": Path("c=d")}
    for wrong in ("a", "=x", "a="):
        with pytest.raises(typer.BadParameter, match="GROUP=PATH"):
            parse_data([wrong])
