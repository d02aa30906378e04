"""What a round costs when nothing is learned: tiny model, every client in its own process."""

from __future__ import annotations

from benchmarks.federation import federate, noop_job, workspace
from fedlog.transport.embedded import EmbeddedBroker

ROUNDS = 150
WARM_UP = 20
MODEL_BYTES = 4096


def measure(clients: tuple[int, ...] = (4, 10, 32)) -> dict[str, float]:
    """Median round in ms and CPU-ms per client and round, by the number of clients."""
    figures = {}
    with workspace() as folder, EmbeddedBroker() as broker:
        for count in clients:
            # The clients' start is taken out of their CPU time by a second, shorter run.
            runs = []
            for rounds in (WARM_UP, WARM_UP + ROUNDS):
                job = noop_job(MODEL_BYTES, count, rounds)
                workers = [[f"site/{i}"] for i in range(count)]
                name = f"c{count}-{rounds}"
                runs.append(federate(job, workers, broker, folder / name))
            short, long = runs
            figures[f"coordination_round_ms_{count}"] = 1000 * long.median_round_s(WARM_UP)
            cpu_s = max(0.0, long.client_cpu_s - short.client_cpu_s)
            figures[f"coordination_client_cpu_ms_{count}"] = 1000 * cpu_s / count / ROUNDS
    return figures


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name} {value:.4g}")
