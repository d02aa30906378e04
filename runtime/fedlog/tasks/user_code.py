"""Errors that a user's own code raised, told in one line with the line of the user's own file."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = str(Path(__file__).parents[1])
_INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))


def described(error: BaseException) -> str:
    """`ValueError: no such file (/job/task.py, line 12: data = read(path))`."""
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        return f"{error.msg} ({error.filename}, line {error.lineno}: {line})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((_OURS, *_INSTALLED, "<"))]
    text = f"{type(error).__name__}: {error}"
    for frame in (own or frames)[-1:]:
        text += f" ({frame.filename}, line {frame.lineno}: {frame.line})"
    return text
