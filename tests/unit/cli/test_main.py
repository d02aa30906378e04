"""The command as a person meets it: help, version, errors, exit codes."""

import os
import subprocess
import sys

import pytest

from fedlog import exit_codes
from fedlog.cli.failure import exit_code
from fedlog.errors import FedlogError
from fedlog.job.errors import JobError
from fedlog.local.errors import NotEnoughMemoryError, ProcessDiedError, TaskProcessError
from fedlog.tasks.errors import DataError, EntrypointError
from fedlog.transport.errors import (
    AuthenticationError,
    BrokerUnavailableError,
    FencedError,
    NotAllowedError,
    SecuritySettingsError,
    UnknownTopicError,
)


def fedlog(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedlog", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError([]), exit_codes.USAGE),
        (EntrypointError(""), exit_codes.TASK),
        (DataError(""), exit_codes.TASK),
        (TaskProcessError(""), exit_codes.TASK),
        (FencedError(""), exit_codes.REPLACED),
        (BrokerUnavailableError(""), exit_codes.UNAVAILABLE),
        (AuthenticationError(""), exit_codes.DENIED),
        (NotAllowedError(""), exit_codes.DENIED),
        (SecuritySettingsError(""), exit_codes.USAGE),
        (UnknownTopicError(""), exit_codes.UNAVAILABLE),
        (NotEnoughMemoryError(""), exit_codes.FAILED),
        (ProcessDiedError(""), exit_codes.FAILED),
        (ProcessDiedError("", exit_codes.TASK), exit_codes.TASK),
        (FedlogError(""), exit_codes.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedlogError) else str(value),
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_help_lists_every_command():
    done = fedlog("--help")
    assert done.returncode == 0
    for command in (
        *("run", "server", "client", "broker", "validate", "schema", "init", "report", "replay"),
    ):
        assert f" {command} " in done.stdout


def test_version():
    done = fedlog("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fedlog 0.")


def test_a_wrong_file_is_an_error_without_a_stack_trace():
    done = fedlog("run", "no-such-file.yaml")
    assert done.returncode == exit_codes.USAGE
    assert done.stderr.startswith("error: ")
    assert "no-such-file.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_stack_trace():
    done = fedlog("--debug", "run", "no-such-file.yaml")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_wrong_log_level_is_a_usage_error():
    done = fedlog("run", "job.yaml", "--log-level", "loud")
    assert done.returncode == exit_codes.USAGE
    assert "debug, info, warning or error" in done.stderr


def test_a_client_must_be_named(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("{}")
    done = fedlog("client", str(job))
    assert done.returncode == exit_codes.USAGE
    assert "--group" in done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "no Kafka broker answers at 127.0.0.1:1"), ("nowhere", "HOST:PORT")],
)
def test_a_wrong_broker_is_one_clear_line(tmp_path, address, words):
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: fedlog.dev/v1alpha1\nkind: FederatedJob\nmetadata: {name: j}\nspec:\n"
        '  task: {entrypoint: "fedlog.tasks.digits:task", parameters: {model: sklearn}}\n'
        "  rounds: 1\n  clients: [{name: a, replicas: 2}]\n"
    )
    done = fedlog("run", str(job), "--runs", str(tmp_path / "runs"), BOOTSTRAP_SERVERS=address)
    assert done.returncode == exit_codes.UNAVAILABLE
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
