"""Named tensors as bytes: the safetensors layout.

Specification, version 1
------------------------
A payload is a safetensors file; any safetensors reader opens it, and `decode` opens any
safetensors file with the dtypes below::

    bytes 0..7    length H of the header, unsigned 64-bit little-endian
    next H        the header: one UTF-8 JSON object, starting with "{", padded at its end with
                  spaces (0x20) so that 8 + H is a multiple of 8
    the rest      the data

The header maps each tensor's name to exactly ``{"dtype": D, "shape": [..], "data_offsets":
[begin, end]}``, in the order of the model. ``begin`` and ``end`` count bytes from the start of the
data; a tensor is its elements in C order, always little-endian. A scalar has shape ``[]``; a
tensor with a 0 in its shape has ``begin == end``. The data has no hole, no overlap and no tail:
every byte belongs to one tensor.

``__metadata__`` (optional, string to string) holds ``"fedlog": "1"``, the version of this
specification, beside the writer's own members. Where the key is absent the file is another
program's and is read by the same rules; any other value is refused.

Dtypes: F64 F32 F16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL (a byte that is 0 or 1).

A writer puts the data in descending order of item size and, among equals, in the order of the
model, so that every tensor is aligned to its item size. A reader takes any order.

Names are printable, not empty, unique, and not ``__metadata__``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np

from fedlog.learning.weights import Array, Weights
from fedlog.wire.bulk import Bytes, raw_digest
from fedlog.wire.errors import LimitExceededError, UnsupportedVersionError, WireError
from fedlog.wire.limits import Limits

__all__ = [
    "VERSION",
    "decode",
    "decode_with_metadata",
    "encode",
    "raw_digest",
    "read_metadata",
]

VERSION = "1"
_VERSION_KEY = "fedlog"
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(weights: Weights, metadata: Mapping[str, str] | None = None) -> list[Bytes]:
    """The payload as a list of buffers: the header, then one per tensor in the order of the data.

    The buffers are views of the arrays (C-contiguous little-endian ones; others are copied), so
    the arrays must not change until the buffers are used up. Raises WireError for a dtype or a
    name that the specification does not have.
    """
    own = dict(metadata or {})
    if _VERSION_KEY in own:
        raise WireError(f"the metadata key {_VERSION_KEY!r} is taken by the format's version")
    arrays: dict[str, Array] = {}
    for name, given in weights.items():
        _check_name(name)
        dtype = given.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise WireError(
                f"tensor {name!r} is {given.dtype}, allowed are {', '.join(_DTYPES)}: convert it"
            )
        arrays[name] = np.asarray(given, dtype=dtype, order="C")

    data_order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    begin: dict[str, int] = {}
    size = 0
    for name in data_order:
        begin[name] = size
        size += arrays[name].nbytes

    header: dict[str, object] = {_METADATA: {_VERSION_KEY: VERSION, **own}}
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin[name], begin[name] + array.nbytes],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    buffers: list[Bytes] = [_LENGTH.pack(len(text)) + text]
    buffers += [arrays[name].reshape(-1).view(np.uint8).data for name in data_order]
    return buffers


def decode(buffer: Bytes, limits: Limits) -> dict[str, Array]:
    """The tensors of one payload, in the order of its header.

    The arrays are read-only views of `buffer`: they are valid while it keeps its content. Raises
    WireError; believes nothing. Whether the values are finite is not looked at.
    """
    return decode_with_metadata(buffer, limits)[0]


def decode_with_metadata(buffer: Bytes, limits: Limits) -> tuple[dict[str, Array], dict[str, str]]:
    """As `decode`; and the writer's own metadata, without the version."""
    entries, metadata, data = _read(buffer, limits)
    found = {name: _entry(name, entry, limits) for name, entry in entries.items()}

    # Sorted by place, each tensor begins where the last one ended: no hole, no overlap, no tail.
    place = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise WireError(
                f"tensor {name!r} begins at byte {entry.begin} of the data, expected is {place}"
            )
        place = entry.end
    if place != len(data):
        raise WireError(f"the tensors take {place} bytes, the data has {len(data)}")

    return {name: _view(name, entry, data) for name, entry in found.items()}, metadata


def read_metadata(buffer: Bytes, limits: Limits) -> dict[str, str]:
    """The writer's own metadata, without the version. Raises WireError."""
    return _read(buffer, limits)[1]


