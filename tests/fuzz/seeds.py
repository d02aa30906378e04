"""Where fuzzing begins: for each target some valid inputs, and those that were attacks."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from fedlog.wire import records, tensors
from fedlog.wire.bulk import build_manifest, chunk_digest, raw_digest
from fedlog.wire.updates import encode_update
from fuzz.targets import JOB, MODEL, RUN

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGEST = "ab" * 32
CLIENT: dict[str, Any] = {"run": RUN, "client": "site/0", "incarnation": "0123456789abcdef"}
WORK: dict[str, Any] = {"round": 1, "base": DIGEST}


def seeds(target: str) -> list[bytes]:
    """At least one."""
    makers = {
        "record": _records,
        "events": _events,
        "manifest": _manifests,
        "chunk": _chunks,
        "tensor": _tensors,
        "update": _updates,
        "job": _jobs,
        "environment": _environments,
        "report": _reports,
    }
    return makers[target]()


def _inline() -> Any:
    return build_manifest(
        codec="none",
        size=4,
        encoded_size=4,
        chunk_bytes=4,
        digests=[chunk_digest(b"data")],
        raw_digest=raw_digest([b"data"]),
    )


def _on_the_log() -> Any:
    return build_manifest(
        codec="none",
        size=13,
        encoded_size=13,
        chunk_bytes=8,
        digests=[chunk_digest(b"12345678"), chunk_digest(b"abcde")],
        topic="updates",
        partition=1,
        offsets=[0, 8],
    )


def _records() -> list[bytes]:
    server: dict[str, Any] = {"run": RUN, "epoch": 1}
    made: list[records.AnyRecord] = [
        records.Joined(**CLIENT, label="a"),
        records.Heartbeat(**CLIENT, round=1),
        records.Uploading(**CLIENT, **WORK, topic="u", partition=0, first_offset=3),
        records.Updated(**CLIENT, **WORK, examples=3, metrics={"loss": 0.5}, bulk=_on_the_log()),
        records.Evaluated(
            **CLIENT,
            version=1,
            digest=DIGEST,
            test_set="Clients",
            examples=1,
            metrics={"accuracy": 1},
        ),
        records.Failed(**CLIENT, round=1, reason="no data"),
        records.Left(**CLIENT),
        records.Welcome(**server, clients={"site/0": "0" * 16}, committed={"site/0": 1}),
        records.Closed(**server, round=1, version=1, digest=DIGEST, accepted={"site/0": 3}),
        records.Stopped(**server, outcome="Complete", reason="done", round=3),
    ]
    announced = records.Announced(
        **server,
        **WORK,
        version=0,
        model=_inline(),
        cohort=("site/0",),
        training=records.Training(local_epochs=1, batch_size=2, learning_rate=0.1),
        evaluate=True,
        evaluator=False,
        keep_training=False,
        deadline_s=60.0,
        updates_topic="u",
    )
    return [
        *[records.encode(record) for record in made],
        records.encode(announced, b"data"),
        records.encode(records.Updated(**CLIENT, **WORK, examples=1, bulk=_inline()), b"data"),
        b"FLR1" + struct.pack("<I", 2**32 - 1),
        b"FLR1" + struct.pack("<I", 40000) + b"[" * 40000,
        b"FLR1" + struct.pack("<I", 24) + b'{"type":"joined","run":1' + b"}" * 8,
    ]


def _events() -> list[bytes]:
    frames = _records()
    joined = [len(frame).to_bytes(3, "little") + frame for frame in frames]
    return [b"".join(joined), b"".join([joined[3]] * 20), joined[11] * 3]


def _manifests() -> list[bytes]:
    named = _on_the_log().model_dump_json().encode() + b"\0" + b"12345678abcde"
    return [
        named,
        _inline().model_dump_json().encode() + b"\0data",
        named.replace(b"[[0,1],[8,1]]", b"[[0,9223372036854775807],[8,1]]"),
        named.replace(b'"size":13', b'"size":9223372036854775807'),
    ]


def _chunks() -> list[bytes]:
    frame = zstandard.ZstdCompressor().compress(b"a" * 1000)
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2**26))
    stream = zstandard.ZstdCompressor().compressobj()
    nameless = stream.compress(b"a" * 100) + stream.flush()
    return [
        (1000).to_bytes(3, "little") + frame,
        (5).to_bytes(3, "little") + b"hello",
        (1000).to_bytes(3, "little") + bomb,
        (100).to_bytes(3, "little") + nameless,
        (1000).to_bytes(3, "little") + frame + frame,
    ]


def _tensors() -> list[bytes]:
    def with_header(text: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(text)) + text + data

    entry = b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'
    return [
        b"".join(tensors.encode(MODEL)),
        b"".join(tensors.encode({"b": np.array([True, False])}, {"by": "seed"})),
        b"".join(tensors.encode({})),
        with_header(entry % (b"2", b"8"), bytes(8)),
        with_header(entry % (b"4294967296,4294967296", b"0")),
        with_header(entry % (b"0,99999999999999999999", b"0")),
        with_header(b'{"a":' * 9000),
        struct.pack("<Q", 2**63) + b"{}",
    ]


def _updates() -> list[bytes]:
    finite = b"".join(tensors.encode(MODEL))
    broken = b"".join(tensors.encode(MODEL | {"w": np.full((3, 2), np.nan, np.float32)}))
    other = b"".join(tensors.encode({"v": np.zeros(7, np.float64)}))
    packed = zstandard.ZstdCompressor().compress(finite)
    part = {"w": np.ones((2, 2), np.float32)}
    viewed = b"".join(encode_update(part, {"w": (3, 2)}))
    plain = [
        kind + len(payload).to_bytes(3, "little") + payload
        for payload in (finite, broken, other, viewed)
        for kind in (b"n", b"p")
    ]
    return [*plain, b"z" + len(finite).to_bytes(3, "little") + packed]


def _jobs() -> list[bytes]:
    found = [path.read_bytes() for path in sorted(EXAMPLES.glob("*/*.yaml"))]
    laughs = b"a: &a [x, x]\n" + b"".join(
        b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(ord("a"), ord("z"))
    )
    return [*found, JOB.encode(), laughs, b"[" * 3000, b"&a [*a]", b"a: !!python/object:x {}"]


def _environments() -> list[bytes]:
    return [
        b"localhost:9094\0models\0updates\x001\0rounds=3",
        b"\0a b\0..\0-1",
        b"\0\0\0\0spec.clients[0].replicas=9999999999\0clients.site={}\0[[[[",
        b"\0\0\0\0training={learningRate: .inf}\0a.b.c=1\0=\0rounds=&a [*a]",
    ]


def _reports() -> list[bytes]:
    line = b'{"round":%d,"version":1,"digest":"d","seconds":1.5,"refused":{"unfit":1}}\n'
    status = (
        b'{"run":"r","job":"j","phase":"Training","rounds":3,"refusals":[{"reason":"quota",'
        b'"client":"site/0","topic":"events","offset":3}],"clients":[{"id":"site/0","state":'
        b'"idle","last_seen_s":1}],"metrics":{"Clients":{"accuracy":1}}}'
    )
    result = (
        b'{"run":"r","job":"j","namespace":"n","outcome":"Complete","reason":"","rounds":1,'
        b'"rounds_wanted":1,"participation":{},"digest":"d","seconds":1,"versions":{}}'
    )
    return [line % 1 + line % 2 + line % 1, status, result, b"[" * 5000, b'{"rounds":1e999}']
