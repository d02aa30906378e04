from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlog.errors import FedlogError
from fedlog.learning.mean import WeightedMean
from fedlog.wire.errors import WireError
from fedlog.wire.limits import Limits
from fedlog.wire.tensors import encode
from fedlog.wire.updates import decode_update, encode_update

LIMITS = Limits.for_model(10_000)
DELTA = {"kernel": np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3), "bias": np.ones(3)}


def test_an_update_and_its_views_come_back() -> None:
    payload = b"".join(encode_update(DELTA, {"kernel": (2, 3, 2, 3)}))
    update = decode_update(payload, LIMITS, client="site/3", examples=7)
    assert (update.client, update.examples) == ("site/3", 7)
    assert update.views == {"kernel": (2, 3, 2, 3)}
    assert list(update.delta) == ["kernel", "bias"]
    np.testing.assert_array_equal(update.delta["kernel"], DELTA["kernel"])


def test_a_whole_update_has_the_bytes_that_it_always_had() -> None:
    assert b"".join(encode_update(DELTA, {})) == b"".join(encode(DELTA))


def test_a_view_is_written_as_the_specification_says() -> None:
    payload = b"".join(encode_update(DELTA, {"kernel": (2, 3, 2, 3)}))
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    assert header["__metadata__"] == {"fedlog": "1", "view:kernel": "2x3x2x3"}


@pytest.mark.parametrize(
    "text",
    ["", "x", "2x", "0x4", "-1x3", "2X3", "2x3 ", "2x3\n", "02x3", "1e3", "٣x2", "9" * 19,
     "x".join("1" * 17)],
)  # fmt: skip
def test_a_view_that_is_no_shape_is_refused(text: str) -> None:
    payload = b"".join(encode(DELTA, {"view:kernel": text}))
    with pytest.raises(WireError, match="view of tensor 'kernel'"):
        decode_update(payload, LIMITS, client="x/0", examples=1)


def test_a_view_of_a_tensor_that_is_not_there_is_refused() -> None:
    payload = b"".join(encode(DELTA, {"view:other": "3"}))
    with pytest.raises(WireError, match="'other'"):
        decode_update(payload, LIMITS, client="x/0", examples=1)


@given(
    st.dictionaries(
        st.sampled_from(["kernel", "bias", "w"]),
        st.lists(st.integers(0, 5), max_size=5).map(tuple),
        max_size=3,
    ),
    st.dictionaries(
        st.sampled_from(["view:kernel", "view:bias", "view:w", "other"]),
        st.lists(st.integers(0, 10**18), max_size=18).map(lambda sides: "x".join(map(str, sides)))
        | st.text(max_size=20),
        max_size=3,
    ),
)
def test_whatever_an_update_claims_is_folded_or_refused(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]
) -> None:
    """Any header: no other exception, and the model stays finite."""
    payload = b"".join(encode({n: np.ones(s, np.float32) for n, s in shapes.items()}, metadata))
    weights = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
    mean = WeightedMean(weights, partial=True)
    try:
        mean.fold(decode_update(payload, LIMITS, client="x/0", examples=2))
    except FedlogError:
        assert mean.updates == 0
        return
    mean.close_into(weights)
    assert {value for array in weights.values() for value in np.unique(array)} <= {0.0, 1.0}
