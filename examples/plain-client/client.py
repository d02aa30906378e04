"""A Fedlog client without Fedlog: kafka-python, numpy and the standard library.

It takes part in a job of `fedlog.tasks.digits` from joining to the end. Its training is its own: a
network with one hidden layer, in numpy. The protocol is docs/reference/protocol.md; the numbers in
brackets are that page's sections. To write a client in another language, read the page and compare.

    python client.py --broker localhost:9094 --run fedlog.default.digits.manual \
        --client site/1 --number 1 --data digits.csv.gz
"""

import argparse
import base64
import hashlib
import json
import secrets
import struct
import sys
import time

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

INLINE_BYTES = 65_536  # a larger payload goes to the log in chunks [4]
LOOK_BACK = 64  # records of control that are searched for an earlier stop [6]
HEARTBEAT_S = 3.0  # the job's participation.heartbeatSeconds
SERVER_TIMEOUT_S = 600.0


# ---- bytes: frames [3], manifests [4], tensors [5] -----------------------------------------------


def encode_record(header, payload=b""):
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    return b"FLR1" + struct.pack("<I", len(text)) + text + payload


def decode_record(value):
    """(header, payload), or None for what is no record: it is passed over, never an error."""
    try:
        magic, length = struct.unpack_from("<4sI", value)
        header = json.loads(value[8 : 8 + length])
        valid = magic == b"FLR1" and 8 + length <= len(value) and isinstance(header, dict)
        return (header, value[8 + length :]) if valid else None
    except (struct.error, ValueError, RecursionError):
        return None


def sha256(data):
    return hashlib.sha256(data).digest()


def manifest_of(size, chunk_bytes, chunks, topic=None, partition=0, offsets=()):
    digests = b"".join(sha256(chunk) for chunk in chunks)
    runs = []
    for offset in offsets:
        if runs and offset == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([offset, 1])
    return {
        "codec": "none",
        "size": size,
        "encoded_size": sum(map(len, chunks)),
        "chunk_bytes": chunk_bytes,
        "digest": sha256(digests).hex(),
        "digests": base64.b64encode(digests).decode(),
        "topic": topic,
        "partition": partition,
        "runs": runs,
    }


def raw_digest(payload):
    """The identity of a model version: the same however it travelled."""
    blocks = [payload[i : i + 2**20] for i in range(0, len(payload), 2**20)]
    return sha256(b"".join(map(sha256, blocks))).hex()


def encode_tensors(tensors):
    header, begin = {"__metadata__": {"fedlog": "1"}}, 0
    for name, array in tensors.items():
        end = begin + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = [np.ascontiguousarray(array, "<f4").tobytes() for array in tensors.values()]
    return b"".join([struct.pack("<Q", len(text)), text, *data])


