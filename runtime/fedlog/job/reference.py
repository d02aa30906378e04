"""The reference of the job file, generated from the model: `python -m fedlog.job.reference`."""

from __future__ import annotations

import json
import sys

from fedlog.job import describe
from fedlog.job.document import Path, path_text
from fedlog.job.model import PARTITIONER_PARAMETERS

_INTRODUCTION = """\
# The job file

A `FederatedJob` is one YAML (or JSON) document, and the same one for `fedlog run`, for the server
and the clients, and for Kubernetes. This page is generated from the code
(`python -m fedlog.job.reference`); `fedlog schema` prints the same as JSON Schema for editors, also
kept as [federatedjob.schema.json](federatedjob.schema.json): put

    # yaml-language-server: $schema=federatedjob.schema.json

into the first line of a job file, and an editor with yaml-language-server completes and checks it.

- `fedlog validate FILE` checks a file and shows every problem with its line and cure.
- `--set path=value` changes a field for one run: `--set rounds=3`,
  `--set training.learningRate=0.1`, `--set 'clients[0].replicas=4'`,
  `--set clients.site-a.replicas=4`. `spec.` may be left out.
- Decimal numbers are written in quotes (`"0.1"`), as in other Kubernetes objects; with `--set` no
  quotes are needed.
- A field that Fedlog does not know is an error, never ignored. `status` and the parts of
  `metadata` that are not listed here are Kubernetes' own and left alone.
- The file may hold ConfigMaps besides the one job, as further documents after `---`. They supply
  the task's module to `spec.task.source.configMap`.
- At most 4 MiB, 50 levels and 100,000 values. Anchors, aliases and `<<` work within the document.
"""


def job_reference() -> str:
    """docs/reference/job.md: a table for every object of the document."""
    parts = [_INTRODUCTION]
    for path, node in describe.objects():
        title = _title(path) or "The document"
        parts.append(f"## {title}\n")
        # Each object's own description stands in its class; the field's stands in the table above.
        description = _own_description(path)
        if description:
            parts.append(f"{description}\n")
        rows = ["| field | type | default | allowed | description |", "|---|---|---|---|---|"]
        rows += [_row(name, node, path) for name in node["properties"]]
        parts.append("\n".join(rows) + "\n")
    parts.append("## Parameters of the partitioners\n")
    parts.append(_partitioners())
    return "\n".join(parts)


def _title(path: Path) -> str:
    return path_text(path).replace("[0]", "[]")


def _own_description(path: Path) -> str:
    if not path:
        return ""
    node = describe.node_at(path) or {}
    definition = describe.model_schema()["$defs"].get(node.get("title", ""), {})
    return str(definition.get("description", ""))


def _row(name: str, parent: describe.Node, path: Path) -> str:
    field = describe.child(parent, name) or {}
    nested = _title((*path, name))
    cells = [
        f"`{name}`",
        _type(field),
        _default(name, field, parent),
        _allowed(field, nested),
        str(field.get("description", "")),
    ]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(field: describe.Node) -> str:
    if describe.is_decimal(field):
        return "decimal"
    if "const" in field or "enum" in field:
        return "name"
    names = {"string": "text", "integer": "whole number", "array": "list", "object": "mapping"}
    kind = str(field.get("type", "any"))
    return names.get(kind, kind)


def _default(name: str, field: describe.Node, parent: describe.Node) -> str:
    if "const" in field or name in parent.get("required", []):
        return "required"
    default = field.get("default")
    if default is None:
        return ""
    if isinstance(default, dict):
        # Shown field by field in the object's own table.
        return ""
    return f"`{json.dumps(default) if describe.is_decimal(field) else _plain(default)}`"


def _plain(default: object) -> str:
    return default if isinstance(default, str) else json.dumps(default)


def _allowed(field: describe.Node, nested: str) -> str:
    if "properties" in field:
        return f"see [{nested}](#{_anchor(nested)})"
    if "items" in field:
        nested += "[]"
        return f"{describe.allowed(field)}, see [{nested}](#{_anchor(nested)})"
    return describe.allowed(field)


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower() if c.isalnum() or c in "-_")


def _partitioners() -> str:
    rows = ["| partitioner | parameters |", "|---|---|"]
    for name, parameters in PARTITIONER_PARAMETERS.items():
        words = [
            f"`{parameter}`{'' if required else ' (optional)'}"
            for parameter, required in parameters.items()
        ]
        rows.append(f"| `{name.value}` | {', '.join(words) or 'none'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(job_reference())
