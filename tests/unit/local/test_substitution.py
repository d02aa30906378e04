"""What stands for what on one machine."""

from pathlib import Path

import pytest

from fedlog.job.errors import JobError
from fedlog.job.loading import JobFile, loads
from fedlog.local.substitution import substitutions, with_data

JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: sites}
spec:
  task: {entrypoint: "task.py:task", source: {configMap: code}}
  rounds: 1
  kafka: {bootstrapServers: "kafka.example:9092"}
  evaluation: {heldOut: {}}
  clients: [{name: north, data: {path: /mnt/north}}, {name: south}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: code}
data: {task.py: "task = None"}
"""


@pytest.fixture
def job_file() -> JobFile:
    return loads(JOB)


def paths(job_file: JobFile) -> list[str | None]:
    return [group.data.path for group in job_file.job.spec.clients]


def test_data_replaces_a_groups_path_and_leaves_the_others(job_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    changed = with_data(job_file, {"south": "here", "evaluator": tmp_path})
    assert paths(changed) == ["/mnt/north", str(tmp_path / "here")]
    held_out = changed.job.spec.evaluation.held_out
    assert held_out is not None
    assert held_out.data.path == str(tmp_path)
    assert paths(job_file) == ["/mnt/north", None], "the given job stays"


def test_every_wrong_pair_is_named(job_file):
    with pytest.raises(JobError) as caught:
        with_data(job_file, {"west": "/", "south": "/no/such/folder"})
    text = str(caught.value)
    assert "north, south, evaluator" in text
    assert "/no/such/folder, which does not exist" in text


def test_each_substitution_is_told(job_file):
    lines = list(substitutions(job_file.job, {"south": Path("/d")}, embedded_broker=True))
    assert [line.split(":")[0] for line in lines] == [
        "ConfigMap code",
        "data of south",
        "Kafka at kafka.example",
    ]
    assert len(list(substitutions(job_file.job, {}, embedded_broker=False))) == 1
