"""Partitioners (interface; see the classes)."""

from typing import Protocol

import numpy as np


class Partitioner(Protocol):
    """Divides a labelled data set; a pure function of its arguments."""

    def split(self, labels: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        """`count` ascending index arrays that together hold every example exactly once."""
