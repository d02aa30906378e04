"""Makes flower_fedavg.json: Flower's own FedAvg on three seeded updates.

Not part of the tests, which need no Flower. To make the file again, in an environment of its own:

    python -m venv /tmp/flower && /tmp/flower/bin/pip install flwr==1.41.0
    /tmp/flower/bin/python tests/unit/learning/golden/flower_fedavg.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.server.strategy.aggregate import aggregate

SHAPES = {
    "conv/kernel": ((3, 3, 2), "float32"),
    "dense/kernel": ((6, 4), "float32"),
    "dense/bias": ((4,), "float32"),
    "scale": ((), "float32"),
    "head/kernel": ((5, 3), "float64"),
}
EXAMPLES = {"site-a/0": 37, "site-a/1": 1200, "site-b/0": 501}


def main() -> None:
    generator = np.random.default_rng(20)
    updates = {
        client: {n: generator.standard_normal(s).astype(d) for n, (s, d) in SHAPES.items()}
        for client in EXAMPLES
    }
    mean = aggregate([(list(updates[client].values()), n) for client, n in EXAMPLES.items()])
    document = {
        "flwr": version("flwr"),
        "layout": SHAPES,
        "updates": [
            {
                "client": client,
                "examples": examples,
                "delta": {name: array.tolist() for name, array in updates[client].items()},
            }
            for client, examples in EXAMPLES.items()
        ],
        "mean": {name: np.asarray(a).tolist() for name, a in zip(SHAPES, mean, strict=True)},
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
