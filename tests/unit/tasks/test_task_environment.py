from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedlog.tasks.environment import prepare_tensorflow
from fedlog.tasks.errors import ParameterError

COUNT_THREADS = """
import os
import numpy as np
from fedlog.tasks.keras import import_keras
{before}
keras = import_keras()
import sklearn.neural_network
import tensorflow as tf
from threadpoolctl import threadpool_info
tf.function(lambda x: x @ x + tf.nn.relu(x))(tf.ones((300, 300)))
names = [open(f"/proc/self/task/{{t}}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print(names.count("tf_Compute"), max(pool["num_threads"] for pool in threadpool_info()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(
    ("how", "count"), [("environment", 1), ("call", 3), ("call after TensorFlow's import", 1)]
)
def test_threads_are_bounded(how: str, count: int) -> None:
    before = {
        "environment": "",
        "call": "from fedlog.tasks.environment import limit_threads as l; l(%d)",
        "call after TensorFlow's import": (
            "import tensorflow; from fedlog.tasks.environment import limit_threads as l; l(%d)"
        ),
    }[how].replace("%d", str(count))
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    if how == "environment":
        environment["FEDLOG_THREADS"] = str(count)
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment,
    )
    tensorflow, largest_pool = map(int, done.stdout.split())
    assert tensorflow == count
    if count == 1:  # OpenMP never takes more threads than there are cores
        assert largest_pool == 1
    if "after" not in how:
        assert "cpu_feature_guard" not in done.stderr, "TF_CPP_MIN_LOG_LEVEL is 2 by default"


def test_a_wrong_number_of_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOG_THREADS", "many")
    with pytest.raises(ParameterError, match="FEDLOG_THREADS is 'many', allowed is a whole"):
        prepare_tensorflow()
