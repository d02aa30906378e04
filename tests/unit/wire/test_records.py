from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlog.wire.bulk import build_manifest, chunk_digest, raw_digest
from fedlog.wire.errors import LimitExceededError, UnsupportedVersionError, WireError
from fedlog.wire.records import (
    MAX_HEADER_BYTES,
    MAX_METRIC,
    Announced,
    AnyRecord,
    Closed,
    Committed,
    Evaluated,
    Failed,
    Head,
    Heartbeat,
    Joined,
    Left,
    MemberOf,
    Started,
    Stopped,
    Training,
    Updated,
    Uploading,
    VersionMeasured,
    Welcome,
    decode,
    encode,
)

RUN = "fedlog.default.digits.manual"
DIGEST = "ab" * 32
CLIENT: dict[str, Any] = {"run": RUN, "client": "site-a/0", "incarnation": "0123456789abcdef"}
SERVER: dict[str, Any] = {"run": RUN, "epoch": 1}
INLINE = build_manifest(
    codec="none",
    size=4,
    encoded_size=4,
    chunk_bytes=4,
    digests=[chunk_digest(b"data")],
    raw_digest=raw_digest([b"data"]),
)
ON_THE_LOG = build_manifest(
    codec="zstd",
    size=10,
    encoded_size=6,
    chunk_bytes=8,
    digests=[chunk_digest(b"one"), chunk_digest(b"two")],
    raw_digest=raw_digest([b"0123456789"]),
    topic="updates",
    partition=3,
    offsets=[7, 9],
)
ANNOUNCED = Announced(
    **SERVER,
    round=1,
    version=0,
    base=DIGEST,
    model=INLINE,
    cohort=("site-a/0", "site-b/12"),
    training=Training(local_epochs=2, batch_size=32, learning_rate=0.05),
    evaluate=True,
    evaluator=False,
    keep_training=False,
    deadline_s=600.0,
    updates_topic="updates",
)

RECORDS: dict[str, AnyRecord] = {
    record.type: record
    for record in (
        Joined(**CLIENT, label="laptop"),
        Heartbeat(**CLIENT, round=3),
        Uploading(
            **CLIENT, round=3, base=DIGEST, topic="updates", partition=0, first_offset=2**63 - 1
        ),
        Updated(
            **CLIENT, round=3, base=DIGEST, examples=600, metrics={"loss": 0.1}, bulk=ON_THE_LOG
        ),
        Evaluated(
            **CLIENT, version=2, digest=DIGEST, test_set="Clients", examples=9, metrics={"a": -1.5}
        ),
        Failed(**CLIENT, round=3, reason="no memory"),
        Left(**CLIENT),
        Welcome(
            **SERVER,
            clients={"site-a/0": "0123456789abcdef"},
            committed={"site-a/0": 2},
            announcement=5,
        ),
        ANNOUNCED.model_copy(update={"model": ON_THE_LOG, "training": None}),
        Closed(
            **SERVER,
            round=3,
            version=3,
            digest=DIGEST,
            accepted={"site-a/0": 17},
            refused={"site-b/0": "digest"},
            reupload=("site-c/0",),
        ),
        Stopped(**SERVER, outcome="Complete", reason="all rounds are done", round=10),
        Head(
            run=RUN,
            epoch=2,
            version=3,
            digest=DIGEST,
            model=ON_THE_LOG,
            events_offset=99,
            created_topics=("updates",),
        ),
        Committed(
            run=RUN,
            epoch=1,
            round=3,
            base=DIGEST,
            digest=DIGEST,
            accepted=(("site-a/0", 17, 600, 3),),
            unanswered=("site-c/0",),
            measured={
                "Clients": VersionMeasured(clients=2, examples=40, metrics={"accuracy": 0.9})
            },
            report={"seconds": 1.5},
        ),
        Started(run=RUN, digest=DIGEST, model=ON_THE_LOG, job="{}"),
        MemberOf(run=RUN, client="site-a/0", incarnations=(("1" * 16, 3), ("0" * 16, 7))),
    )
}


