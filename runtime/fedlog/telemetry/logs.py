r"""Logs: one line a message, coloured on a terminal, plain in a file.

    12:03:04.567 INFO    client site-a/0  trained round 3 in 1.8 s

Time (with the date in files), level, role, message. Every record carries `role`, `job`, `client`
and `round` as fields, from `log_fields`; code logs with `logging.getLogger(__name__)` and names
none of them. What others said (a client's reason, a broker's message) cannot forge a line or
steer a terminal: control characters are written as escapes. Values that look like credentials
are not written.

Fedlog's own loggers have the level that is asked for; those of libraries speak from WARNING on,
and one that repeats itself is heard once in `REPEAT_S` seconds, with a count.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

REPEAT_S = 30.0
"""A repeated warning is silent for so long."""
MAX_FILE_BYTES = 50 * 2**20
"""A log file is rotated beyond this; two older ones are kept."""
_ROLE_WIDTH = 16

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_LEVEL_COLOURS = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_ROLE_COLOURS = {
    "server": "\x1b[34m",
    "client": "\x1b[32m",
    "evaluator": "\x1b[36m",
    "broker": "\x1b[33m",
    "run": "\x1b[35m",
}


@dataclass(frozen=True)
class LogFields:
    """Who speaks. `role` is server, client, evaluator, broker or run."""

    role: str = "run"
    job: str = ""
    client: str = ""
    round: int | None = None


_process_fields = LogFields()
_fields: ContextVar[LogFields | None] = ContextVar("fedlog_log_fields", default=None)


def current_fields() -> LogFields:
    """The fields of what is logged here and now."""
    return _fields.get() or _process_fields


@contextmanager
def log_fields(
    *,
    role: str | None = None,
    job: str | None = None,
    client: str | None = None,
    round: int | None = None,  # noqa: A002 - the field's word
) -> Iterator[None]:
    """Adds fields to everything that this thread logs inside.

    A new thread starts with the process's fields: start it with
    `contextvars.copy_context().run` where it speaks for one client of several.
    """
    given = {"role": role, "job": job, "client": client, "round": round}
    changes = {name: value for name, value in given.items() if value is not None}
    token = _fields.set(replace(current_fields(), **changes))  # type: ignore[arg-type]  # values have their parameters' types
    try:
        yield
    finally:
        _fields.reset(token)


def configure(
    level: int | str = logging.INFO,
    *,
    file: Path | None = None,
    colour: bool | None = None,
    role: str = "run",
    job: str = "",
    client: str = "",
    terminal: bool = True,
) -> None:
    """Set up the logs of this process; a second call replaces the first.

    level: of Fedlog's own loggers. file: also write there (one process a file). colour: None
    means on terminals, unless NO_COLOR is set or TERM is dumb. role, job, client: the fields
    outside of `log_fields`. terminal: False writes to the file alone.
    """
    global _process_fields  # noqa: PLW0603 - threads of libraries speak for the process, too
    _process_fields = LogFields(role=role, job=job, client=client)
    handlers: list[logging.Handler] = []
    if terminal:
        on = _wants_colour(sys.stderr) if colour is None else colour
        handlers.append(_prepare(_StandardError(), LineFormatter(colour=on)))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rotating = RotatingFileHandler(
            file,
            maxBytes=MAX_FILE_BYTES,
            backupCount=2,
            encoding="utf-8",
            errors="backslashreplace",
        )
        handlers.append(_prepare(rotating, LineFormatter(dates=True)))
    root = logging.getLogger()
    for handler in list(root.handlers):
        if any(isinstance(f, _AddFields) for f in handler.filters):  # ours, of an earlier call
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("fedlog").setLevel(level)
    logging.captureWarnings(True)


class LineFormatter(logging.Formatter):
    """One line a record; a stack trace follows it, indented."""

    def __init__(self, *, colour: bool = False, dates: bool = False) -> None:
        super().__init__()
        self._colour = colour
        self._dates = dates

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fedlog", None) or current_fields()
        role = f"{fields.role} {fields.client}".strip()
        # The logger of a library is worth knowing; our own modules are not.
        library = "" if _is_ours(record) else f"[{record.name}] "
        message = one_line(redact(library + record.getMessage()))
        repeated = getattr(record, "repeated", 0)
        if repeated:
            message += f" (and {repeated} more like it)"
        when, level = self._time(record), f"{record.levelname:<7}"
        role = one_line(role).ljust(_ROLE_WIDTH)
        if self._colour:
            paint = _LEVEL_COLOURS.get(record.levelno, "")
            when = f"{_DIM}{when}{_RESET}"
            role = f"{_ROLE_COLOURS.get(fields.role, '')}{role}{_RESET}"
            level = f"{paint}{level}{_RESET}"
            if record.levelno >= logging.WARNING:
                message = f"{paint}{message}{_RESET}"
        line = f"{when} {level} {role}  {message}"
        if record.exc_info:
            trace = redact(self.formatException(record.exc_info))
            line += "".join(f"\n    {one_line(part)}" for part in trace.splitlines())
        return line

    def _time(self, record: logging.LogRecord) -> str:
        pattern = "%Y-%m-%d %H:%M:%S" if self._dates else "%H:%M:%S"
        moment = time.strftime(pattern, time.localtime(record.created))
        return f"{moment}.{int(record.msecs):03d}"


class RepeatFilter(logging.Filter):
    """Lets a warning through once in `window_s` seconds, then with the number left out.

    Messages of libraries are alike when they differ in numbers only (ports, ids, attempts); ours
    must be equal, since they name clients and rounds. Below WARNING nothing is held back.
    """

    def __init__(
        self, window_s: float = REPEAT_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        record.repeated = 0
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        if not _is_ours(record):
            message = re.sub(r"\d+", "#", message)
        key = (record.name, record.levelno, message)
        with self._lock:
            now = self._clock()
            since, held = self._seen.get(key, (-float("inf"), 0))
            if now - since < self._window_s:
                self._seen[key] = (since, held + 1)
                return False
            self._seen[key] = (now, 0)
            self._seen.move_to_end(key)
            while len(self._seen) > 256:
                self._seen.popitem(last=False)
        record.repeated = held
        return True


def one_line(text: str) -> str:
    """`text` without control characters: they are written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


