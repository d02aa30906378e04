"""Uniform selection without replacement."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def select_random(
    candidates: Collection[str],
    count: int,
    *,
    seed: int,
    round: int,  # noqa: A002 - the field's word
) -> list[str]:
    """`count` of the candidates, or all where there are fewer, in the order of the draw.

    Every subset of that size is equally likely. The same set, seed and round give the same draw,
    in whatever order the candidates come; a larger count continues the draw of a smaller one, so
    that who is next is a fair substitute. seed, round: >= 0.
    """
    pool = sorted(set(candidates))
    generator = np.random.default_rng(np.random.SeedSequence([seed, round]))
    return [pool[i] for i in generator.permutation(len(pool))[:count]]
