from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlog.learning.weights import Weights
from fedlog.wire.errors import LimitExceededError, UnsupportedVersionError, WireError
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import decode, encode, raw_digest, read_metadata

LIMITS = Limits.for_model(100_000)
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def payload(weights: Weights, metadata: dict[str, str] | None = None) -> bytes:
    return b"".join(encode(weights, metadata))


def raw(header: object, data: bytes = b"") -> bytes:
    """A payload with this header, which need not be a good one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {"dtype": dtype, "shape": plain(shape), "data_offsets": plain(offsets)}


def assert_same(found: Weights, expected: Weights) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(found[name], array)


EXAMPLE = {
    "step": np.array(7, np.uint8),
    "w": np.array([[1.0, -2.0]], np.float32),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
    "mean": np.array([0.5], np.float64),
}


def test_golden_bytes():
    header = (
        b'{"__metadata__":{"fedlog":"1","job":"digits"},'
        b'"step":{"dtype":"U8","shape":[],"data_offsets":[16,17]},'
        b'"w":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},'
        b'"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[17,19]},'
        b'"none":{"dtype":"F32","shape":[0,3],"data_offsets":[16,16]},'
        b'"mean":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'
    )
    padding = b" " * (-len(header) % 8)
    expected = (
        struct.pack("<Q", len(header + padding))
        + header
        + padding
        + bytes.fromhex("000000000000e03f")  # 0.5
        + bytes.fromhex("0000803f 000000c0")  # 1.0, -2.0
        + bytes.fromhex("07 01 00")
    )
    assert payload(EXAMPLE, {"job": "digits"}) == expected
    assert_same(decode(expected, LIMITS), EXAMPLE)
    assert read_metadata(expected, LIMITS) == {"job": "digits"}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
            str.isprintable
        ),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4))
        ),
        max_size=6,
    )
)
def test_what_is_encoded_is_decoded(weights: dict[str, np.ndarray]):
    encoded = payload(weights)
    found = decode(encoded, LIMITS)
    assert_same(found, weights)
    assert all(array.flags.aligned for array in found.values())
    assert payload(found) == encoded


def test_the_safetensors_library_reads_ours():
    assert_same({name: safetensors.numpy.load(payload(EXAMPLE))[name] for name in EXAMPLE}, EXAMPLE)


def test_we_read_what_the_safetensors_library_writes():
    theirs = safetensors.numpy.save(EXAMPLE, metadata={"by": "someone else"})
    found = decode(theirs, LIMITS)
    assert_same({name: found[name] for name in EXAMPLE}, EXAMPLE)
    assert read_metadata(theirs, LIMITS) == {"by": "someone else"}


def test_big_endian_strided_and_fortran_arrays_are_converted():
    weights = {
        "big": np.array([1, -2], ">i4"),
        "strided": np.arange(6, dtype="f4")[::2],
        "fortran": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    }
    assert_same(decode(payload(weights), LIMITS), weights)


def test_encoding_and_decoding_copy_no_array():
    array = np.arange(4, dtype=np.float32)
    _, view = encode({"w": array})
    assert np.shares_memory(np.frombuffer(view, np.uint8), array)

    buffer = bytearray(payload({"w": array}))
    found = decode(buffer, LIMITS)["w"]
    assert np.shares_memory(found, np.frombuffer(buffer, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_no_tensors_at_all():
    assert decode(payload({}), LIMITS) == {}


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"w": np.array([1j])}, id="complex"),
        pytest.param({"w": np.array(["text"])}, id="text"),
        pytest.param({"w": np.array([None])}, id="object"),
        pytest.param({"__metadata__": np.zeros(1)}, id="reserved name"),
        pytest.param({"": np.zeros(1)}, id="empty name"),
        pytest.param({"a\nb": np.zeros(1)}, id="control character"),
        pytest.param({"\ud800": np.zeros(1)}, id="surrogate"),
    ],
)
def test_what_the_format_does_not_have_is_not_written(weights: Weights):
    with pytest.raises(WireError):
        encode(weights)


def test_the_versions_key_cannot_be_given():
    with pytest.raises(WireError, match="fedlog"):
        encode({}, {"fedlog": "2"})


MALFORMED = {
    "empty": b"",
    "shorter than its length": b"\x00" * 7,
    "header beyond the end": struct.pack("<Q", 100) + b"{}",
    "no header": struct.pack("<Q", 0),
    "not json": raw(b"{nothing"),
    "not an object": raw(b"[]"),
    "leading space": raw(b" {}"),
    "trailing text": raw(b"{} x"),
    "not utf-8": raw(b'{"\xff":1}'),
    "surrogate": raw(b'{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', b"0000"),
    "duplicate": raw(
        b'{"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
        b'"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        b"0",
    ),
    "duplicate member": raw(
        b'{"w":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"0"
    ),
    "nan": raw(b'{"w":NaN}'),
    "float": raw(b'{"w":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"0"),
    "huge integer": raw(b'{"w":' + b"9" * 5000 + b"}"),
    "metadata is no object": raw({"__metadata__": []}),
    "metadata holds a number": raw({"__metadata__": {"a": 1}}),
    "entry is no object": raw({"w": 1}),
    "entry lacks a member": raw({"w": {"dtype": "U8", "shape": []}}),
    "entry has another member": raw({"w": {**entry(), "x": 1}}, bytes(8)),
    "unknown dtype": raw({"w": entry("BF16", (4,))}, bytes(8)),
    "dtype is no text": raw({"w": entry(["F32"])}, bytes(8)),
    "negative side": raw({"w": entry(shape=(-1, -2))}, bytes(8)),
    "boolean side": raw({"w": entry(shape=(True, 2))}, bytes(8)),
    "shape is text": raw({"w": entry(shape="22")}, bytes(8)),
    "one offset": raw({"w": entry(offsets=(0,))}, bytes(8)),
    "offset is text": raw({"w": entry(offsets=("0", "8"))}, bytes(8)),
    "negative offset": raw({"w": entry(offsets=(-8, 0))}, bytes(8)),
    "reversed": raw({"w": entry(offsets=(8, 0))}, bytes(8)),
    "beyond the data": raw({"w": entry()}, bytes(7)),
    "size and shape differ": raw({"w": entry(shape=(3,))}, bytes(8)),
    "tail": raw({"w": entry()}, bytes(9)),
    "hole": raw({"w": entry(offsets=(4, 12))}, bytes(12)),
    "overlap": raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same place twice": raw({"a": entry(), "b": entry()}, bytes(8)),
    "empty in the middle of another": raw(
        {"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, bytes(8)
    ),
    "bool of 2": raw({"w": entry("BOOL", (2,), (0, 2))}, b"\x01\x02"),
    "control character in a name": raw({"a\x1b[2J": entry()}, bytes(8)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bytes_are_refused(case: str):
    with pytest.raises(WireError):
        decode(MALFORMED[case], LIMITS)


TOO_LARGE = {
    "header": struct.pack("<Q", 2**63) + b"{}",
    "payload": bytes(LIMITS.max_payload_bytes + 1),
    "nesting": raw(b'{"a":' * 100_000),
    "tensors": raw({str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(10_001)}),
    "rank": raw({"w": entry(shape=(1,) * 17, offsets=(0, 4))}, bytes(4)),
    "name": raw({"ü" * 257: entry()}, bytes(8)),
    "product": raw({"w": entry(shape=(2**62, 2**62))}, bytes(8)),
    "product with a zero": raw({"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}),
    "offset": raw({"w": entry(shape=(0,), offsets=(10**4000, 10**4000))}),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_exceeds_a_limit_is_refused_as_such(case: str):
    with pytest.raises(LimitExceededError) as caught:
        decode(TOO_LARGE[case], LIMITS)
    assert len(str(caught.value)) < 1000


def test_another_version_is_refused_as_such():
    with pytest.raises(UnsupportedVersionError, match="'2'"):
        decode(raw({"__metadata__": {"fedlog": "2"}}), LIMITS)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_decoded(garbage: bytes):
    for candidate in (garbage, raw(garbage), raw(b"{" + garbage)):
        try:
            decode(candidate, LIMITS)
        except WireError:
            continue


@settings(deadline=None)
@given(st.data())
def test_a_flipped_byte_is_refused_or_decoded(data: st.DataObject):
    changed = bytearray(payload(EXAMPLE))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(changed, LIMITS)


def test_raw_digest_is_independent_of_the_buffers():
    whole = payload(EXAMPLE)
    assert raw_digest(encode(EXAMPLE)) == raw_digest([whole]) == raw_digest([whole[:3], whole[3:]])


def test_decoding_allocates_no_copy_of_the_data():
    buffer = payload({"w": np.ones(1_000_000), "m": np.ones(1_000_000, np.float32)})
    tracemalloc.start()
    try:
        found = decode(buffer, Limits.for_model(12_000_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["w"].sum() == 1_000_000
    assert peak < 100_000
