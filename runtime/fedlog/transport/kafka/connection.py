"""How Fedlog talks to brokers: addresses, deadlines, retries, and errors in our words."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from fedlog.transport.errors import (
    BrokerUnavailableError,
    FencedError,
    RecordTooLargeError,
    SecurityError,
    TransportError,
    UnknownTopicError,
)
from fedlog.transport.kafka import refusals
from fedlog.transport.kafka.broker_socket import (
    Address,
    BrokerSocket,
    HungUpError,
    addresses,
    look,
)
from fedlog.transport.kafka.library_client import library_client
from fedlog.transport.kafka.security import CredentialFiles, Security

T = TypeVar("T")

# What a batch and a request add to the value of a record.
RECORD_OVERHEAD_BYTES = 4096

_FIRST_CONTACT_S = 30.0  # where nobody has answered yet, the address may be wrong: say so soon
_MAX_REQUEST_S = 30.0
_LOOK_S = 5.0  # how long one broker may take for a step of the first look at it
_LOOK_PAUSE_S = 0.2
_HANG_UPS = 3
_MAX_LOOK_BYTES = 2**24


class Connection:
    """Where the brokers are and how long we wait for them; shared by all parts of a transport."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        security: Security,
        client_id: str,
        deadline_s: float,
        max_message_bytes: int,
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.credentials = CredentialFiles(security)
        self.client_id = client_id
        self.deadline_s = deadline_s
        self.max_message_bytes = max_message_bytes
        self._has_answered = False
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

    def settings(self, server: Address) -> dict[str, Any]:
        """What every client of the library gets: nothing secret, it may log them."""
        host, port = server
        return {
            "bootstrap_servers": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
            "client_id": self.client_id,
            "bootstrap_timeout_ms": round(self.deadline_s * 1000),
            "request_timeout_ms": round(self.request_s * 1000),
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 1000,
            "retry_backoff_ms": 5,
        }

    def open(self, kind: Callable[..., T], **settings: Any) -> T:
        """A client of the library, bootstrapped at a broker that lets us in.

        Raises SecurityError, BrokerUnavailableError.
        """
        server = self.reach()
        opened: list[KafkaNetClient] = []

        def client(**configs: Any) -> KafkaNetClient:
            made = library_client(self.credentials, **configs)
            opened.append(made)
            return made

        try:
            return kind(**self.settings(server), **settings, kafka_client=client)
        except kafka_errors.KafkaError as error:
            for made in opened:
                made.close()
            raise self.explained(error, "connecting") from error

    def reach(self, patience_s: float | None = None) -> Address:
        """The first of the servers that answers a request of ours.

        Waits for one until the deadline (or for `patience_s`; not so long where none has answered
        yet), but not for one that refuses: that raises SecurityError at once. (The library would
        try again until its deadline, and then only know that it could not connect.) Raises
        BrokerUnavailableError.
        """
        if patience_s is None:
            patience_s = self.deadline_s
            if not self._has_answered:
                patience_s = min(patience_s, _FIRST_CONTACT_S)
        give_up_at = time.monotonic() + patience_s
        hang_ups = 0
        while True:
            try:
                found = self._look(addresses(self.bootstrap_servers))
                self._has_answered = True
                return found
            except HungUpError as error:
                hang_ups += 1
                if hang_ups == _HANG_UPS:
                    security = self.credentials.security
                    raise refusals.hangs_up(self.bootstrap_servers, security) from error
            except kafka_errors.KafkaError as error:
                if time.monotonic() + _LOOK_PAUSE_S > give_up_at:
                    raise self.unavailable(f"connecting: {error}", patience_s) from error
            time.sleep(_LOOK_PAUSE_S)

    def _look(self, servers: Iterable[Address], *, advertised: bool = False) -> Address:
        """The first server that answers; `advertised`: and all that it names answer, too.

        Raises what is most worth knowing: SecurityError before HungUpError before KafkaError.
        """
        problem: Exception = kafka_errors.KafkaConnectionError("no broker is known")
        timeout_s = min(_LOOK_S, self.request_s)
        for server in servers:
            try:
                broker = BrokerSocket(
                    server,
                    credentials=self.credentials,
                    client_id=self.client_id,
                    timeout_s=timeout_s,
                    max_answer_bytes=_MAX_LOOK_BYTES,
                )
                try:
                    named = look(broker, timeout_s)
                finally:
                    broker.close()
                if advertised:
                    for each in named:
                        self._look([each])
            except (kafka_errors.KafkaError, SecurityError) as error:
                if _rank(error) >= _rank(problem):
                    problem = error
            else:
                return server
        raise problem

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
            raise self.explained(error, what) from error

    def api_keys(self) -> frozenset[int]:
        """The requests that the brokers say they know."""
        versions: dict[int, tuple[int, int]] = self.call(
            "asking for API versions", lambda admin: admin._manager.broker_version_data.api_versions
        )
        return frozenset(versions)

    def explained(self, error: BaseException, what: str) -> TransportError:
        """`translated`, for an error that is about to be raised: where no broker seems to answer,
        look whether they refuse us, which the library does not tell.
        """
        problem = self.translated(error, what)
        if isinstance(problem, BrokerUnavailableError):
            try:
                self._look(addresses(self.bootstrap_servers), advertised=True)
            except SecurityError as refusal:
                return refusal
            except kafka_errors.KafkaError:
                return problem
        return problem

    def translated(self, error: BaseException, what: str) -> TransportError:
        """The library's error in our words. `what` we were doing: "sending to a.b"."""
        if isinstance(
            error, kafka_errors.ProducerFencedError | kafka_errors.InvalidProducerEpochError
        ):
            return FencedError(f"{what}: a newer writer of this run has taken over")
        if isinstance(error, kafka_errors.AuthorizationError):
            return refusals.not_allowed(error, what, self.credentials.security)
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

    def unavailable(self, what: str, waited_s: float | None = None) -> BrokerUnavailableError:
        """waited_s: where it was not the deadline."""
        deadline_s = self.deadline_s if waited_s is None else waited_s
        return BrokerUnavailableError(
            f"no Kafka broker answers at {self.bootstrap_servers} (deadline {deadline_s:g} s; "
            f"{what}). Check that it runs and that the address is right: --broker, "
            "BOOTSTRAP_SERVERS or spec.kafka.bootstrapServers"
        )

    def close(self) -> None:
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


def _rank(problem: Exception) -> int:
    """How much a person learns from it."""
    return 2 if isinstance(problem, SecurityError) else int(isinstance(problem, HungUpError))


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(
        error, kafka_errors.RetriableError | kafka_errors.UnknownBrokerIdError
    ) and not isinstance(error, kafka_errors.UnknownTopicOrPartitionError)