def decode_tensors(payload):
    (length,) = struct.unpack_from("<Q", payload)
    header, data = json.loads(payload[8 : 8 + length]), payload[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise ValueError(f"tensor {name} is {entry['dtype']}; this client knows F32 alone")
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    return tensors


# ---- learning: 64 - hidden - 10, ReLU and softmax ------------------------------------------------


def forward(weights, x):
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, exponents / exponents.sum(axis=1, keepdims=True)


def measure(weights, x, y):
    _, probability = forward(weights, x)
    loss = -np.log(np.maximum(probability[np.arange(len(y)), y], 1e-7)).mean()
    return {"loss": float(loss), "accuracy": float((probability.argmax(axis=1) == y).mean())}


def train(weights, x, y, work, rng, alive):
    """Minibatch gradient descent on copies of the weights."""
    w1, b1, w2, b2 = weights = [array.copy() for array in weights]
    for _ in range(work["local_epochs"]):
        for batch in np.array_split(rng.permutation(len(y)), -(-len(y) // work["batch_size"])):
            hidden, error = forward(weights, x[batch])
            error[np.arange(len(batch)), y[batch]] -= 1
            error /= len(batch)
            back = (error @ w2.T) * (hidden > 0)
            rate = np.float32(work["learning_rate"])
            w2 -= rate * (hidden.T @ error)
            b2 -= rate * error.sum(axis=0)
            w1 -= rate * (x[batch].T @ back)
            b1 -= rate * back.sum(axis=0)
        alive()
    return weights


# ---- the protocol --------------------------------------------------------------------------------


class Client:
    """One incarnation of one client, in one thread."""

    def __init__(self, options):
        self.options, self.run = options, options.run
        self.incarnation = secrets.token_hex(8)  # a new process is a new incarnation [6]
        table = np.loadtxt(options.data, delimiter=",", dtype=np.float32)
        table = table[options.number :: options.sites]  # this site's own rows
        x, y, cut = table[:, :64] / 8 - 1, table[:, 64].astype(int), len(table) * 4 // 5
        self.train_set, self.test_set = (x[:cut], y[:cut]), (x[cut:], y[cut:])
        connection = {"bootstrap_servers": options.broker}
        self.control = KafkaConsumer(
            **connection, isolation_level="read_committed", fetch_max_wait_ms=50
        )
        self.bulk = KafkaConsumer(**connection, fetch_max_wait_ms=50)
        self.producer = KafkaProducer(**connection, acks="all", enable_idempotence=True)
        self.epoch = 0  # of the newest server that was heard
        self.welcomed_at = self.welcome_epoch = None
        self.joining_since = self.join_at = None
        self.closed = self.committed = -1  # rounds that are over; the last that counts an update
        self.done = None  # (round, base) of the update that is kept until its fate is known
        self.kept = None  # its announcement, payload and further fields

    def say(self, kind, payload=b"", **fields):
        """Write one record to events; its offset, once the log has it."""
        header = {"type": kind, "run": self.run, "client": self.options.client}
        header |= {"incarnation": self.incarnation} | fields
        sent = self.producer.send(f"{self.run}.events", encode_record(header, payload), partition=0)
        return sent.get(timeout=60).offset

    def heartbeat(self):
        if self.welcomed_at is not None and time.monotonic() >= self.beat_at:
            self.beat_at = time.monotonic() + HEARTBEAT_S
            self.say("heartbeat", round=None)

    def join(self):
        now = time.monotonic()
        self.joining_since = self.joining_since or now
        if now - self.joining_since > SERVER_TIMEOUT_S:
            sys.exit(69)  # no server; starting again may help
        self.join_at = now + 3
        self.say("joined", label="plain python")

    # -- from control [6, 7, 8] --

    def take_part(self):
        """Follow control to the end of the run."""
        topics = {f"{self.run}.control", f"{self.run}.events"}
        deadline = time.monotonic() + SERVER_TIMEOUT_S
        while not topics <= self.control.topics():  # the server makes them; a client never does
            if time.monotonic() > deadline:
                sys.exit(69)
            time.sleep(0.1)
        at = TopicPartition(f"{self.run}.control", 0)
        self.control.assign([at])
        end = self.control.end_offsets([at])[at]
        self.control.seek(at, max(0, end - LOOK_BACK))
        self.heard_at, self.silence_s = time.monotonic(), 60.0
        self.beat_at = 0.0
        started = False
        while True:
            for records in self.control.poll(timeout_ms=50).values():
                for record in records:
                    found = decode_record(record.value or b"")
                    if found is None or found[0].get("run") != self.run:
                        continue  # nobody's, or of another run: passed over
                    if found[0].get("type") == "stopped":
                        self.say("left", reason="the run has ended")
                        return
                    if started and self.receive(*found, record.offset) == "seek":
                        self.control.seek(at, found[0]["announcement"])
                        break
            if not started and self.control.position(at) >= end:
                started = True  # no stop stands there: join
                self.join()
            now = time.monotonic()
            if self.joining_since is not None and now >= self.join_at:
                self.join()  # again, until there is a welcome
            elif self.joining_since is None and started and now > self.heard_at + self.silence_s:
                self.join()  # is the server still there?
            self.heartbeat()

    def receive(self, record, payload, offset):
        if record["epoch"] < self.epoch:
            return None  # from a server that another one has replaced
        self.heard_at = time.monotonic()
        if record["epoch"] > self.epoch:
            self.epoch, self.closed = record["epoch"], -1
        seek = None
        if record["type"] == "welcome":
            seek = self.welcomed(record, offset)
        elif self.welcomed_at is not None and record["type"] == "announced":
            self.announced(record, payload)
        elif self.welcomed_at is not None and record["type"] == "closed":
            self.round_closed(record)
        if self.welcomed_at is not None and self.welcome_epoch < self.epoch:
            self.join()  # a new server may not know this client
        return seek

    def welcomed(self, record, offset):
        incarnation = record["clients"].get(self.options.client)
        if incarnation is None:
            return None
        if incarnation != self.incarnation:
            if self.welcomed_at is not None and offset > self.welcomed_at:
                sys.exit(4)  # another process has this client's name
            return None
        first = self.welcomed_at is None
        self.welcomed_at, self.welcome_epoch = offset, record["epoch"]
        self.joining_since = None
        self.committed = max(self.committed, record["committed"].get(self.options.client, -1))
        announcement = record["announcement"]
        return "seek" if first and announcement is not None and announcement < offset else None

    def announced(self, work, payload):
        self.silence_s = max(2 * work["deadline_s"], 60.0)
        key, training = (work["round"], work["base"]), work["training"]
        if self.options.client not in work["cohort"]:
            return
        if training and work["round"] <= max(self.closed, self.committed):
            return  # that round is over for this client
        if training and key == self.done:
            if self.kept and self.kept[0]["epoch"] == work["epoch"]:
                self.upload()  # asked twice by one server: the update did not reach it
            elif self.kept:
                self.kept = (work, *self.kept[1:])  # a new server tells its predecessor's words
            return
        try:
            model = decode_tensors(self.download(work["model"], payload, work["base"]))
            if [array.ndim for array in model.values()] != [2, 1, 2, 1]:
                raise ValueError("this client trains networks with one hidden layer")
            received = list(model.values())
            if work["evaluate"] or not training:
                self.say(
                    "evaluated",
                    version=work["version"],
                    digest=work["base"],
                    test_set="Clients",
                    examples=len(self.test_set[1]),
                    metrics=measure(received, *self.test_set),
                )
            if not training:
                return
            begin, rng = time.monotonic(), np.random.default_rng([work["round"], 0])
            trained = train(received, *self.train_set, training, rng, self.heartbeat)
            delta = [after - before for after, before in zip(trained, received, strict=True)]
            facts = {
                "examples": len(self.train_set[1]),
                "metrics": measure(trained, *self.train_set),
                "seconds": time.monotonic() - begin,
            }
        except (ValueError, KeyError, struct.error) as error:
            self.say("failed", round=work["round"], reason=str(error)[:2000])
            return
        self.done = key
        self.kept = (work, encode_tensors(dict(zip(model, delta, strict=True))), facts)
        self.upload()

    def round_closed(self, record):
        self.closed = max(self.closed, record["round"])
        if self.kept is None or self.kept[0]["round"] > record["round"]:
            return
        if self.options.client in record["reupload"]:
            self.upload()  # the chunks are gone: the same update under a new manifest
        else:
            self.kept = None

    # -- models and updates [4] --

    def download(self, manifest, payload, base):
        chunks = [payload]
        if manifest["topic"] is not None:
            at, chunks = TopicPartition(manifest["topic"], manifest["partition"]), []
            self.bulk.assign([at])
            for first, count in manifest["runs"]:
                self.bulk.seek(at, first)
                chunks += self.read(at, first, count)
        digests = base64.b64decode(manifest["digests"])
        if manifest["codec"] != "none":
            raise ValueError(f"this client does not know the codec {manifest['codec']}")
        if b"".join(map(sha256, chunks)) != digests or sha256(digests).hex() != manifest["digest"]:
            raise ValueError("a chunk of the model is not what its manifest says")
        model = b"".join(chunks)
        if len(model) != manifest["size"] or raw_digest(model) != base:
            raise ValueError("the model is not the version that was announced")
        return model

    def read(self, at, first, count):
        found, deadline = {}, time.monotonic() + 60
        while len(found) < count:
            if time.monotonic() > deadline:
                raise ValueError(f"{at.topic} has no records {first} to {first + count - 1}")
            self.heartbeat()
            for records in self.bulk.poll(timeout_ms=50).values():
                found |= {r.offset: r.value for r in records if first <= r.offset < first + count}
        return [found[offset] for offset in sorted(found)]

    def upload(self):
        work, payload, facts = self.kept
        common = {"round": work["round"], "base": work["base"]}
        if len(payload) <= INLINE_BYTES:
            manifest, inline = manifest_of(len(payload), len(payload), [payload]), payload
        else:
            topic, size, inline = work["updates_topic"], self.options.chunk_bytes, b""
            # The client's number in the job decides its partition.
            partition = self.options.number % len(self.producer.partitions_for(topic))
            chunks = [payload[i : i + size] for i in range(0, len(payload), size)]
            offsets = []
            for chunk in chunks:
                sent = self.producer.send(topic, chunk, partition=partition)
                offsets.append(sent.get(timeout=60).offset)
                if len(offsets) == 1:
                    place = {"topic": topic, "partition": partition, "first_offset": offsets[0]}
                    self.say("uploading", **common, **place)
                self.heartbeat()
            manifest = manifest_of(len(payload), size, chunks, topic, partition, offsets)
        self.say("updated", inline, **common, **facts, bulk=manifest)  # this commits it
        print(f"round {work['round']}: {facts['metrics']['accuracy']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--broker", default="localhost:9094")
    parser.add_argument("--run", required=True, help="fedlog.NAMESPACE.JOB.RUN")
    parser.add_argument("--client", required=True, help="GROUP/INDEX, one that the job has")
    parser.add_argument("--number", type=int, required=True, help="its place among all clients")
    parser.add_argument("--sites", type=int, default=2, help="every so-manieth row is this site's")
    parser.add_argument("--data", required=True, help="rows of 64 pixels (0 to 16) and a digit")
    parser.add_argument("--chunk-bytes", type=int, default=900_000)
    Client(parser.parse_args()).take_part()


if __name__ == "__main__":
    main()
