"""Errors of job files: JobError is the root and the only one.

It carries every problem that was found, so that a file is corrected once and not once per problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlog.errors import FedlogError

MAX_LINE = 400
"""Characters of one line of a message."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job, as a person needs it to put it right.

    path: where in the document, `spec.clients[0].name`; empty for the file as a whole.
    found, allowed: what stands there and what may. suggestion: the cure, or empty.
    source: the file, or the `--set` option. line: counted from 1, or None where there is none.
    """

    path: str
    found: str
    allowed: str = ""
    suggestion: str = ""
    source: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        head = ": ".join(_shown(part) for part in (where, self.path) if part)
        rows = [("found", self.found), ("allowed", self.allowed), ("try", self.suggestion)]
        lines = (f"  {name + ':':<9}{_shown(text)}" for name, text in rows if text)
        return "\n".join([head, *lines])


def _shown(text: str) -> str:
    """One bounded line: a file may hold anything, also what would take over a terminal."""
    short = text if len(text) <= MAX_LINE else text[:MAX_LINE] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class JobError(FedlogError):
    """The job cannot be used. str() is a line, then one readable block per problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n\n".join([f"the job has {count}", *map(str, problems)]))
        self.problems = tuple(problems)
