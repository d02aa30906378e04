"""How a client whose model has other layers or shapes takes part in learning the global one.

Both models are named tensors in their own order. `adapt` finds the counterpart of each of the
client's tensors and decides by the job's weightAdaptation what becomes of it:

1. by name, where both have the same rank and dtype;
2. those that are left by position: in the models' order, the next one of the same rank, dtype and
   kind (what stands after the last ``/`` of the name, such as ``kernel``).

A pair is cut or padded along each axis at its end: what both have is the leading box of each. The
kernel of a dense layer that follows a flattened feature map is seen with its axes apart, (height,
width, channels, units), so that a smaller map is the upper left corner of a larger one. The
channels are those of the convolution before it; the sides are inferred where the number of
positions is a square (a cube in three dimensions). Else positions count from the first one, and
where the rows are no multiple of the channels, rows do.

Padding is zero. A padded unit is not connected to anything, so the larger model computes what the
smaller one does; and padding is never averaged, since a client sends only what both models have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedlog.job.model import WeightAdaptation
from fedlog.learning.errors import UnfitModelError
from fedlog.learning.weights import (
    Array,
    Shape,
    Weights,
    check_same_layout,
    is_averaged,
    layout_of,
)

_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """A tensor of the client and its counterpart, each seen in a shape of one rank in which what
    they have in common is the leading box of both.
    """

    own: str
    whole: str
    own_view: Shape
    whole_view: Shape

    @property
    def box(self) -> Shape:
        """What both have."""
        return tuple(map(min, self.own_view, self.whole_view))

    @property
    def fits(self) -> bool:
        return self.own_view == self.whole_view


@dataclass(frozen=True)
class Adaptation:
    """The way of weights from the global model to the client's, and of its update back.

    whole, own: the layouts of both. pairs: what they exchange, in the global model's order.
    own_only: tensors that stay the client's own.
    """

    policy: WeightAdaptation
    whole: Weights
    own: Weights
    pairs: tuple[Pair, ...]

    @property
    def own_only(self) -> tuple[str, ...]:
        exchanged = {pair.own for pair in self.pairs}
        return tuple(name for name in self.own if name not in exchanged)

    @property
    def whole_only(self) -> tuple[str, ...]:
        """Tensors of the global model of which the client's updates say nothing."""
        exchanged = {pair.whole for pair in self.pairs}
        return tuple(name for name in self.whole if name not in exchanged)

    @property
    def same(self) -> bool:
        """The layouts are equal: nothing has to be adapted."""
        return (
            not self.own_only
            and not self.whole_only
            and all(pair.fits and pair.own == pair.whole for pair in self.pairs)
        )

    def to_client(self, weights: Weights, own: Weights) -> Weights:
        """The client's model for a version of the global one.

        own: the values of `own_only`, which are not copied. Raises ShapeMismatchError where the
        version has another layout than the one that was adapted to.
        """
        check_same_layout(self.whole, weights)
        by_name = {pair.own: pair for pair in self.pairs}
        found: dict[str, Array] = {}
        for name, layout in self.own.items():
            pair = by_name.get(name)
            if pair is None:
                found[name] = own[name]
                continue
            box = _slices(pair.box)
            array = np.zeros(pair.own_view, layout.dtype)
            array[box] = weights[pair.whole].reshape(pair.whole_view)[box]
            found[name] = array.reshape(layout.shape)
        return found

    def to_global(self, delta: Weights) -> tuple[Weights, Mapping[str, Shape]]:
        """The update and its views, as `fedlog.learning.coverage` has them, of the client's delta.

        delta: at least the tensors of `pairs`, in the client's shapes.
        """
        cut: dict[str, Array] = {}
        views: dict[str, Shape] = {}
        for pair in self.pairs:
            shape = self.whole[pair.whole].shape
            array = np.asarray(delta[pair.own].reshape(pair.own_view)[_slices(pair.box)], order="C")
            if pair.box == pair.whole_view:
                array = array.reshape(shape)
            elif pair.whole_view != shape:
                views[pair.whole] = pair.whole_view
            cut[pair.whole] = array
        return cut, views

    def table(self) -> str:
        """A line per tensor: what it is here and there, and what becomes of it."""
        return _table(self.whole, self.own, self.pairs)