def frame(header: object, payload: bytes = b"", magic: bytes = b"FLR1") -> bytes:
    """A frame with this header, which need not be a good one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return magic + struct.pack("<I", len(text)) + text + payload


def header_of(record: AnyRecord, **changes: object) -> dict[str, object]:
    return {**json.loads(record.model_dump_json()), **changes}


def test_golden_bytes_from_a_client():
    header = (
        b'{"run":"fedlog.default.digits.manual","client":"site-a/0",'
        b'"incarnation":"0123456789abcdef","type":"updated","round":3,"base":"' + b"ab" * 32 + b'",'
        b'"examples":600,"metrics":{"loss":0.5},"seconds":1.25,"bulk":{"codec":"none","size":4,'
        b'"encoded_size":4,"chunk_bytes":4,'
        b'"digest":"464472b56079ded3d359b17935624bdb8487b6a64856090725277ddb5fb5576a",'
        b'"raw_digest":"464472b56079ded3d359b17935624bdb8487b6a64856090725277ddb5fb5576a",'
        b'"digests":"Om6weQ85rIfJTzhWst0sXREOaBFgImGpqSPTuyOtyLc=",'
        b'"topic":null,"partition":0,"runs":[]}}'
    )
    header += b" " * (-(8 + len(header)) % 8)
    record = Updated(
        **CLIENT,
        round=3,
        base=DIGEST,
        examples=600,
        metrics={"loss": 0.5},
        seconds=1.25,
        bulk=INLINE,
    )
    expected = b"FLR1" + struct.pack("<I", len(header)) + header + b"data"
    assert encode(record, b"data") == expected
    found, payload = decode(expected)
    assert found == record
    assert payload == b"data"


def test_golden_bytes_from_the_server():
    header = (
        b'{"run":"fedlog.default.digits.manual","epoch":1,"type":"closed","round":3,"version":3,'
        b'"digest":"' + b"ab" * 32 + b'","accepted":{"site-a/0":17},'
        b'"refused":{"site-b/0":"digest"},"reupload":["site-c/0"]}'
    )
    header += b" " * (-(8 + len(header)) % 8)
    expected = b"FLR1" + struct.pack("<I", len(header)) + header
    assert encode(RECORDS["closed"]) == expected
    assert decode(expected) == (RECORDS["closed"], b"")


@pytest.mark.parametrize("kind", RECORDS)
def test_every_record_is_read_as_it_was_written(kind: str):
    assert decode(encode(RECORDS[kind])) == (RECORDS[kind], b"")


def test_a_figure_that_sums_cannot_hold_is_refused():
    record = Evaluated(
        **CLIENT, version=1, digest=DIGEST, test_set="Clients", examples=2**53, metrics={"a": 1.0}
    )
    for value in (1e308, -1e101):
        with pytest.raises(WireError, match=r"metrics\.a"):
            decode(frame(header_of(record, metrics={"a": value})))


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.floats(-MAX_METRIC, MAX_METRIC),
        max_size=5,
    ),
    st.integers(0, 1_000_000),
    st.binary(min_size=1, max_size=100),
)
def test_any_text_number_and_payload_survives(
    reason: str, metrics: dict[str, float], round_: int, payload: bytes
):
    failed = Failed(**CLIENT, round=round_, reason=reason)
    assert decode(encode(failed))[0] == failed
    updated = Updated(**CLIENT, round=round_, base=DIGEST, examples=1, metrics=metrics, bulk=INLINE)
    value = encode(updated, payload)
    assert (len(value) - len(payload)) % 8 == 0
    assert decode(value) == (updated, payload)


def test_members_of_a_later_version_are_ignored():
    assert decode(frame(header_of(RECORDS["joined"], later=[1])))[0] == RECORDS["joined"]


JOINED = header_of(RECORDS["joined"])
EVALUATED = header_of(RECORDS["evaluated"])
UPDATED = header_of(RECORDS["updated"])
UPLOADING = header_of(RECORDS["uploading"])

MALFORMED = {
    "empty": b"",
    "shorter than its prefix": b"FLR1\x00\x00\x00",
    "another magic": frame(JOINED, magic=b"PK\x03\x04"),
    "header beyond the end": frame(JOINED)[:-1],
    "no header": frame(b""),
    "not json": frame(b"{nothing"),
    "not an object": frame([1]),
    "null": frame(None),
    "trailing text": frame(json.dumps(JOINED).encode() + b" x"),
    "not utf-8": frame(b'{"type":"joined","run":"\xff"}'),
    "surrogate": frame(json.dumps({**JOINED, "label": "\ud800"}).encode()),
    "deep lists": frame(b'{"type":"joined","x":' + b"[" * 100_000),
    "deep objects": frame(b'{"type":"joined","x":' + b'{"a":' * 100_000),
    "huge integer": frame(b'{"type":"joined","x":' + b"9" * 100_000 + b"}"),
    "no type": frame({"run": RUN}),
    "unknown type": frame({**JOINED, "type": "x" * 100_000}),
    "type is no text": frame({**JOINED, "type": [1]}),
    "member missing": frame({k: v for k, v in JOINED.items() if k != "client"}),
    "member of another type": frame({**JOINED, "label": 1}),
    "no run": frame({**JOINED, "run": ""}),
    "client with a newline": frame({**JOINED, "client": "site-a/0\n"}),
    "client without index": frame({**JOINED, "client": "site-a"}),
    "client with a path": frame({**JOINED, "client": "../0"}),
    "incarnation": frame({**JOINED, "incarnation": "0123456789ABCDEF"}),
    "round is negative": frame({**UPDATED, "round": -1}),
    "round is text": frame({**UPDATED, "round": "3"}),
    "round is a boolean": frame({**UPDATED, "round": True}),
    "round is a fraction": frame({**UPDATED, "round": 3.5}),
    "round is too large": frame({**UPDATED, "round": 10**6 + 1}),
    "no examples": frame({**UPDATED, "examples": 0}),
    "examples above 2**53": frame({**UPDATED, "examples": 2**53 + 1}),
    "base": frame({**UPDATED, "base": "AB" * 32}),
    "manifest": frame({**UPDATED, "bulk": {}}),
    "manifest of nothing": frame({**UPDATED, "bulk": {**INLINE.model_dump(), "size": 0}}, b"x"),
    "offset above 2**63": frame({**UPLOADING, "first_offset": 2**63}),
    "partition above 2**31": frame({**UPLOADING, "partition": 2**31}),
    "topic with a slash": frame({**UPLOADING, "topic": "../x"}),
    "metric is nan": frame({**EVALUATED, "metrics": {"loss": float("nan")}}),
    "metric is infinite": frame({**EVALUATED, "metrics": {"loss": float("-inf")}}),
    "metric overflows": frame(json.dumps(EVALUATED).replace("-1.5", "1e999").encode()),
    "metric is text": frame({**EVALUATED, "metrics": {"loss": "0.1"}}),
    "too many metrics": frame({**EVALUATED, "metrics": {str(i): 0.0 for i in range(65)}}),
    "metric without name": frame({**EVALUATED, "metrics": {"": 0.0}}),
    "all metrics wrong": frame({**EVALUATED, "metrics": {str(i): "x" for i in range(20_000)}}),
    "unknown test set": frame({**EVALUATED, "test_set": "Mine"}),
    "seconds": frame({**UPDATED, "seconds": -1.0}),
    "rate of nan": frame(
        header_of(
            ANNOUNCED,
            training={"local_epochs": 1, "batch_size": 1, "learning_rate": float("nan")},
        ),
        b"data",
    ),
    "payload without manifest": frame(JOINED, b"x"),
    "payload beside chunks on the log": frame(UPDATED, b"x"),
    "inline manifest without payload": frame({**UPDATED, "bulk": INLINE.model_dump()}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bytes_are_refused_in_a_short_printable_line(case: str):
    with pytest.raises(WireError) as caught:
        decode(MALFORMED[case])
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_names_that_a_sender_chose_do_not_reach_a_terminal_as_they_are():
    with pytest.raises(WireError) as caught:
        decode(frame({**EVALUATED, "metrics": {"\x1b[2J\n": "x"}}))
    assert str(caught.value).isprintable()


def test_a_header_above_the_limit_is_refused_as_such():
    with pytest.raises(LimitExceededError):
        decode(b"FLR1" + struct.pack("<I", MAX_HEADER_BYTES + 1))


def test_another_version_is_refused_as_such():
    with pytest.raises(UnsupportedVersionError):
        decode(frame(JOINED, magic=b"FLR2"))


@pytest.mark.parametrize(
    ("record", "payload"),
    [
        pytest.param(RECORDS["joined"], b"x", id="no manifest"),
        pytest.param(RECORDS["updated"], b"x", id="chunks on the log"),
        pytest.param(ANNOUNCED, b"", id="inline and empty"),
    ],
)
def test_a_payload_and_its_manifest_are_written_together(record: AnyRecord, payload: bytes):
    with pytest.raises(WireError):
        encode(record, payload)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_decoded(garbage: bytes):
    for value in (garbage, frame(garbage), frame(b"{" + garbage)):
        with contextlib.suppress(WireError):
            decode(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_any_value_in_any_member_is_refused_or_decoded(kind: str, data: st.DataObject):
    header = header_of(RECORDS[kind])
    member = data.draw(st.sampled_from(sorted(set(header) - {"type"})))
    header[member] = data.draw(JSON)
    with contextlib.suppress(WireError):
        found, _ = decode(frame(header))
        assert decode(encode(found)) == (found, b"")
