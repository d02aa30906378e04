"""Updates as bytes: the delta's tensors, and the views in which parts of the model are boxes.

Specification, version 1
------------------------
A payload as in `fedlog.wire.tensors`, whose tensors have the names and dtypes of the global model.
In a job whose weightAdaptation is Strict they have its shapes, and none is missing. In other jobs

- a tensor may be missing: the update says nothing about it;
- a tensor may be smaller than the model's along any axis, never larger, and of the same rank: it
  says something about the coordinates below its own shape, counted from 0 along each axis;
- the metadata may hold, for a tensor NAME of the payload, ``"view:NAME": "8x8x16x32"``: the model's
  tensor is then seen in that shape, which has as many elements, in C order, and the rule above
  holds for it. 1 to 16 sides, each at least 1, decimal, without leading zeros, joined by ``x``.

Other keys of the metadata are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedlog.learning.coverage import MAX_RANK
from fedlog.learning.weights import Shape, Update, Weights
from fedlog.wire import tensors
from fedlog.wire.bulk import Bytes
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits

_VIEW = "view:"
_SIDES = re.compile(rf"[1-9][0-9]{{0,17}}(x[1-9][0-9]{{0,17}}){{0,{MAX_RANK - 1}}}", re.ASCII)


def encode_update(delta: Weights, views: Mapping[str, Shape]) -> list[Bytes]:
    """The payload as buffers, as `fedlog.wire.tensors.encode` makes them."""
    return tensors.encode(
        delta, {f"{_VIEW}{name}": "x".join(map(str, view)) for name, view in views.items()}
    )


def decode_update(buffer: Bytes, limits: Limits, *, client: str, examples: int) -> Update:
    """The update that a payload is; its arrays are views of `buffer`.

    Raises WireError; believes nothing. Whether it fits the model and is finite is not looked at.
    """
    delta, metadata = tensors.decode_with_metadata(buffer, limits)
    views: dict[str, Shape] = {}
    for key, text in metadata.items():
        if not key.startswith(_VIEW):
            continue
        name = key.removeprefix(_VIEW)
        if name not in delta:
            raise WireError(f"the metadata names a view of {name[:80]!r}, which is not there")
        if not _SIDES.fullmatch(text):
            raise WireError(f"the view of tensor {name!r} is {text[:40]!r}, expected as 8x8x16x32")
        views[name] = tuple(map(int, text.split("x")))
    return Update(client, delta, examples, views)
