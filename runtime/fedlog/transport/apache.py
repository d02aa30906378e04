"""Apache Kafka from a folder of its jars: one KRaft node, broker and controller in one process."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from fedlog.transport.broker_process import BrokerProcess, free_port
from fedlog.transport.errors import BrokerUnavailableError

_FORMAT_S = 60.0


class ApacheKafka(BrokerProcess):
    """A single node with its data in a folder; `start` after `stop` or `kill` finds it again."""

    def __init__(
        self,
        jars: Path,
        data_dir: Path | None = None,
        *,
        port: int | None = None,
        heap_mb: int = 512,
        start_s: float = 120.0,
    ) -> None:
        """`jars`: folder with the jars of kafka and kafka-tools. `data_dir`: None takes a
        temporary folder, removed by `__exit__`. `start_s`: how long it may take to answer.
        """
        super().__init__("Apache Kafka", port=port or free_port(), start_s=start_s)
        self._jars = jars
        self._heap_mb = heap_mb
        self._controller_port = free_port()
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="fedlog-kafka-") if data_dir is None else None
        )
        self.data_dir = Path(self._temporary.name) if self._temporary else Path(str(data_dir))

    def start(self) -> None:
        java = _java()
        if not any(self._jars.glob("kafka_*.jar")):
            raise BrokerUnavailableError(
                f"no Apache Kafka in {self._jars}: a folder with kafka_2.13-*.jar and the jars it "
                "needs is wanted (`make kafka` fetches them)"
            )
        self.data_dir.mkdir(parents=True, exist_ok=True)
        properties = self.data_dir / "server.properties"
        if not properties.exists():
            properties.write_text(self._properties())
            self._format(java, properties)
        self._launch(
            [*self._jvm(java, self._heap_mb), "kafka.Kafka", str(properties)],
            log=self.data_dir / "kafka.log",
        )

    def __exit__(self, *details: object) -> None:
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _jvm(self, java: str, heap_mb: int) -> list[str]:
        return [java, f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-cp", f"{self._jars}/*"]

    def _properties(self) -> str:
        """Settings of a node that is alone: every internal topic has one replica."""
        host = "127.0.0.1"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"{host}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{host}:{self.port},CONTROLLER://{host}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{host}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.data_dir / "log"),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _format(self, java: str, properties: Path) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        done = subprocess.run(  # noqa: S603 - our own command line
            [
                *self._jvm(java, 256),
                "kafka.tools.StorageTool",
                "format",
                "--standalone",
                f"--cluster-id={cluster}",
                f"--config={properties}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_FORMAT_S,
            check=False,
        )
        if done.returncode != 0:
            properties.unlink()
            raise BrokerUnavailableError(
                f"Apache Kafka could not format {self.data_dir}: "
                f"{done.stdout.decode(errors='replace')[-2000:].strip()}"
            )


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise BrokerUnavailableError(
            "Apache Kafka needs Java 17 or newer and there is no `java` on the PATH: install a "
            "JRE (Debian: apt install default-jre-headless)"
        )
    return java
