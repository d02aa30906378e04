"""One client of a job, for programs; `fedlog client` is the same as a command."""

from __future__ import annotations

import os
from dataclasses import replace

from fedlog.client.worker import Worker
from fedlog.job.environment import CLIENT_ID, apply_environment
from fedlog.job.loading import JobFile
from fedlog.transport.base import Transport


class FederatedClient:
    """Takes part in a job: waits for its rounds, trains on this client's data, sends updates.

    May start before the server, join in the middle, leave and come back.
    """

    def __init__(
        self,
        job_file: JobFile,
        group: str,
        index: int = 0,
        *,
        run: str | None = None,
        bootstrap_servers: str | None = None,
        data: str | None = None,
        label: str | None = None,
        transport: Transport | None = None,
        server_timeout_s: float = 600.0,
    ) -> None:
        """group, index: who the client is; group `evaluator` measures on held-out data.

        bootstrap_servers, data (a path) and label beat the environment (BOOTSTRAP_SERVERS,
        MODEL_TOPIC, UPDATE_TOPIC, CLIENT_ID), which beats the job. Raises JobError.
        """
        job = apply_environment(job_file.job)
        self._worker = Worker(
            replace(job_file, job=job),
            [f"{group}/{index}"],
            run=run,
            bootstrap_servers=bootstrap_servers or job.spec.kafka.bootstrap_servers,
            transport=transport,
            label=os.environ.get(CLIENT_ID, "") if label is None else label,
            data_paths={} if data is None else {group: data},
            server_timeout_s=server_timeout_s,
        )

    def run(self) -> int:
        """Until the server's stop, a signal or an error; the exit code (`fedlog.exit_codes`)."""
        return self._worker.run()

    def stop(self, exit_code: int, reason: str) -> None:
        """Make `run` leave the job and return `exit_code` within seconds; from any thread."""
        self._worker.stop(exit_code, reason)
