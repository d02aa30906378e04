"""The library's client, with our rules: fresh credentials, bounded handshakes, no new topics.

The library takes user, password and TLS settings once, when a client is made, and logs what it was
given where its logger is set to debug. Here they never enter a client's settings: each new
connection gets the credentials of its moment.
"""

from __future__ import annotations

import logging
import ssl
import time
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from fedlog.transport.errors import SecuritySettingsError
from fedlog.transport.kafka.security import CredentialFiles

_HANDSHAKE_S = 10.0


def _no_bytes(record: logging.LogRecord) -> bool:
    """At level debug these two loggers write every message that is sent, a token among them."""
    return record.levelno > logging.DEBUG


for _name in ("kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(_no_bytes)


def library_client(credentials: CredentialFiles, **settings: Any) -> KafkaNetClient:
    """A client that never makes a broker create a topic: the library's own setting does not reach
    its metadata requests, so it is set here, before any is sent.
    """
    net = NetworkSelector(**settings)
    manager = _Manager(net, credentials, **settings)
    client = KafkaNetClient(net=net, manager=manager)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


class _Manager(KafkaConnectionManager):  # type: ignore[misc] # the library has no types
    """Connections with the credentials of the moment at which they begin."""

    def __init__(self, net: NetworkSelector, credentials: CredentialFiles, **settings: Any) -> None:
        self._credentials = credentials
        security = credentials.security
        super().__init__(
            net,
            **settings
            | {"security_protocol": security.protocol, "sasl_mechanism": security.mechanism},
        )

    async def _connect(self, node: Any, conn: Any, **details: Any) -> None:
        try:
            conn.config.update(self._credentials.current().sasl)
        except SecuritySettingsError as error:
            conn.connection_lost(kafka_errors.KafkaConnectionError(str(error)))
            self.update_backoff(node.node_id)
            return
        await super()._connect(node, conn, **details)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        context = self._credentials.current().context
        connected = await self._socket(node, timeout_at)
        if context is None:
            return KafkaTCPTransport(self._net, connected, host=node.host)
        transport = _TlsTransport(self._net, connected, host=node.host, ssl_context=context)
        try:
            await transport.handshake()
        except Exception as error:
            transport.abort(error)
            raise kafka_errors.KafkaConnectionError(f"TLS handshake: {error}") from error
        return transport

    async def _socket(self, node: Any, timeout_at: float | None) -> Any:
        sockets = _Sockets()
        problem: Exception = kafka_errors.KafkaConnectionError("its name is not known")
        for found in sockets.dns_lookup(node.host, node.port):
            try:
                return await sockets.connect(
                    self._net, found, self.config["socket_options"], timeout_at=timeout_at
                )
            except (OSError, kafka_errors.KafkaError) as error:
                problem = error
        raise kafka_errors.KafkaConnectionError(f"no connection: {problem}") from problem


class _Sockets(KafkaNetSocket):  # type: ignore[misc] # the library has no types
    """The library leaves sockets open whose connection is refused."""

    SCHEMES = ()

    async def sock_connect(self, net: Any, sock: Any, *details: Any, **more: Any) -> Any:
        try:
            return await super().sock_connect(net, sock, *details, **more)
        except BaseException:
            sock.close()
            raise


class _TlsTransport(KafkaSSLTransport):  # type: ignore[misc] # the library has no types
    """The library waits for ever for a handshake, and copies the rest of a write at each record."""

    async def handshake(self) -> None:
        until = time.monotonic() + _HANDSHAKE_S
        while True:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                await self._net.wait_read(self._sock, until)
            except ssl.SSLWantWriteError:
                await self._net.wait_write(self._sock, until)
            else:
                return

    def write(self, data: Any) -> None:
        super().write(memoryview(data))

    def writelines(self, list_of_data: Any) -> None:
        super().writelines([memoryview(data) for data in list_of_data])
