"""Apache Kafka from a folder of its jars: one KRaft node, broker and controller in one process."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlog.transport.broker_process import BrokerProcess, free_port
from fedlog.transport.errors import BrokerUnavailableError

_FORMAT_S = 60.0


_OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


@dataclass(frozen=True)
class SecuredListeners:
    """Listeners beside the plain one, on `host`, with rights that only ACLs give.

    The plain one stays, on loopback; who comes by it may do everything, and grants the rights.

    key_store: PEM file with the broker's key and certificate. trust_store: PEM file of the CA of
    clients' certificates. users: name -> password, for SCRAM-SHA-512 and SCRAM-SHA-256.
    oauth: also take unsecured tokens (OAUTHBEARER), which prove nothing: for tests alone.
    session_ms: how long a SASL session lasts before a client must authenticate again.
    """

    key_store: Path
    trust_store: Path
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    host: str = "localhost"
    oauth: bool = False
    session_ms: int | None = None
    tls_port: int = field(default_factory=free_port)
    """SSL; asks for a client certificate."""
    sasl_port: int = field(default_factory=free_port)
    """SASL_SSL."""
    sasl_plain_port: int = field(default_factory=free_port)
    """SASL_PLAINTEXT."""

    def ports(self) -> dict[str, int]:
        """Listener and protocol -> port."""
        return {
            "SSL": self.tls_port,
            "SASL_SSL": self.sasl_port,
            "SASL_PLAINTEXT": self.sasl_plain_port,
        }

    def properties(self) -> dict[str, str]:
        """Everything but the addresses of the listeners."""
        mechanisms = ["SCRAM-SHA-512", "SCRAM-SHA-256", *(["OAUTHBEARER"] if self.oauth else [])]
        settings = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.key_store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.trust_store),
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": ",".join(mechanisms),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
        }
        if self.session_ms is not None:
            settings["connections.max.reauth.ms"] = str(self.session_ms)
        for listener in ("sasl_ssl", "sasl_plaintext"):
            for mechanism in mechanisms:
                module = (
                    f'{_OAUTH} required unsecuredLoginStringClaim_sub="broker";'
                    if mechanism == "OAUTHBEARER"
                    else f"{_SCRAM} required;"
                )
                key = f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"
                settings[key] = module
        return settings


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
        secured: SecuredListeners | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`jars`: folder with the jars of kafka and kafka-tools. `data_dir`: None takes a
        temporary folder, removed by `__exit__`. `start_s`: how long it may take to answer.
        `secured`: listeners beside the plain one. `settings`: of server.properties; they win.
        """
        super().__init__("Apache Kafka", port=port or free_port(), start_s=start_s)
        self._jars = jars
        self._heap_mb = heap_mb
        self.secured = secured
        self._settings = dict(settings or {})
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
        ports = {} if self.secured is None else self.secured.ports()
        own = f"PLAINTEXT://{host}:{self.port}"
        listeners = [own, f"CONTROLLER://{host}:{self._controller_port}"]
        listeners += [f"{name}://{host}:{port}" for name, port in ports.items()]
        advertised = [own]
        if self.secured is not None:
            advertised += [f"{name}://{self.secured.host}:{port}" for name, port in ports.items()]
        protocols = ["CONTROLLER:PLAINTEXT", *(f"{each}:{each}" for each in ["PLAINTEXT", *ports])]
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"{host}:{self._controller_port}",
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(advertised),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(protocols),
            "log.dirs": str(self.data_dir / "log"),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
        }
        if self.secured is not None:
            settings |= self.secured.properties()
        settings |= self._settings
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
                *(
                    f"--add-scram={mechanism}=[name={name},password={password}]"
                    for name, password in (
                        {} if self.secured is None else self.secured.users
                    ).items()
                    for mechanism in ("SCRAM-SHA-512", "SCRAM-SHA-256")
                ),
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
