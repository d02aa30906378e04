"""Which clients share a worker process, and how many threads each worker may use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_WORKERS = 8
"""By default; a Keras worker takes about 400 MB before it holds any data."""

_THREAD_VARIABLES = (
    "FEDLOG_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)


@dataclass(frozen=True)
class Worker:
    """One process: its name (also its log's), and the clients (`group/index`) in it."""

    name: str
    clients: tuple[str, ...]


def place(
    clients: Sequence[str], *, cores: int, workers: int | None = None, isolate: bool = False
) -> list[Worker]:
    """Spread the clients over worker processes, neighbours apart.

    Default: as many workers as cores, at most MAX_WORKERS and at most one per client. Isolated:
    one per client, named after it.
    """
    if isolate:
        return [Worker(client.replace("/", "-"), (client,)) for client in clients]
    count = min(len(clients), workers if workers is not None else min(cores, MAX_WORKERS))
    return [Worker(f"worker-{i}", tuple(clients[i::count])) for i in range(count)]


def thread_environment(cores: int, workers: int) -> dict[str, str]:
    """Environment that keeps numeric libraries from using more threads than there are cores."""
    threads = str(max(1, cores // workers))
    return dict.fromkeys(_THREAD_VARIABLES, threads) | {"TF_NUM_INTEROP_THREADS": "1"}
