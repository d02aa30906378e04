"""Child processes: what they say, how they end, and that they do."""

import os
import signal
import subprocess
import sys

import pytest

from fedlog.local import children
from fedlog.local.children import Child, end_all, wait_all
from processes import gone, until

DEADLINE_S = 20.0


@pytest.fixture
def start(tmp_path):
    """Starts a child that runs a Python text as a module; ends it after the test."""
    started = []

    def start(code: str) -> Child:
        (tmp_path / "spoken.py").write_text(code)
        child = Child(
            "spoken",
            "spoken",
            [],
            log=tmp_path / "logs" / "spoken.log",
            environment={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        )
        started.append(child)
        return child

    yield start
    end_all(started, grace_s=0.1)


def test_the_obituary_has_exit_code_and_last_words(start):
    child = start("import sys\nfor i in range(40): print('line', i)\nsys.exit(7)")
    assert wait_all([child], DEADLINE_S)
    text = child.obituary()
    assert "spoken ended with exit code 7" in text
    assert text.endswith("line 39")
    assert "line 27" not in text, "twelve lines are enough"


def test_a_kill_is_named_and_no_cause_is_made_up(start):
    child = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert wait_all([child], DEADLINE_S)
    assert child.cause() == "SIGKILL"
    assert "was killed (SIGKILL); " in child.obituary()
    assert "memory" not in child.obituary()


def test_what_the_kernel_counted_meanwhile_is_said(start, monkeypatch):
    counts = iter((3, 4))
    monkeypatch.setattr(children, "kernel_kills", lambda: next(counts))
    child = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert wait_all([child], DEADLINE_S)
    assert "want of memory" in child.cause()


def test_a_second_life_has_a_line_of_its_own_in_the_log(start):
    assert wait_all([start("print('first')")], DEADLINE_S)
    child = start("print('second')")
    assert wait_all([child], DEADLINE_S)
    first, divider, second = child.log.read_text().splitlines()
    assert (first, second) == ("first", "second")
    assert divider.startswith("---- spoken is started again, ")
    assert child.tail() == "second"


def test_another_signal_is_named(start):
    child = start("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert wait_all([child], DEADLINE_S)
    assert "SIGSEGV" in child.obituary()


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(start):
    child = start(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "below = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)'])\n"
        "print(below.pid)\n"
        "below.wait()\n"
    )
    until(lambda: len(child.tail().split()) == 2)
    below = max(int(word) for word in child.tail().split())
    end_all([child], grace_s=0.2)
    assert child.exit_code == -signal.SIGKILL
    until(lambda: gone(below))


def test_children_die_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "waiting.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pathlib, time\n"
            "from fedlog.local.children import Child\n"
            "child = Child('w', 'waiting', [], log=pathlib.Path('w.log'), environment=os.environ)\n"
            "while not child.tail(): time.sleep(0.02)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        child = int(parent.stdout.readline())
        assert not gone(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    until(lambda: gone(child))