class _Entry(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def _read(buffer: Bytes, limits: Limits) -> tuple[dict[str, object], dict[str, str], memoryview]:
    """The header's tensors (their number checked, nothing else), its metadata, and the data."""
    size = memoryview(buffer).nbytes
    if size > limits.max_payload_bytes:
        raise LimitExceededError(
            f"a payload of {size} bytes; {limits.max_payload_bytes} are allowed"
        )
    if size < _LENGTH.size:
        raise WireError(f"a payload of {size} bytes is shorter than its length field")
    view = memoryview(buffer).cast("B")
    (length,) = _LENGTH.unpack_from(view)
    if length > limits.max_header_bytes:
        raise LimitExceededError(
            f"a header of {length} bytes; {limits.max_header_bytes} are allowed"
        )
    end = _LENGTH.size + length
    if end > size:
        raise WireError(f"a header of {length} bytes in a payload of {size}")
    header = _parse(view[_LENGTH.size : end])
    metadata = _check_metadata(header.pop(_METADATA, {}))
    if len(header) > limits.max_tensors:
        raise LimitExceededError(f"{len(header)} tensors; {limits.max_tensors} are allowed")
    return header, metadata, view[end:]


def _parse(text: memoryview) -> dict[str, object]:
    if bytes(text[:1]) != b"{":
        raise WireError("the header does not start with '{'")
    try:
        header = json.loads(
            str(text, "utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except RecursionError:
        raise LimitExceededError("the header is nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, an integer of thousands of digits
        raise WireError(f"the header is not JSON: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise WireError("the header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise WireError("a name is in the header twice")
    return members


def _refuse_number(text: str) -> NoReturn:
    raise WireError(f"the header holds the number {text[:40]}; it has integers only")


def _check_metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise WireError(f"{_METADATA} does not map strings to strings")
    version = found.pop(_VERSION_KEY, VERSION)
    if version != VERSION:
        raise UnsupportedVersionError(
            f"tensors of format version {version[:40]!r}; this Fedlog reads {VERSION!r}"
        )
    return found


def _check_name(name: str) -> None:
    # Printable: names end up in logs and reports. (This refuses lone surrogates as well.)
    if not name or not name.isprintable() or name == _METADATA:
        raise WireError(f"a tensor cannot be named {name[:80]!r}")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # type() because True is an int as well


def _entry(name: str, found: object, limits: Limits) -> _Entry:
    """One tensor of the header, consistent in itself; its place is not checked."""
    _check_name(name)
    if len(name.encode()) > limits.max_name_bytes:
        raise LimitExceededError(
            f"tensor {name[:80]!r}… has a name of {len(name.encode())} bytes; "
            f"{limits.max_name_bytes} are allowed"
        )
    if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
        raise WireError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    code, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise WireError(f"tensor {name!r} has the dtype {str(code)[:40]!r}, which is unknown")
    dtype = _DTYPES[code]
    if not isinstance(shape, list) or not all(_is_count(side) for side in shape):
        raise WireError(f"the shape of tensor {name!r} is not a list of counts")
    if len(shape) > limits.max_rank:
        raise LimitExceededError(
            f"tensor {name!r} has {len(shape)} dimensions; {limits.max_rank} are allowed"
        )
    # Zeros left out: numpy multiplies the other sides of an empty array too, and may overflow.
    if math.prod(side for side in shape if side) * dtype.itemsize > limits.max_payload_bytes:
        raise LimitExceededError(f"the shape of tensor {name!r} exceeds the limit of the payload")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_count(offset) for offset in offsets)
    ):
        raise WireError(f"data_offsets of tensor {name!r} are not two counts")
    begin, end = offsets
    if end > limits.max_payload_bytes:
        raise LimitExceededError(f"data_offsets of tensor {name!r} exceed the limit of the payload")
    size = math.prod(shape) * dtype.itemsize
    if end - begin != size:
        raise WireError(
            f"tensor {name!r} is {code}{shape}, that is {size} bytes, "
            "but its data_offsets say otherwise"
        )
    return _Entry(dtype, tuple(shape), begin, end)


def _view(name: str, entry: _Entry, data: memoryview) -> Array:
    """The tensor as a read-only view of the data, in which it lies as a whole."""
    array: Array = np.ndarray(entry.shape, entry.dtype, data[entry.begin : entry.end])
    array.flags.writeable = False
    # numpy takes a BOOL for 0 or 1 without looking; another byte would be undefined behaviour.
    if entry.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise WireError(f"tensor {name!r} is BOOL and holds a byte that is neither 0 nor 1")
    return array
