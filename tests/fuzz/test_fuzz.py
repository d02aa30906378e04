"""Every decoder against bytes that somebody else chose.

The seeds are tried everywhere. Beyond them libFuzzer explores, guided by coverage (atheris, on
Linux and x86-64): 20 s in all, 5 minutes under `make soak`. An input that fails is printed, and its
name says where it is kept; add it to seeds.py with its cure.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fuzz.seeds import seeds
from fuzz.targets import TARGETS

TESTS = Path(__file__).parents[1]
SHORT_S, LONG_S = 20, 300
SHARES = dict.fromkeys(TARGETS, 1) | {"job": 4, "environment": 3, "update": 2}
"""Of the time: reading YAML and pydantic's errors take longer than a frame."""
RSS_LIMIT_MB = 400
"""Of the process with its libraries and the corpus, which begins at about 170."""
ONE_INPUT_S = 20
"""Of wall-clock time, instrumented, on a machine that may have other work; mostly far below 1."""
LONGEST_INPUT = dict.fromkeys(TARGETS, 65_536) | {"job": 8192, "environment": 8192}
"""Bytes. YAML is read by Python code, 20 us a character and several times that instrumented."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # a line a record would be most of the time
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_end_in_values_or_typed_errors(target: str) -> None:
    for seed in seeds(target):
        began = time.process_time()
        TARGETS[target](seed)
        assert time.process_time() - began < ONE_INPUT_S, seed[:100]


@pytest.mark.parametrize("target", TARGETS)
def test_cut_and_flipped_seeds_end_in_values_or_typed_errors(target: str) -> None:
    for seed in seeds(target):
        for place in {0, 1, len(seed) // 3, len(seed) // 2, max(len(seed) - 1, 0)}:
            TARGETS[target](seed[:place])
            TARGETS[target](seed[:place] + bytes([seed[place] ^ 0x21]) + seed[place + 1 :])


def explore(target: str, seconds: int, folder: Path) -> str:
    """Let libFuzzer try inputs; what it says. Fails when one crashes, hangs or takes memory."""
    if find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this platform: pip install atheris")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT[target],
        "len_control": 0,
        "timeout": ONE_INPUT_S,
        "rss_limit_mb": RSS_LIMIT_MB,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/",
    }
    # The shell forks: a process begins with the peak of the memory of who made it, which libFuzzer
    # would count, and pytest's own may be large.
    command = [
        "sh",
        "-c",
        '"$@" & wait $!',
        "sh",
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "fuzz.explore",
        target,
        str(corpus),
    ]
    command += [f"-{name}={value}" for name, value in options.items()]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        check=False,
        env=environ,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def check(target: str, total_s: int, folder: Path) -> None:
    """Explore for the target's share of the time: it really tried inputs, and stayed small."""
    seconds = max(1, round(total_s * SHARES[target] / sum(SHARES.values())))
    said = explore(target, seconds, folder)
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    inputs, peak_mb = int(figures["number_of_executed_units"]), int(figures["peak_rss_mb"])
    print(f"{target}: {inputs} inputs in {seconds} s, at most {peak_mb} MB")
    assert inputs > len(seeds(target))
    assert peak_mb < RSS_LIMIT_MB


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_crashes_hangs_or_takes_memory(target: str, tmp_path: Path) -> None:
    check(target, SHORT_S, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_crashes_in_minutes(target: str, tmp_path: Path) -> None:
    check(target, LONG_S, tmp_path)
