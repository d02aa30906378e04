"""Writes the tables of records into the protocol's page: `python -m fedlog.wire.reference PAGE`."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from fedlog.wire import records
from fedlog.wire.bulk import BulkManifest

BEGIN, END = "<!-- records: written by `make docs` -->", "<!-- records: end -->"
_PARTS: tuple[type[BaseModel], ...] = (
    BulkManifest,
    records.Training,
    records.Work,
    records.Judged,
    records.VersionMeasured,
)
_TOPICS = {
    "Events: client to server": get_args(records.EventRecord),
    "Control: server to clients": get_args(records.ControlRecord),
    "Journal: server to itself": get_args(records.JournalRecord),
    "Parts of records": _PARTS,
}
_NAMED = {
    r"^[0-9a-f]{64}$": "digest",
    r"^[0-9a-f]{16}$": "incarnation",
    r"^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?/(0|[1-9][0-9]{0,5})$": "client",
    r"^[a-zA-Z0-9._-]+$": "topic",
}
_POWERS = {2**n: f"2^{n}" for n in (31, 53, 63)} | {2**n - 1: f"2^{n} - 1" for n in (31, 53, 63)}


def tables() -> str:
    """Markdown: every record with its fields, their types, bounds and defaults."""
    lines: list[str] = []
    for title, models in _TOPICS.items():
        lines += [f"### {title}", ""]
        for model in models:
            lines += _table(model)
    return "\n".join(lines)


def _table(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    kind = schema["properties"].get("type", {}).get("const")
    lines = [f"**`{kind}`**" if kind else f"**{model.__name__}**", ""]
    if model is not BulkManifest:
        lines += [_prose(model), ""]
    lines += ["| member | type | absent |", "|---|---|---|"]
    for name, found in schema["properties"].items():
        if name == "type":
            continue
        absent = "refused" if name in schema.get("required", ()) else _value(found.get("default"))
        lines.append(f"| `{name}` | {_type(found, schema)} | {absent} |")
    return [*lines, ""]


def _prose(model: type[BaseModel]) -> str:
    text = " ".join((inspect.getdoc(model) or "").split())
    return re.sub(r"\bNone\b", "null", re.sub(r"``(.+?)``", r"`\1`", text))


def _value(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, dict) and default:
        return "as absent there"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"`{default}`"


def _type(found: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in found:
        return str(found["$ref"].rpartition("/")[2])
    if "anyOf" in found:
        return " or ".join(_type(each, schema) for each in found["anyOf"])
    if "enum" in found:
        return " or ".join(f"`{each}`" for each in found["enum"])
    match found.get("type"):
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "integer" | "number":
            return _number(found)
        case "string":
            return _text(found)
        case "array":
            return _array(found, schema)
        case "object":
            return _mapping(found, schema)
    return "any JSON"


def _number(found: dict[str, Any]) -> str:
    word = "whole number" if found["type"] == "integer" else "number"
    low, high = found.get("minimum"), found.get("maximum")
    if "exclusiveMinimum" in found:
        return f"{word} above {found['exclusiveMinimum']:g}"
    if low is None:
        return word
    return f"{word}, {_bound(low)} to {_bound(high)}" if high is not None else f"{word} from {low}"


def _bound(value: float) -> str:
    return _POWERS.get(int(value)) or (f"{value:g}" if abs(value) > 2**40 else f"{value:,.0f}")


def _text(found: dict[str, Any]) -> str:
    pattern = found.get("pattern")
    if pattern in _NAMED:
        return _NAMED[pattern]
    low, high = found.get("minLength", 0), found.get("maxLength")
    return "text" if high is None else f"text of {low} to {high:,} characters"


def _array(found: dict[str, Any], schema: dict[str, Any]) -> str:
    if "prefixItems" in found:
        return "[" + ", ".join(_type(each, schema) for each in found["prefixItems"]) + "]"
    bound = f", {found.get('minItems', 0)} to {found['maxItems']}" if "maxItems" in found else ""
    return f"list of {_type(found['items'], schema)}{bound}"


def _mapping(found: dict[str, Any], schema: dict[str, Any]) -> str:
    patterns = found.get("patternProperties")
    keys = found.get("propertyNames", {})
    if patterns:
        ((pattern, value),) = patterns.items()
        keys = {"type": "string", "pattern": pattern}
    else:
        value = found.get("additionalProperties", {})
    bound = f", at most {found['maxProperties']}" if "maxProperties" in found else ""
    key = _type({"type": "string"} | keys, schema)
    return f"object: {key} → {_type(value if isinstance(value, dict) else {}, schema)}{bound}"


def write(page: Path) -> None:
    """Put the tables between the two marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