_CREDENTIALS = re.compile(
    r"""(?ix)
        \b ([\w.-]* (?: password | passwd | secret | token | api[_-]?key ) [\w.-]*
            ["']? \s* [=:] \s*)
        (?: "[^"]*" | '[^']*' | [^\s,;})\]]+ )
      | (\bauthorization ["']? \s* [=:] \s*) [^\r\n,}]+
      | (\w+://) [^\s/@:]+ : [^\s/@]+ @"""
)


def redact(text: str) -> str:
    """`text` with the values of passwords, secrets, tokens and URLs' credentials struck out."""
    return _CREDENTIALS.sub(
        lambda m: f"{m[1]}***" if m[1] else f"{m[2]}***" if m[2] else f"{m[3]}***@", text
    )


class _AddFields(logging.Filter):
    """Puts the fields on the record, in the thread that logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        fields = current_fields()
        record.fedlog = fields
        record.role, record.job, record.client = fields.role, fields.job, fields.client
        if not hasattr(record, "round"):  # a call may name another with extra={"round": …}
            record.round = fields.round
        return True


class _StandardError(logging.Handler):
    """Writes to whatever sys.stderr is now: a live display takes its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - a closed terminal must not end a run
            self.handleError(record)


def _prepare(handler: logging.Handler, formatter: logging.Formatter) -> logging.Handler:
    handler.setFormatter(formatter)
    handler.addFilter(_AddFields())
    handler.addFilter(RepeatFilter())
    return handler


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == "fedlog" or record.name.startswith("fedlog.")


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()
