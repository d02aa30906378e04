"""Reading, overriding and writing job files."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlog.job import model
from fedlog.job.errors import JobError
from fedlog.job.loading import JobFile, dump, load, loads

MINIMAL = """\
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: digits}
spec:
  task: {entrypoint: "fedlog.tasks.digits:task"}
  rounds: 3
  clients:
    - {name: site-a, replicas: 2}
    - {name: site-b}
"""
CONFIG_MAP = """\
---
apiVersion: v1
kind: ConfigMap
metadata: {name: my-task}
data:
  task.py: |
    answer = "a: b"
      # indented
"""


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        loads(text, path="job.yaml", overrides=overrides)
    return str(caught.value)


def with_source(text: str = MINIMAL) -> str:
    return text.replace(
        '{entrypoint: "fedlog.tasks.digits:task"}',
        '{entrypoint: "task.py:task", source: {configMap: my-task}}',
    )


def test_defaults_and_derived_values() -> None:
    spec = loads(MINIMAL).job.spec
    assert spec.training.learning_rate == Decimal("0.01")
    assert spec.client_ids() == ["site-a/0", "site-a/1", "site-b/0"]
    assert spec.decisive_test_set is model.TestSet.CLIENTS


def test_a_config_map_comes_with_the_job_in_any_order() -> None:
    text = with_source()
    expected = {"my-task": {"task.py": 'answer = "a: b"\n  # indented\n'}}
    assert loads(text + CONFIG_MAP).config_maps == expected
    assert loads(CONFIG_MAP + "---\n" + text).config_maps == expected


def test_json_and_byte_order_mark(tmp_path: Path) -> None:
    as_json = tmp_path / "job.json"
    as_json.write_text(json.dumps(yaml.safe_load(MINIMAL), indent=1))
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(as_json).job == load(marked).job == loads(MINIMAL).job
    assert load(as_json).base == tmp_path


def test_what_kubernetes_adds_is_left_alone() -> None:
    exported = yaml.safe_load(MINIMAL)
    exported["metadata"] |= {
        "uid": "0a1b2c3d-0000-0000-0000-000000000000",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "managedFields": [{"manager": "kubectl"}],
    }
    exported["status"] = {"phase": "Complete"}
    job = loads(yaml.safe_dump(exported)).job
    assert job.metadata.uid == "0a1b2c3d-0000-0000-0000-000000000000"
    assert job.spec == loads(MINIMAL).job.spec


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(MINIMAL)
    with pytest.raises(JobError, match=r"(?s)digit\.yaml.*no such file.*\"digits\.yaml\""):
        load(tmp_path / "digit.yaml")
    with pytest.raises(JobError, match=r"(?s)no such file.*fedlog init"):
        load(tmp_path / "nowhere" / "job.yaml")


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"(?s)a folder.*fedlog init"):
        load(tmp_path)
    (tmp_path / "job.yaml").write_text(MINIMAL)
    with pytest.raises(JobError, match=r"(?s)a folder.*name a file in it: .*job\.yaml"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b"# only a comment\n---\n", "an empty file"),
        (b"\x7fELF\xff\xfe\x00\x01", "bytes that are no text (at byte 4)"),
        (b"abc\x00\x01", "text that is not YAML"),
        (b"just a sentence", '"just a sentence" instead of a document'),
        (b"- a\n- b\n", "a list of 2 instead of a document"),
        (b"key: [1, 2", "text that is not YAML"),
        (b"a: !!python/object/apply:os.system [ls]", "no kind"),
        (b"a: !!python/name:os.system x", "a value with the tag"),
        (b"a: !!int x", "x with the tag"),
        (b"a: !!binary eHg=", "a value with the tag"),
        (b"a: .inf", "a finite number"),
        (b"a: .nan", "a finite number"),
        (b"? [1]\n: 2", "a mapping or list as a key"),
        (b"1: 2", "the key 1, which YAML reads as a number"),
        (b"<<: 3", "<< with something else"),
        (b"x" * (4 * 1024 * 1024 + 1), "at most 4,194,304 bytes"),
        ("é".encode() * (3 * 1024 * 1024), "at most 4,194,304 bytes"),
        (b"[" * 5000, "nested deeper than 50 levels"),
        (b"- " * 5000, "nested deeper than 50 levels"),
        (b"[" + b"1," * 100_001 + b"]", "more than 100000 values"),
        (b"a: &a [*a]", "aliases (*name)"),
        (b"--- 1\n" * 200, "more than 100 documents"),
    ],
    ids=range(23),
)
def test_what_is_no_job_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        load(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    began = time.process_time()
    assert "aliases (*name) that expand" in error_of("\n".join(lines))
    assert time.process_time() - began < 10


def test_a_bomb_of_merges_is_refused_at_once() -> None:
    lines = ["a0: &a0 {k0: 1}"]
    lines += [
        f"a{i}: &a{i} {{k: [{', '.join([f'*a{i - 1}'] * 9)}], <<: *a{i - 1}}}" for i in range(1, 12)
    ]
    assert "aliases (*name) that expand" in error_of("\n".join(lines))


def test_what_a_file_holds_cannot_take_over_the_terminal() -> None:
    key = "k\x1b[2J" + "x" * 1000
    text = error_of(json.dumps(yaml.safe_load(MINIMAL) | {key: 1}))
    assert "k\\x1b[2Jxxx" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 820  # a path and a found text, both cut


def test_all_problems_are_told_at_once_in_the_order_of_lines() -> None:
    text = MINIMAL.replace("rounds: 3", "rounds: 0\n  sed: 1").replace("digits}", "Digits}")
    with pytest.raises(JobError) as caught:
        loads(text)
    problems = [(p.line, p.path) for p in caught.value.problems]
    assert problems == [(3, "metadata.name"), (6, "spec.rounds"), (7, "spec.sed")]


def test_cross_field_problems_are_told_together() -> None:
    text = MINIMAL + "    - {name: site-a}\n  participation: {minClients: 9}\n"
    with pytest.raises(JobError) as caught:
        loads(text)
    assert [p.path for p in caught.value.problems] == [
        "spec.clients[2].name",
        "spec.participation.minClients",
    ]


"""What kubectl makes of the text is what Fedlog makes of it."""


def parameters(text: str) -> dict[str, Any]:
    job = MINIMAL.replace(':task"}', f':task", parameters: {{{text}}}}}')
    return loads(job).job.spec.task.parameters


def test_scalars_are_those_of_kubectl() -> None:
    assert parameters("a: 1e-3, b: 1.5, c: yes, d: 2020-01-01, e: 1:30, f: ~") == {
        "a": 0.001,
        "b": 1.5,
        "c": True,
        "d": "2020-01-01",
        "e": "1:30",
        "f": None,
    }
    assert parameters("a: 0x1F, b: 010, c: -7, d: 1_000, e: 1.2.3, f: 0o17, g: 08") == {
        "a": 31,
        "b": 8,
        "c": -7,
        "d": 1000,
        "e": "1.2.3",
        "f": 15,
        "g": "08",
    }


def test_anchors_and_merges() -> None:
    text = MINIMAL.replace(
        "    - {name: site-a, replicas: 2}\n    - {name: site-b}",
        "    - &a {name: site-a, replicas: 2}\n    - {<<: *a, name: site-b}",
    )
    assert loads(text).job.spec.client_ids() == ["site-a/0", "site-a/1", "site-b/0", "site-b/1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: my-task", "nam: my-task"), "as name of a ConfigMap"),
        (("apiVersion: v1\n", "apiVersion: v2\n"), "apiVersion: v1"),
        (("  task.py:", "  ../task.py:"), "a file name of letters"),
        (("data:\n", "data:\n  x.py: 3\n"), "x.py: | and the text below"),
        (("data:\n", "binaryData: {}\ndata:\n"), "use data"),
        (("data:\n  task.py", "data: 3\nx"), "a mapping of file names to text"),
    ],
)
def test_mistakes_in_a_config_map(change: tuple[str, str], expected: str) -> None:
    assert expected in error_of(with_source() + CONFIG_MAP.replace(*change))


def test_two_config_maps_of_one_name() -> None:
    assert 'two ConfigMaps named "my-task"' in error_of(with_source() + CONFIG_MAP * 2)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("rounds=7", "rounds", 7),
        ("spec.rounds=7", "rounds", 7),
        ("clients[1].replicas=4", "clients.1.replicas", 4),
        ("clients.1.replicas=4", "clients.1.replicas", 4),
        ("clients.site-b.replicas=4", "clients.1.replicas", 4),
        ("clients[site-b].replicas=4", "clients.1.replicas", 4),
        ("training.learningRate=0.1", "training.learning_rate", Decimal("0.1")),
        ("training.learningRate='0.1'", "training.learning_rate", Decimal("0.1")),
        ('training.learningRate="1e-3"', "training.learning_rate", Decimal("0.001")),
        ("stopWhen={value: '0.9', mode: Min}", "stop_when.mode", model.Mode.MIN),
        ("stopWhen.value=0.9", "stop_when.value", Decimal("0.9")),
        ("evaluation.heldOut.data.path=a=b", "evaluation.held_out.data.path", "a=b"),
        ("evaluation.heldOut={}", "evaluation.held_out.data.path", None),
        ("output.keepBest=true", "output.keep_best", True),
        ("task.parameters.width=16", "task.parameters.width", 16),
        ("task.parameters.layers=[1, 2]", "task.parameters.layers", [1, 2]),
        ("task.parameters.a.b=x", "task.parameters.a", {"b": "x"}),
        ("initialModel=12", "initial_model", "12"),
        ("initialModel=null", "initial_model", None),
        ('kafka.topics.model="a"', "kafka.topics.model", "a"),
    ],
)
def test_an_override_sets_one_field(override: str, path: str, value: object) -> None:
    found: Any = loads(MINIMAL, overrides=[override]).job.spec
    for step in path.split("."):
        if isinstance(found, list):
            found = found[int(step)]
        else:
            found = found[step] if isinstance(found, dict) else getattr(found, step)
    assert found == value


def test_overrides_of_metadata_and_their_order() -> None:
    job = loads(MINIMAL, overrides=["metadata.name=other", "rounds=4", "rounds=5"]).job
    assert (job.metadata.name, job.spec.rounds) == ("other", 5)


def test_an_override_puts_right_what_the_file_has_wrong() -> None:
    assert loads(MINIMAL.replace("rounds: 3", "rounds: x"), overrides=["rounds=2"])


def test_an_aliased_value_is_changed_in_one_place() -> None:
    text = MINIMAL.replace(
        "    - {name: site-a, replicas: 2}\n    - {name: site-b}",
        "    - {name: site-a, data: &d {path: x}}\n    - {name: site-b, data: *d}",
    )
    clients = loads(text, overrides=["clients[0].data.path=y"]).job.spec.clients
    assert [group.data.path for group in clients] == ["y", "x"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rouds=3", ["--set rouds=3: spec.rouds", 'did you mean "rounds"?']),
        ("learningRate=3", ["spec.learningRate", "it belongs to spec.training"]),
        ("training.learningrate=1", ['did you mean "learningRate"?']),
        ("clients[2].replicas=1", ["spec.clients", "an index (0 to 1)", "site-a, site-b"]),
        ("clients.site-c.replicas=1", ["spec.clients", "did you mean"]),
        ("clients[-1].replicas=1", ["spec.clients", "an index (0 to 1)"]),
        ("rounds.x=3", ["spec.rounds.x", "no field below it"]),
        ("training[0]=3", ["spec.training", "not a list"]),
        ("rounds", ["path=value", "--set rounds=3"]),
        ("=3", ["path=value"]),
        ("a..b=3", ["path=value"]),
        ("clients[0=3", ["path=value"]),
        ("rounds=x", ["--set rounds=x: spec.rounds", '"x"', "a whole number"]),
        ("rounds=[", ["--set rounds=[", "not YAML"]),
        ("training={batchSize: 0}", ["--set training={batchSize: 0}: spec.training.batchSize"]),
        ("clients.site-a.replicas=0", ["spec.clients[0].replicas", "at least 1"]),
        ("participation.minClients=9", ["--set participation.minClients=9", "(3)"]),
        ("strategy.name=Fedavg", ['did you mean "FedAvg"?']),
        ("rounds=", ["spec.rounds", "nothing (null)"]),
    ],
)
def test_mistakes_in_overrides(override: str, expected: list[str]) -> None:
    text = error_of(MINIMAL, override)
    assert [part for part in expected if part not in text] == []
    assert "job.yaml" not in text  # the option is wrong, not the file


def test_several_wrong_overrides_are_told_together() -> None:
    assert error_of(MINIMAL, "a=1", "b=1").startswith("the job has 2 problems\n")


def same(file: JobFile) -> None:
    again = loads(dump(file))
    assert (again.job, again.config_maps) == (file.job, file.config_maps)


def test_round_trip_with_config_map() -> None:
    same(loads(with_source() + CONFIG_MAP, overrides=["stopWhen.value=0.90"]))


def test_dump_names_defaults_and_leaves_out_what_is_not_set() -> None:
    document = yaml.safe_load(dump(loads(MINIMAL)))
    assert document["spec"]["training"]["learningRate"] == "0.01"
    assert "stopWhen" not in document["spec"]
    assert "uid" not in document["metadata"]


# Every character that YAML treats specially, and some that it does not.
text = st.text("ab01e.:-#'\"\\ \n\t\x00\x85\u2028é😀&*!|>%@`{}[],?<~=", max_size=12)
# What looks like something else.
lookalikes = st.sampled_from(["1e-3", "on", "007", "0x1f", "1_0", "~", "1:30", "<<", "=", ".inf"])
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text | lookalikes,
    lambda inner, keys=text | lookalikes: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text("abc", min_size=1), values, max_size=4))
def test_round_trip_of_any_parameters(parameters: dict[str, Any]) -> None:
    document = yaml.safe_load(MINIMAL)
    document["spec"]["task"]["parameters"] = parameters
    same(loads(json.dumps(document)))


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, len(MINIMAL)),
    st.integers(0, 12),
    st.sampled_from(
        [
            "",
            "\n",
            ": ",
            "- ",
            "[",
            "}",
            "&a ",
            "*a",
            "!!int ",
            "<<: ",
            "? ",
            "~",
            "---\n",
            "'",
            "|\n",
        ]
    ),
    st.sampled_from(
        ["rounds=4", "clients[0]={}", "clients.site-a.name=x", "spec=1", "spec.task=[]"]
    ),
)
def test_any_damage_ends_in_a_job_error(at: int, cut: int, put: str, override: str) -> None:
    text = MINIMAL[:at] + put + MINIMAL[at + cut :]
    try:
        loads(text, overrides=[override])
    except JobError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all(problem.found for problem in problems)
