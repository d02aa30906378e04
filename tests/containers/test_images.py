"""What the images hold, and what they need to run."""

from __future__ import annotations

import subprocess

import pytest

from containers.podman import FEDLOG, SLIM, Podman

pytestmark = pytest.mark.containers

HARD = ("--rm", "--network=none", "--read-only", "--cap-drop=all")
"""As little as a cluster would grant."""


@pytest.mark.parametrize("image", [FEDLOG, SLIM])
def test_it_runs_as_nobody_in_particular_and_cannot_be_added_to(podman: Podman, image: str) -> None:
    assert podman("run", *HARD, "--entrypoint=id", image, "-u") == "65532"
    with pytest.raises(subprocess.CalledProcessError, match="pip") as refused:
        podman("run", *HARD, "--entrypoint=python", image, "-m", "pip", "--version")
    assert "No module named pip" in refused.value.stderr
    found = podman("run", *HARD, "--entrypoint=sh", image, "-c", "command -v gcc cc make || true")
    assert found == ""


@pytest.mark.parametrize(
    ("image", "makes_layers"), [(FEDLOG, "True"), (SLIM, "False")], ids=["keras", "slim"]
)
def test_only_the_large_one_has_tensorflow(podman: Podman, image: str, makes_layers: str) -> None:
    program = "import importlib.util as u; print(u.find_spec('tensorflow') is not None)"
    assert podman("run", *HARD, "--entrypoint=python", image, "-c", program) == makes_layers


def test_keras_learns_with_nothing_writable_but_tmp(podman: Podman) -> None:
    program = (
        "import keras, numpy as np; m = keras.Sequential([keras.layers.Dense(1)]);"
        "m.compile('sgd', 'mse'); m.fit(np.ones((8, 2)), np.ones(8), verbose=0);"
        "m.save('/tmp/m.keras'); print(keras.models.load_model('/tmp/m.keras').count_params())"
    )
    assert podman("run", *HARD, "--entrypoint=python", FEDLOG, "-c", program) == "3"
