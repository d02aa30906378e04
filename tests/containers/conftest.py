from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from containers.podman import FEDLOG, KAFKA, SLIM, Podman, run_podman


@pytest.fixture(scope="session")
def podman() -> Podman:
    if os.geteuid() != 0:
        pytest.skip("containers without Docker need root")
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed (Debian: apt-get install podman)")
    for image in (FEDLOG, SLIM, KAFKA):
        try:
            run_podman("image", "exists", image)
        except subprocess.CalledProcessError:
            pytest.skip(f"no image {image}: run `make images`")
    return run_podman
