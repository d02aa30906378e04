"""What somebody probably meant to type."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant, whatever its case and underscores."""
    plain = {_plain(candidate): candidate for candidate in known}
    matches = get_close_matches(_plain(word), list(plain), n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def _plain(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """`did you mean "learningRate"?`, or empty."""
    match = closest(word, known) if isinstance(word, str) else None
    return f'did you mean "{match}"?' if match else ""
