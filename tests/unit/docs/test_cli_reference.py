"""docs/reference/cli.md says what the commands say."""

from pathlib import Path

from fedlog import exit_codes
from fedlog.cli.reference import cli_reference

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def test_the_page_is_what_the_commands_generate():
    assert (REFERENCE / "cli.md").read_text(encoding="utf-8") == cli_reference(), "run `make docs`"


def test_every_exit_code_is_documented_and_no_other():
    rows = [
        line.split("|")[1:3]
        for line in (REFERENCE / "exit-codes.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    ]
    documented = {name.strip(" `"): int(code) for code, name in rows}
    assert documented == {k: v for k, v in vars(exit_codes).items() if k.isupper()}
