"""Which coordinates of the model an update covers.

An update of a smaller model covers a part of the global one: it leaves tensors out, and those that
it has may be smaller along any axis. Such a tensor is a *leading box*: the coordinates below its
own shape along each axis. A flattened feature map is a box only where it is seen with its axes
apart, so an update may name a *view* of a tensor: another shape of the same number of elements in C
order, for example ``(8, 8, 16, 32)`` for a kernel of shape ``(1024, 32)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from fedlog.learning.errors import ShapeMismatchError
from fedlog.learning.weights import Array, Shape, Update, Weights, is_averaged

MAX_RANK: Final = 16
"""Axes of a view."""


class Part(NamedTuple):
    """The leading box of a tensor that is seen in the shape `view`; both have the same rank."""

    view: Shape
    box: Shape

    def of(self, whole: Array) -> Array:
        """The part of a C-contiguous tensor, as a view of its memory."""
        return whole.reshape(self.view)[tuple(slice(side) for side in self.box)]


Parts = Mapping[str, Part | None]
"""What is covered of the tensors that are not covered as a whole; None: nothing."""
Coverage = Literal["Whole", "Cut", "Partial"]


def coverage(parts: Parts) -> Coverage:
    """In a word: Whole; Cut where each tensor is covered at least in part; else Partial."""
    if not parts:
        return "Whole"
    return "Partial" if None in parts.values() else "Cut"


def check_parts(layout: Weights, update: Update) -> Parts:
    """The parts of the model that an update covers, as it claims.

    layout: names, shapes and dtypes of the model. Raises ShapeMismatchError for a tensor that the
    model does not have, that is of another rank or dtype or larger along an axis, for a view that
    has another number of elements, and where nothing of an averaged tensor is covered.
    """
    extra = [name for name in [*update.delta, *update.views] if name not in layout]
    if extra:
        raise ShapeMismatchError(f"tensors that the model does not have: {extra[:5]}")
    lone = [name for name in update.views if name not in update.delta]
    if lone:
        raise ShapeMismatchError(f"views of tensors that the update does not have: {lone[:5]}")
    parts: dict[str, Part | None] = {}
    covered = False
    for name, whole in layout.items():
        found = update.delta.get(name)
        part = None if found is None else _part(name, whole, found, update.views.get(name))
        if part is None or part.box != part.view:
            parts[name] = part
        covered = covered or (part is not None and is_averaged(whole))
    if not covered:
        raise ShapeMismatchError("the update covers nothing of the model")
    return parts


def _part(name: str, whole: Array, found: Array, view: Shape | None) -> Part | None:
    if view is None:
        view = whole.shape
    elif len(view) > MAX_RANK or math.prod(view) != whole.size:
        raise ShapeMismatchError(
            f"tensor {name!r} is {list(whole.shape)} and cannot be seen as {list(view[:MAX_RANK])}"
        )
    if found.dtype != whole.dtype:
        raise ShapeMismatchError(f"tensor {name!r} is {found.dtype}, expected {whole.dtype}")
    if found.ndim != len(view) or any(
        side > most for side, most in zip(found.shape, view, strict=True)
    ):
        raise ShapeMismatchError(
            f"tensor {name!r} is {list(found.shape)}, expected at most {list(view)}"
        )
    return Part(view, found.shape) if found.size or not whole.size else None
