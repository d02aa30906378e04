"""How Fedlog talks to brokers: addresses, deadlines, retries, and errors in our words."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from fedlog.transport.errors import (
    BrokerUnavailableError,
    FencedError,
    RecordTooLargeError,
    TransportError,
    UnknownTopicError,
)

T = TypeVar("T")

# What a batch and a request add to the value of a record.
RECORD_OVERHEAD_BYTES = 4096

_MAX_REQUEST_S = 30.0


class Connection:
    """Where the brokers are and how long we wait for them; shared by all parts of a transport."""

    def __init__(
        self, bootstrap_servers: str, *, client_id: str, deadline_s: float, max_message_bytes: int
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.client_id = client_id
        self.deadline_s = deadline_s
        self.max_message_bytes = max_message_bytes
        self._admin: KafkaAdminClient | None = None
        self._lock = threading.Lock()
        # The library logs every failed attempt as an error. We raise or log what a person can act
        # on; who wants its words sets the level of the logger "kafka".
        library = logging.getLogger("kafka")
        if library.level == logging.NOTSET:
            library.setLevel(logging.CRITICAL)

    @property
    def request_s(self) -> float:
        """How long one request may take; the deadline leaves room for a second one."""
        return min(_MAX_REQUEST_S, self.deadline_s / 2)

    @property
    def largest_fetch_bytes(self) -> int:
        """What a fetch must be able to take: the largest record, or a full batch of small ones."""
        return max(self.max_message_bytes, 1_000_000) + RECORD_OVERHEAD_BYTES

    def settings(self) -> dict[str, Any]:
        """What every client of the library gets."""
        return {
            "bootstrap_servers": [part.strip() for part in self.bootstrap_servers.split(",")],
            "client_id": self.client_id,
            "bootstrap_timeout_ms": round(self.deadline_s * 1000),
            "request_timeout_ms": round(self.request_s * 1000),
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 1000,
            "retry_backoff_ms": 5,
        }

    def open(self, kind: Callable[..., T], **settings: Any) -> T:
        """A client of the library, bootstrapped. Raises BrokerUnavailableError.

        No client of ours ever makes a broker create a topic: the library's own setting does not
        reach its metadata requests, so it is set here, on every client, before any is sent.
        """
        opened: list[KafkaNetClient] = []

        def client(**configs: Any) -> KafkaNetClient:
            made = KafkaNetClient(**configs)
            made.cluster.config["allow_auto_create_topics"] = False
            opened.append(made)
            return made

        try:
            return kind(**self.settings(), **settings, kafka_client=client)
        except kafka_errors.KafkaError as error:
            for made in opened:
                made.close()
            raise self.translated(error, "connecting") from error

    def call(self, what: str, operation: Callable[[KafkaAdminClient], T]) -> T:
        """Run an operation of the admin client, again while it may succeed, until the deadline."""
        with self._lock:
            if self._admin is None:
                self._admin = self.open(KafkaAdminClient)
            admin = self._admin
        attempts = Retrying(
            retry=retry_if_exception(_is_passing),
            stop=stop_after_delay(self.deadline_s),
            wait=wait_random_exponential(multiplier=0.02, max=1),
            reraise=True,
        )
        try:
            return attempts(operation, admin)
        except kafka_errors.KafkaError as error:
            raise self.translated(error, what) from error

    def api_keys(self) -> frozenset[int]:
        """The requests that the brokers say they know."""
        versions: dict[int, tuple[int, int]] = self.call(
            "asking for API versions", lambda admin: admin._manager.broker_version_data.api_versions
        )
        return frozenset(versions)

    def translated(self, error: BaseException, what: str) -> TransportError:
        """The library's error in our words. `what` we were doing: "sending to a.b"."""
        if isinstance(
            error, kafka_errors.ProducerFencedError | kafka_errors.InvalidProducerEpochError
        ):
            return FencedError(f"{what}: a newer writer of this run has taken over")
        if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
            return UnknownTopicError(f"{what}: the topic does not exist")
        if isinstance(
            error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError
        ):
            return RecordTooLargeError(
                f"{what}: the broker does not take a record of this size. Lower "
                "communication.maxMessageBytes or raise message.max.bytes of the broker"
            )
        if _is_passing(error):
            return self.unavailable(f"{what}: {error}")
        return TransportError(f"{what}: {type(error).__name__}: {error}")

    def unavailable(self, what: str) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"no Kafka broker answers at {self.bootstrap_servers} (deadline {self.deadline_s:g} s; "
            f"{what}). Check that it runs and that the address is right: --broker, "
            "BOOTSTRAP_SERVERS or spec.kafka.bootstrapServers"
        )

    def close(self) -> None:
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(
        error, kafka_errors.RetriableError | kafka_errors.UnknownBrokerIdError
    ) and not isinstance(error, kafka_errors.UnknownTopicOrPartitionError)
