"""The status port: `/status`, `/healthz` and `/metrics`, read only.

The standard library's threading server is enough here: a handful of pollers, three small
documents. What it leaves open is bounded below: connections at once, time per connection, no
bodies, no keep-alive.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from fedlog.telemetry.errors import StatusServerError
from fedlog.telemetry.metrics import CONTENT_TYPE, ServerMetrics
from fedlog.telemetry.status import Status

HEALTHY_S = 30.0
"""`/healthz` answers 200 while the main loop has turned within so many seconds."""
MAX_CONNECTIONS = 32
"""Connections at once; further ones are closed."""
CONNECTION_S = 10.0
"""Longest life of a connection."""

_log = logging.getLogger(__name__)


class StatusServer:
    """Serves from its construction to `close`.

    port: 0 for a free one. status: called in another thread than the main loop's, for every
    `/status`; it returns a value that no longer changes. host: 127.0.0.1, or 0.0.0.0 for all
    interfaces. The main loop calls `beat` whenever it turns.

    Raises StatusServerError where the port cannot be had.
    """

    def __init__(
        self,
        port: int,
        *,
        status: Callable[[], Status],
        metrics: ServerMetrics,
        host: str = "127.0.0.1",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._metrics = metrics
        self._host = host
        self._clock = clock
        self._beat = clock()
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise StatusServerError(_cannot_listen(host, port, error)) from error
        except OverflowError:
            raise StatusServerError(f"port {port} is not one: 0 to 65535 are") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="status port", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is served."""
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """`http://host:port`, as seen from this machine."""
        host = "127.0.0.1" if self._host in {"", "0.0.0.0"} else self._host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"

    def beat(self) -> None:
        """The main loop turned."""
        self._beat = self._clock()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """What a GET of `path` gets: status, content type, body."""
        if path == "/healthz":
            return self._health()
        if path == "/status":
            body = self._status().model_dump_json().encode()
            return HTTPStatus.OK, "application/json", body
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, self._metrics.render()
        return _text(HTTPStatus.NOT_FOUND, "not found: there are /status, /healthz and /metrics")

    def _health(self) -> tuple[HTTPStatus, str, bytes]:
        silent_s = self._clock() - self._beat
        if silent_s <= HEALTHY_S:
            return _text(HTTPStatus.OK, "ok")
        return _text(
            HTTPStatus.SERVICE_UNAVAILABLE, f"the main loop has not turned for {silent_s:.0f} s"
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], owner: StatusServer) -> None:
        self.owner = owner
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host's name up, which takes seconds where there is no DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._open_lock:
            if len(self._open) >= MAX_CONNECTIONS:
                return False
            self._open[request] = time.monotonic()
        return True

    def service_actions(self) -> None:
        """Ends connections that outlive their time: a time-out per read is reset by every byte."""
        oldest = time.monotonic() - CONNECTION_S
        with self._open_lock:
            late = [request for request, since in self._open.items() if since < oldest]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has just ended by itself

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._open_lock:
            self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("status port: a request ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "fedlog"
    sys_version = ""
    timeout = CONNECTION_S

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _refuse_method(self) -> None:
        status, kind, body = _text(HTTPStatus.METHOD_NOT_ALLOWED, "read only: use GET")
        self._send(status, kind, body, allow=True)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method  # noqa: N815 - the base's names

    def _respond(self, *, with_body: bool) -> None:
        path = self.path.split("?", 1)[0]
        try:
            status, kind, body = self.server.owner.answer(path)
        except Exception:  # noqa: BLE001 - a bug in a callback costs a 500, not the port
            _log.exception("status port: %s failed", path)
            status, kind, body = _text(HTTPStatus.INTERNAL_SERVER_ERROR, "failed: see the log")
        self._send(status, kind, body, with_body=with_body)

    def _send(
        self,
        status: HTTPStatus,
        kind: str,
        body: bytes,
        *,
        with_body: bool = True,
        allow: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if allow:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        _log.debug("status port: " + format, *args)


def _text(status: HTTPStatus, message: str) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", message.encode() + b"\n"


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    where = f"the status port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is taken by another process: "
            "give another one with --status-port, or 0 for any free port"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{where} needs more rights: give one above 1023 with --status-port"
    return f"{where} cannot be served: {error.strerror or error}"
