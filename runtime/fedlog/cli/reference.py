"""The reference of the commands, generated from them: `python -m fedlog.cli.reference`."""

from __future__ import annotations

import re
import sys
from typing import Any

import typer

_INTRODUCTION = """\
# Commands

Generated from the commands themselves (`python -m fedlog.cli.reference`); `fedlog COMMAND --help`
shows the same. A flag beats an environment variable, which beats the job file. How a command ends
is in [exit codes](exit-codes.md).
"""


def cli_reference() -> str:
    """docs/reference/cli.md: one section per command, in the order of `fedlog --help`."""
    from fedlog.cli.main import app

    root: Any = typer.main.get_command(app)
    parts = [_INTRODUCTION, "## fedlog\n", _text(root.help), _options(root)]
    for name, command in root.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["fedlog", name, *(_argument(p) for p in arguments), "[OPTIONS]"])
        parts += [f"## fedlog {name}\n", f"```\n{usage}\n```\n", _text(command.help)]
        parts += [_options(command)]
    return "\n".join(part for part in parts if part)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[]")
    return name if parameter.required else f"[{name}]"


def _text(help_text: str | None) -> str:
    paragraphs = re.split(r"\n\s*\n", (help_text or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) + "\n"


def _options(command: Any) -> str:
    rows = [_row(p) for p in command.params if not getattr(p, "hidden", False)]
    if not rows:
        return ""
    header = ["| option | default | variable | meaning |", "|---|---|---|---|"]
    return "\n".join([*header, *rows]) + "\n"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{_argument(parameter)}`"
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
        flags = [*parameter.opts, *parameter.secondary_opts]
        names = ", ".join(f"`{flag}{value}`" for flag in flags)
    variable = f"`{parameter.envvar}`" if parameter.envvar else ""
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {names} | {_default(parameter)} | {variable} | {meaning} |"


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return str(parameter.show_default)
    default = parameter.default
    if default is None or default == "" or default is False or parameter.required:
        return ""
    return f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(cli_reference())
