"""What is generated from the model is committed as it would be generated now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedlog.job import describe
from fedlog.job.model import PARTITIONER_PARAMETERS, PartitionerName
from fedlog.job.reference import job_reference
from fedlog.job.schema import job_schema, job_schema_text

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def test_reference_is_up_to_date() -> None:
    committed = (REFERENCE / "job.md").read_text(encoding="utf-8")
    assert committed == job_reference(), "python -m fedlog.job.reference > docs/reference/job.md"


def test_schema_is_up_to_date() -> None:
    committed = (REFERENCE / "federatedjob.schema.json").read_text(encoding="utf-8")
    assert committed == job_schema_text(), "fedlog schema > docs/reference/federatedjob.schema.json"


def test_reference_lists_every_field_with_a_description() -> None:
    text = job_reference()
    for path, node in describe.objects():
        for name in node["properties"]:
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
            assert row.count(" | ") == 4, row
            field = describe.child(node, name)
            assert field is not None
            assert field.get("description"), f"{path}.{name} has no description"


def test_schema_is_plain_json_schema() -> None:
    schema = job_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema
    definitions = schema["$defs"]
    job = definitions["FederatedJob"]
    assert job["required"] == ["apiVersion", "kind", "metadata", "spec"]
    assert definitions["Training"]["properties"]["learningRate"] == {
        "default": "0.01",
        "description": "Learning rate of the client's optimizer in the first round. "
        "A decimal number in quotes, more than 0 and at most 1000.",
        "pattern": r"^[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$",
        "type": "string",
    }
    assert not unknown_keywords(schema["$defs"])
    assert references(schema) == {f"#/$defs/{name}" for name in definitions}


def test_changing_the_schema_leaves_the_next_one_alone() -> None:
    job_schema()["$defs"].clear()
    assert job_schema()["$defs"]


def test_every_partitioner_says_its_parameters() -> None:
    assert set(PARTITIONER_PARAMETERS) == set(PartitionerName)


KEYWORDS = {
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "default",
    "description",
    "enum",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
}


def unknown_keywords(definitions: dict[str, Any]) -> set[str]:
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            found.update(node.keys() - KEYWORDS)
            for option in [
                *node.get("anyOf", []),
                node.get("items"),
                *node.get("properties", {}).values(),
            ]:
                visit(option)

    for definition in definitions.values():
        visit(definition)
    return found


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        inner = set().union(*map(references, node.values()), set())
        return inner | ({node["$ref"]} if "$ref" in node else set())
    return set().union(*map(references, node), set()) if isinstance(node, list) else set()
