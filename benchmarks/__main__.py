"""Run every benchmark, print its figures beside their targets, and keep them.

python -m benchmarks [NAME...]: only those of `coordination fold large_model learning start`, and
then nothing is kept.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks import coordination, fold, large_model, learning, start

RESULTS = Path(__file__).with_name("results") / "latest.json"
BENCHMARKS = {
    "start": start.measure,
    "fold": fold.measure,
    "coordination": coordination.measure,
    "large_model": large_model.measure,
    "learning": learning.measure,
}
TARGETS = {  # figure: (most or least, value)
    "coordination_round_ms_10": ("<", 50.0),
    "large_floor_ratio_4": ("<=", 1.5),
    "large_floor_ratio_8": ("<=", 1.5),
    "server_peak_models": ("<", 5.5),
    "server_slope_percent": ("<", 2.0),
    "learning_loop_ratio": ("<=", 1.5),
    "fold_ratio": (">=", 1.2),
    "import_s": ("<", 0.3),
    "join_s": ("<", 1.5),
}


def _met(value: float, sign: str, target: float) -> bool:
    return {"<": value < target, "<=": value <= target, ">=": value >= target}[sign]


def _row(name: str, value: float) -> str:
    if name not in TARGETS:
        return f"{name:32} {value:10.4g}"
    sign, target = TARGETS[name]
    verdict = "" if _met(value, sign, target) else "  missed"
    return f"{name:32} {value:10.4g}   {sign} {target:g}{verdict}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def main(chosen: list[str]) -> None:
    """Run what was chosen, or all."""
    figures: dict[str, float] = {}
    for name in chosen or BENCHMARKS:
        print(f"# {name}", flush=True)
        measured = BENCHMARKS[name]()
        for figure, value in measured.items():
            print(_row(figure, value), flush=True)
        figures |= measured
    if chosen:
        return
    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    RESULTS.write_text(json.dumps(rounded | facts, indent=2) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