def adapt(whole: Weights, own: Weights, policy: WeightAdaptation) -> Adaptation:
    """How a client with the layout `own` takes part in learning a model with the layout `whole`.

    Raises UnfitModelError, with a table of all tensors, where the policy does not allow what would
    have to be done, or where nothing could be exchanged.
    """
    whole, own = layout_of(whole), layout_of(own)
    counterparts = pairs_of(whole, own)
    chosen = counterparts
    if policy is WeightAdaptation.PARTIAL:
        chosen = [pair for pair in counterparts if pair.fits]
    found = Adaptation(policy, whole, own, tuple(chosen))
    if found.same:
        return found
    differences = _differences(whole, own, counterparts)
    shown = "; ".join(differences[:_SHOWN])
    if len(differences) > _SHOWN:
        shown += f"; and {len(differences) - _SHOWN} more"
    problem = ""
    if policy is WeightAdaptation.STRICT:
        problem = "the model is not the global one, and spec.weightAdaptation is Strict"
    elif policy is WeightAdaptation.ADAPT and found.own_only:
        problem = "the model has tensors with no counterpart in the global one, which Adapt needs"
    elif not any(is_averaged(own[pair.own]) and 0 not in pair.box for pair in chosen):
        problem = "nothing of the model fits the global one, so no update of it could count"
    if problem:
        cure = _cure(policy, own, counterparts)
        table = _table(whole, own, counterparts)
        raise UnfitModelError(f"{problem}: {shown}. {cure}", table=table)
    return found


def pairs_of(whole: Weights, own: Weights) -> list[Pair]:
    """The client's tensors with their counterparts, in the global model's order."""
    counterpart = {
        name: name for name, array in own.items() if name in whole and _alike(array, whole[name])
    }
    left = [name for name in whole if name not in counterpart]
    for name, array in own.items():
        if name in counterpart:
            continue
        for place, candidate in enumerate(left):
            if _alike(array, whole[candidate]) and _kind(name) == _kind(candidate):
                counterpart[name] = candidate
                del left[: place + 1]  # the order of both models is kept
                break
    order = {name: place for place, name in enumerate(whole)}
    return [
        Pair(name, counterpart[name], *_views(whole, own, counterpart[name], name))
        for name in sorted(counterpart, key=lambda name: order[counterpart[name]])
    ]


def _alike(array: Array, other: Array) -> bool:
    return (array.ndim, array.dtype) == (other.ndim, other.dtype)


def _kind(name: str) -> str:
    _, slash, last = name.rpartition("/")
    return last if slash else ""


def _views(whole: Weights, own: Weights, whole_name: str, own_name: str) -> tuple[Shape, Shape]:
    """Shapes of one rank for both, the client's first."""
    own_shape, whole_shape = own[own_name].shape, whole[whole_name].shape
    if len(own_shape) != 2:
        return own_shape, whole_shape
    own_map, whole_map = _map_before(own, own_name), _map_before(whole, whole_name)
    if own_map is None or whole_map is None or own_map.axes != whole_map.axes:
        return own_shape, whole_shape
    if own_map == whole_map or own_map.positions == whole_map.positions == 1:
        return own_shape, whole_shape
    sides, whole_sides = own_map.sides, whole_map.sides
    if sides is None or whole_sides is None:
        sides, whole_sides = (own_map.positions,), (whole_map.positions,)
    return (
        (*sides, own_map.channels, own_shape[1]),
        (*whole_sides, whole_map.channels, whole_shape[1]),
    )


