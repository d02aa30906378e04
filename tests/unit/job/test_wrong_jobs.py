"""Every file in wrong/ holds one mistake; its first line says what a person must be told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlog.job.errors import JobError
from fedlog.job.loading import load

WRONG = sorted((Path(__file__).parent / "wrong").glob("*.yaml"))


def expected_parts(path: Path) -> list[str]:
    first = path.read_text().splitlines()[0]
    return [part.strip() for part in first.removeprefix("# expect:").split(" | ")]


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_one_readable_error_names_path_and_cure(path: Path) -> None:
    with pytest.raises(JobError) as caught:
        load(path)

    text = str(caught.value)
    missing = [part for part in expected_parts(path) if part not in text]
    assert not missing, text
    assert len(caught.value.problems) == 1, text
    # A clear sentence, not a dump: nothing of the library or of Python shows through.
    assert not re.search(r"pydantic|input_value|type=|Traceback|<class|None\b(?!, Zstd)", text), (
        text
    )
    assert all(len(line) < 220 for line in text.splitlines()), text


def test_there_are_many_wrong_files() -> None:
    assert len(WRONG) >= 20
