"""How long a person waits before anything happens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from fedlog.job.loading import load
from fedlog.transport.embedded import EmbeddedBroker
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.topics import run_id, topic_names, topic_specs
from fedlog.wire import records

TRIES = 5
DEADLINE_S = 60.0
SKLEARN_JOB = Path(__file__).parents[1] / "examples/digits/federatedjob.yaml"


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def _join_seconds(transport: KafkaTransport, broker: str, run: str) -> float:
    """From the start of a client's process to its `joined` on events, of a run of its own."""
    job = load(SKLEARN_JOB).job
    names = topic_names(job, run_id(job, run))
    transport.create_topics(topic_specs(job, names))
    events = transport.reader(names.events, dense=True)
    group = job.spec.clients[0].name
    command = [sys.executable, "-m", "fedlog", "client", str(SKLEARN_JOB), "--broker", broker]
    began = time.perf_counter()
    client = subprocess.Popen(
        [*command, "--run", run, "--group", group, "--index", "0"], stderr=subprocess.DEVNULL
    )
    try:
        while time.perf_counter() - began < DEADLINE_S:
            for record in events.poll(0.2):
                if isinstance(records.decode(record.value)[0], records.Joined):
                    return time.perf_counter() - began
        raise TimeoutError(f"no client joined within {DEADLINE_S:g} s")
    finally:
        events.close()
        client.kill()
        client.wait()


def measure() -> dict[str, float]:
    """import_s: `import fedlog` over an empty interpreter. join_s: see `_join_seconds`."""
    empty = statistics.median(_seconds("pass") for _ in range(TRIES))
    imported = statistics.median(_seconds("import fedlog") for _ in range(TRIES))
    with EmbeddedBroker() as broker:
        address = broker.bootstrap_servers
        transport = KafkaTransport(address)
        joins = [_join_seconds(transport, address, f"join{number}") for number in range(TRIES)]
        transport.close()
    return {"import_s": imported - empty, "join_s": statistics.median(joins)}


if __name__ == "__main__":
    print(measure())