@dataclass(frozen=True)
class _Map:
    """A feature map that a dense layer sees flattened, channels last."""

    axes: int
    positions: int
    channels: int

    @property
    def sides(self) -> Shape | None:
        """All equal; None where the positions have no whole root."""
        side = round(self.positions ** (1 / self.axes))
        return (side,) * self.axes if side**self.axes == self.positions else None


def _map_before(weights: Weights, kernel: str) -> _Map | None:
    """The map behind the rows of a dense kernel; None where no convolution precedes it."""
    axes = channels = 0
    for name, array in weights.items():
        if name == kernel:
            rows = array.shape[0]
            if axes == 0 or channels == 0 or rows == 0 or rows % channels:
                return None
            return _Map(axes, rows // channels, channels)
        if array.ndim == 2:
            axes = 0  # another dense layer lies between
        elif 3 <= array.ndim <= 5:
            axes, channels = array.ndim - 2, array.shape[-1]
        elif array.ndim == 1:
            channels = array.shape[0]  # a bias or a normalisation knows it, too
    raise KeyError(kernel)


def _slices(box: Shape) -> tuple[slice, ...]:
    return tuple(map(slice, box))


# ---- what is told --------------------------------------------------------------------------------


def _differences(whole: Weights, own: Weights, pairs: Sequence[Pair]) -> list[str]:
    """One phrase per tensor that is not the same here and there."""
    found = [
        f"{pair.own} is {_described(own[pair.own])}, "
        f"{'there' if pair.own == pair.whole else pair.whole + ' there'} is "
        f"{_described(whole[pair.whole])}"
        for pair in pairs
        if not pair.fits
    ]
    found += [
        f"{pair.own} is called {pair.whole} there"
        for pair in pairs
        if pair.fits and pair.own != pair.whole
    ]
    here, there = {pair.own for pair in pairs}, {pair.whole for pair in pairs}
    found += [
        f"{name} {_described(array)} has no counterpart there"
        for name, array in own.items()
        if name not in here
    ]
    return found + [
        f"{name} {_described(array)} is missing here"
        for name, array in whole.items()
        if name not in there
    ]


def _cure(policy: WeightAdaptation, own: Weights, pairs: Sequence[Pair]) -> str:
    """What to do: the policies that would go on with these models, or other models."""
    usable = [pair for pair in pairs if is_averaged(own[pair.own]) and 0 not in pair.box]
    allowed = {
        WeightAdaptation.ADAPT: bool(usable) and len(pairs) == len(own),
        WeightAdaptation.PARTIAL: any(pair.fits for pair in usable),
        WeightAdaptation.FRESH: bool(usable),
    }
    others = [p.value for p, works in allowed.items() if works and p is not policy]
    alike = "give the client and the job the same model (spec.task.parameters)"
    if not others:
        return f"Cure: {alike}"
    return f"Cure: {alike}, or set spec.weightAdaptation to {' or '.join(others)}"


def _described(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _table(whole: Weights, own: Weights, pairs: Sequence[Pair]) -> str:
    rows = [("here", "", "global model", "", "in common")]
    for pair in pairs:
        common = "all"
        if not pair.fits:
            common = f"{_sides(pair.box)} of {_sides(pair.whole_view)}"
            if pair.box != pair.own_view:
                common += f", padded to {_sides(pair.own_view)}"
        rows.append(
            (
                pair.own,
                _described(own[pair.own]),
                pair.whole,
                _described(whole[pair.whole]),
                common,
            )
        )
    here, there = {pair.own for pair in pairs}, {pair.whole for pair in pairs}
    rows += [
        (name, _described(array), "-", "", "nothing")
        for name, array in own.items()
        if name not in here
    ]
    rows += [
        ("-", "", name, _described(array), "nothing")
        for name, array in whole.items()
        if name not in there
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _sides(shape: Shape) -> str:
    return "x".join(map(str, shape))
