"""A 100 MB model: memory of the server by the number of clients, and time beside a bare floor."""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks import floor
from benchmarks.federation import federate, noop_job, workspace
from fedlog.transport.embedded import EmbeddedBroker

MODEL_BYTES = 100_000_000
ROUNDS = 3
PROCESSES = 2


def layout(clients: int) -> list[int]:
    """Clients per worker process."""
    processes = min(PROCESSES, clients)
    return [len(part) for part in np.array_split(np.arange(clients), processes)]


def _floor(shape: list[int]) -> float:
    with EmbeddedBroker() as broker:
        return floor.measure(broker.bootstrap_servers, "floor", MODEL_BYTES, shape)


def measure(counts: tuple[int, ...] = (2, 4, 8, 16)) -> dict[str, float]:
    """Round seconds, the ratio to the floor, and the server's memory in models."""
    figures = {}
    peaks: list[float] = []
    for count in counts:
        shape = layout(count)
        floors = [_floor(shape)]  # one before and one after: the machine's speed changes
        with workspace() as folder, EmbeddedBroker() as broker:
            names = iter(range(count))
            workers = [[f"site/{next(names)}" for _ in range(size)] for size in shape]
            job = noop_job(MODEL_BYTES, count, ROUNDS, partitions=count)
            measured = federate(job, workers, broker, folder / f"l{count}")
        floors.append(_floor(shape))
        seconds = measured.median_round_s()
        peaks.append(measured.server_peak_bytes / MODEL_BYTES)
        figures[f"large_round_s_{count}"] = seconds
        figures[f"large_floor_s_{count}"] = statistics.median(floors)
        figures[f"large_floor_ratio_{count}"] = seconds / statistics.median(floors)
        figures[f"large_mb_per_s_{count}"] = (count + len(shape)) * MODEL_BYTES / 1e6 / seconds
        figures[f"server_peak_mb_{count}"] = measured.server_peak_bytes / 1e6
        figures[f"broker_peak_mb_{count}"] = measured.broker_peak_bytes / 1e6
    figures["large_round_floor_ratio"] = max(
        value for name, value in figures.items() if name.startswith("large_floor_ratio_")
    )
    figures["server_peak_models"] = max(peaks)
    slope = float(np.polyfit(np.array(counts, float), np.array(peaks), 1)[0])
    figures["server_slope_percent"] = 100 * slope
    return figures


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name} {value:.4g}")
