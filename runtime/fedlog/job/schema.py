"""JSON Schema of a job file, for editors (yaml-language-server, draft 2020-12)."""

from __future__ import annotations

import copy
import json
from typing import Any

from fedlog.job import describe
from fedlog.job.loading import CONFIG_MAP
from fedlog.job.model import API_VERSION, KIND, VERSION

SCHEMA_ID = f"https://{API_VERSION}/federatedjob.schema.json"

_CONFIG_MAP = {
    "description": "Files for the task's module, as a further document of a job file.",
    "properties": {
        "apiVersion": {"const": "v1"},
        "kind": {"const": CONFIG_MAP},
        "metadata": {
            "properties": {"name": {"minLength": 1, "type": "string"}},
            "required": ["name"],
            "type": "object",
        },
        "data": {
            "additionalProperties": {"type": "string"},
            "description": "File name -> text.",
            "type": "object",
        },
    },
    "required": ["apiVersion", "kind", "metadata"],
    "title": CONFIG_MAP,
    "type": "object",
}


def job_schema() -> dict[str, Any]:
    """The schema of any document of a job file: a FederatedJob or a ConfigMap; a fresh copy.

    Decimals are strings with a pattern; their bounds, which JSON Schema cannot express for text,
    are part of the description. apiVersion and kind are required, as in every job file.
    """
    job = copy.deepcopy(describe.model_schema())
    definitions = job.pop("$defs")
    job["required"] = ["apiVersion", "kind", "metadata", "spec"]
    job["properties"]["status"] = {
        "description": "Written by the operator; ignored in a job file.",
        "type": "object",
    }
    definitions[KIND] = job
    for definition in definitions.values():
        for part in ("properties", "additionalProperties"):
            _tidy(definition.get(part))
        _tidy_text(definition)
    definitions[CONFIG_MAP] = copy.deepcopy(_CONFIG_MAP)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": f"{KIND} {VERSION}",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in (KIND, CONFIG_MAP)],
        "$defs": definitions,
    }


def job_schema_text() -> str:
    """The schema as it is printed and kept in the documentation."""
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidy(node: Any) -> None:
    """Make pydantic's schema one for people: no machine-made titles, words for decimal bounds."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    _tidy_text(node)
    # A default of null says that there is none; an editor would insert it.
    if node.get("default", ...) is None:
        del node["default"]
    elif isinstance(node.get("default"), dict):
        node["default"] = _without_null(node["default"])
    for key, value in node.items():
        if key not in {"default", "enum", "required"}:
            _tidy(value)
    for bound in ("gt", "ge", "le"):
        node.pop(bound, None)


def _tidy_text(node: dict[str, Any]) -> None:
    if not isinstance(node.get("description"), str):
        return
    node["description"] = " ".join(node["description"].split())
    inner = describe.resolve(node)
    if describe.is_decimal(inner):
        limits = " and ".join(part for part in describe.bounds(inner) if part)
        node["description"] += f" A decimal number in quotes{', ' + limits if limits else ''}."


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return value
