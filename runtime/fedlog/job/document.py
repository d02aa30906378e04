"""YAML text -> plain values that remember their lines; safe for text from anybody.

The dialect is what `kubectl apply` reads, so that one file means the same in both places: YAML 1.1
booleans (yes, on), but no timestamps and no base-60 numbers, and 1e-3 is a number. Values are
those of JSON. Size, depth and the number of values after aliases are expanded are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedlog.job.errors import JobError, Problem

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_DOCUMENTS = 100

Path = tuple[str | int, ...]
"""Keys and indices from the root of a document to a value."""

_MERGE = "tag:yaml.org,2002:merge"
_JSON_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")
)
_UNICODE_BREAK = re.compile("[\x85\u2028\u2029\ufeff]")
_INTEGER = re.compile(r"^(?:[-+]?(?:0[0-7]*|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Resolver(yaml.resolver.BaseResolver):
    """Decides which plain scalars are numbers, booleans or null."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.endswith((":bool", ":null", ":merge"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Resolver.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Resolver.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Loader(_Resolver, yaml.SafeLoader):
    """Composes nodes to a bounded depth and number."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.depth = 0
        self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.count += 1
        if self.depth > MAX_DEPTH:
            what, allowed = f"values nested deeper than {MAX_DEPTH} levels", f"{MAX_DEPTH} levels"
        elif self.count > MAX_VALUES:
            what, allowed = f"more than {MAX_VALUES} values", f"{MAX_VALUES} values"
        else:
            return self._compose(parent, index)
        raise JobError([Problem("", what, allowed, source=self.source, line=self.line + 1)])

    def _compose(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class Dumper(_Resolver, yaml.SafeDumper):
    """Writes what this module reads: text that looks like a number gets quotes."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes Unicode's own line breaks bare, and reads them as plain ones: escape those.
    style = '"' if _UNICODE_BREAK.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represent_text)


@dataclass
class Document:
    """One YAML document: its value and the line (from 1) of every path in it."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """The line of the path, or of the nearest value around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def path_text(path: Path) -> str:
    """`spec.clients[0].name`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


class _Builder:
    """Nodes -> values, with every problem noted instead of raised."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0
        self.document = Document(None)

    def build(self, node: yaml.Node) -> Document:
        self.document = Document(None)
        self.document.value = self._value(node, ())
        return self.document

    def note(self, path: Path, node: yaml.Node, found: str, allowed: str, cure: str = "") -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(path_text(path), found, allowed, cure, self.source, line))

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            # Aliases can repeat a value, or hold themselves: the text is small, its meaning is not.
            raise JobError(
                [
                    Problem(
                        path_text(path[:8]),
                        "aliases (*name) that expand to too many or too deep values",
                        f"{MAX_VALUES} values, {MAX_DEPTH} levels",
                        "write the values out",
                        self.source,
                        node.start_mark.line + 1,
                    )
                ]
            )
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += self._merged(value_node, path)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in value:
                self.note(
                    (*path, key),
                    key_node,
                    f'"{key}" a second time; it stands in line '
                    f"{self.document.lines[(*path, key)]} already",
                    "every key once",
                    "remove one of the two",
                )
                continue
            self.document.lines[(*path, key)] = key_node.start_mark.line + 1
            value[key] = self._value(value_node, (*path, key))
        for key_node, value_node in merged:
            key = self._key(key_node, path)
            if key is not None and key not in value:
                value[key] = self._value(value_node, (*path, key))
        return value

    def _merged(self, node: yaml.Node, path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
        """Entries of `<<: *name` or `<<: [*name, *other]`; the first one of a key counts."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: list[tuple[yaml.Node, yaml.Node]] = []
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                entries += [pair for pair in source.value if pair[0].tag != _MERGE]
            else:
                self.note(path, source, "<< with something else", "<< with a mapping: <<: *name")
        self.count += len(entries)
        return entries

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        if isinstance(node, yaml.ScalarNode):
            self.note(
                path,
                node,
                f"the key {node.value}, which YAML reads as a {_tag_name(node.tag)}",
                "keys that are text",
                f'"{node.value}": (in quotes)',
            )
        else:
            self.note(path, node, "a mapping or list as a key", "keys that are text")
        return None

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text = str(node.value)
        if node.tag not in _JSON_TAGS:
            self.note(
                path, node, f"a value with the tag {node.tag}", "text, numbers, booleans, null"
            )
            return None
        kind = node.tag.rpartition(":")[2]
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in {"yes", "true", "on"}
        try:
            number = (
                _integer(text)
                if kind == "int"
                else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            )
        except ValueError:  # an explicit tag before other text, or thousands of digits
            self.note(
                path, node, f"{text[:40]} with the tag {node.tag}", f"a {_tag_name(node.tag)}"
            )
            return None
        if isinstance(number, float) and not math.isfinite(number):
            self.note(path, node, text, "a finite number")
            return None
        return number


def _integer(text: str) -> int:
    octal = re.fullmatch(r"[-+]?0[0-7]+", text)  # YAML 1.1's; Python has only 0o
    return int(text, 8 if octal else 0)


def _tag_name(tag: str) -> str:
    names = {"int": "number", "float": "number", "bool": "boolean", "null": "null"}
    return names.get(tag.rpartition(":")[2], tag)


def read_value(text: str, source: str) -> Any:
    """One value, such as the right side of `--set`; raises JobError."""
    documents = read_documents(text, source)
    return documents[0].value if documents else None


def read_documents(text: str, source: str) -> list[Document]:
    """Every document of the text that is not empty, in order.

    source: the name for errors. Raises JobError with every problem when the text is not YAML, is
    beyond the limits, or says something that JSON cannot.
    """
    builder = _Builder(source)
    documents = []
    try:
        for node in _nodes(text, source):
            if not (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
                documents.append(builder.build(node))
    except yaml.YAMLError as error:
        raise JobError([_syntax_problem(error, text, source)]) from error
    if builder.problems:
        raise JobError(builder.problems)
    return documents


def _nodes(text: str, source: str) -> Iterator[yaml.Node]:
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise JobError(
            [
                Problem(
                    "",
                    f"a file of {len(text):,} characters",
                    f"at most {MAX_BYTES:,} bytes",
                    "keep data and large modules out of the job file",
                    source,
                )
            ]
        )
    loader = _Loader(text, source)
    try:
        number = 0
        while loader.check_node():
            number += 1
            if number > MAX_DOCUMENTS:
                what = f"more than {MAX_DOCUMENTS} documents"
                allowed = f"{MAX_DOCUMENTS} documents"
                raise JobError([Problem("", what, allowed, source=source, line=loader.line + 1)])
            node = loader.get_node()
            if node is not None:
                yield node
    finally:
        loader.dispose()


def _syntax_problem(error: yaml.YAMLError, text: str, source: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "characters that YAML does not allow"
    line = None if mark is None else mark.line + 1
    at_line = "" if line is None else "".join(text.splitlines()[line - 1 : line])
    cure = "indent with spaces, not tabs" if "\t" in at_line else ""
    return Problem("", f"text that is not YAML: {what}", "YAML or JSON", cure, source, line)
