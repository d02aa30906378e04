"""What is allowed where, in words, from the JSON Schema of the model.

One source for error messages, the editor's schema and the reference, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from fedlog.job.document import Path, path_text
from fedlog.job.model import (
    DECIMAL_PATTERN,
    ENTRYPOINT_PATTERN,
    LABEL_PATTERN,
    SERVERS_PATTERN,
    TOPIC_PATTERN,
    UID_PATTERN,
    FederatedJob,
)

Node = Mapping[str, Any]
"""A schema of one value, with its $ref followed."""

_PATTERN_WORDS = {
    LABEL_PATTERN: "lower-case letters, digits and '-', with a letter or digit at both ends",
    TOPIC_PATTERN: "letters, digits, '.', '_' and '-', not beginning with '.'",
    SERVERS_PATTERN: "host:port, or several with commas",
    UID_PATTERN: "lower-case letters, digits and '-'",
    ENTRYPOINT_PATTERN: "package.module:attribute or path/to/file.py:attribute",
}

_FIELDS_NAMED = 13
"""So many fields of a mapping are named in a message; more make it unreadable."""


@cache
def model_schema() -> dict[str, Any]:
    """The model's JSON Schema as pydantic writes it. Not to be changed."""
    return FederatedJob.model_json_schema()


def resolve(node: Node) -> Node:
    """The node with its reference followed and `or null` taken off."""
    while True:
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            outer = {key: value for key, value in node.items() if key != "$ref"}
            # The field's own description and default stand before those of its type.
            node = {**model_schema()["$defs"][name], **outer}
        elif "anyOf" in node:
            inner = next(option for option in node["anyOf"] if option.get("type") != "null")
            outer = {key: value for key, value in node.items() if key != "anyOf"}
            node = {**inner, **outer}
        else:
            return node


def root() -> Node:
    """The whole document."""
    return model_schema()


def child(node: Node, step: str | int) -> Node | None:
    """The schema below one key or index; None where the schema knows no such thing.

    Below a free-form mapping everything is known: {} allows any value.
    """
    if isinstance(step, int):
        return resolve(node["items"]) if "items" in node else None
    if step in node.get("properties", {}):
        return resolve(node["properties"][step])
    further = node.get("additionalProperties", not node)
    if isinstance(further, Mapping):
        return resolve(further)
    return {} if further else None


def node_at(path: Path) -> Node | None:
    """The schema of the value at the path from the document's root."""
    node: Node | None = root()
    for step in path:
        if node is None:
            return None
        node = child(node, step)
    return node


def belongs(word: object) -> str:
    """`it belongs to spec.training`, for a field that is put into the wrong object, or empty."""
    places = [path_text(path) for path, node in objects() if word in node.get("properties", {})]
    return f"it belongs to {' or '.join(places)}" if places else ""


def objects() -> Iterator[tuple[Path, Node]]:
    """Every object of the document with named fields, outside in; index 0 stands for any entry."""
    yield from _objects(root(), ())


def _objects(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    if "items" in node:
        yield from _objects(resolve(node["items"]), (*path, 0))
    if "properties" in node:
        yield path, node
        for name, field in node["properties"].items():
            yield from _objects(resolve(field), (*path, name))


def is_decimal(node: Node) -> bool:
    """Whether the value is a decimal number written as text."""
    return node.get("pattern") == DECIMAL_PATTERN or "gt" in node or "ge" in node


def bounds(node: Node) -> tuple[str, str]:
    """Lower and upper bound in words, each empty where there is none."""
    lower = upper = ""
    if "minimum" in node:
        lower = f"at least {node['minimum']}"
    elif "ge" in node:
        lower = f"at least {node['ge']}"
    elif "gt" in node:
        lower = f"more than {node['gt']}"
    if "maximum" in node:
        upper = f"at most {node['maximum']}"
    elif "le" in node:
        upper = f"at most {node['le']}"
    return lower, upper


def allowed(node: Node) -> str:
    """What a value may be, in words: `a whole number, at least 1 and at most 1000`."""
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    limits = " and ".join(part for part in bounds(node) if part)
    kind = node.get("type")
    if is_decimal(node):
        return ", ".join(part for part in ('a decimal number in quotes ("0.1")', limits) if part)
    if kind == "integer":
        return ", ".join(part for part in ("a whole number", limits) if part)
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return f"a list of {node.get('minItems', 0)} to {node['maxItems']} entries"
    if kind == "object":
        fields = list(node.get("properties", {}))
        named = ", ".join(fields[:_FIELDS_NAMED]) + (" …" if len(fields) > _FIELDS_NAMED else "")
        return f"a mapping with {named}" if fields else "a mapping"
    if kind == "string":
        words = _PATTERN_WORDS.get(node.get("pattern", ""), "text")
        return f"{words}{_length(node)}"
    return "any value"


def _length(node: Node) -> str:
    if "maxLength" not in node:
        return ""
    return f" ({node.get('minLength', 0)} to {node['maxLength']} characters)"


def found(value: object) -> str:
    """A value as it is shown to a person: short, and with its kind where that matters."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    if isinstance(value, int | float):
        return f"{value} (a number)"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:60] + "…"
        return f'"{short}"'
    if isinstance(value, Mapping):
        keys = ", ".join(list(map(str, value))[:5])
        return f"a mapping with {keys}" if keys else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}" if value else "an empty list"
    return str(value)
