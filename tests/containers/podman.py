"""Podman with a storage of its own, and the images that `make images` leaves there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FEDLOG, SLIM, KAFKA = (
    f"localhost/{name}" for name in ("fedlog:local", "fedlog:local-slim", "fedlog-kafka:local")
)

Podman = Callable[..., str]
"""`run_podman`, once the fixture has seen that it can run."""


def run_podman(*arguments: str) -> str:
    """What podman prints. Raises CalledProcessError where it fails."""
    done = subprocess.run(
        [REPOSITORY / "images/engine", "podman", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()
