from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from fedlog.telemetry.errors import StatusServerError
from fedlog.telemetry.http import HEALTHY_S, MAX_CONNECTIONS, StatusServer
from fedlog.telemetry.metrics import ServerMetrics
from fedlog.telemetry.status import Status


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def status() -> Status:
    return Status(run="fedlog.default.digits.x", job="digits", phase="Joining", rounds=3)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[StatusServer]:
    with StatusServer(0, status=status, metrics=ServerMetrics(job="j"), clock=clock) as server:
        yield server


def ask(
    server: StatusServer, path: str, method: str = "GET"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_status_is_versioned_json(server: StatusServer) -> None:
    code, headers, body = ask(server, "/status")
    assert code == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["version"] == 1
    assert Status.model_validate_json(body) == status()


def test_metrics_are_in_the_text_format(server: StatusServer) -> None:
    code, headers, body = ask(server, "/metrics")
    assert code == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"\nfedlog_rounds 0.0\n" in body


def test_health_follows_the_main_loop(server: StatusServer, clock: Clock) -> None:
    assert ask(server, "/healthz")[0] == 200
    clock.now += HEALTHY_S + 1
    code, _, body = ask(server, "/healthz")
    assert code == 503
    assert b"31 s" in body
    server.beat()
    assert ask(server, "/healthz")[0] == 200


def test_a_query_is_ignored_and_other_paths_are_not_found(server: StatusServer) -> None:
    assert ask(server, "/healthz?x=1")[0] == 200
    assert ask(server, "/../etc/passwd")[0] == 404
    assert ask(server, "/")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(server: StatusServer, method: str) -> None:
    code, headers, _ = ask(server, "/status", method)
    assert code == 405
    assert headers["Allow"] == "GET, HEAD"


def test_head_has_no_body(server: StatusServer) -> None:
    code, headers, body = ask(server, "/status", "HEAD")
    assert (code, body) == (200, b"")
    assert int(headers["Content-Length"]) > 50


def test_a_failing_status_is_a_500_and_the_port_lives_on() -> None:
    def fails() -> Status:
        raise RuntimeError("a secret detail")

    with StatusServer(0, status=fails, metrics=ServerMetrics(job="j")) as server:
        code, _, body = ask(server, "/status")
        assert code == 500
        assert b"secret" not in body
        assert ask(server, "/healthz")[0] == 200


def test_an_endless_request_line_is_refused(server: StatusServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET /" + b"a" * 70_000)
        assert b" 414 " in connection.recv(100)


def test_connections_beyond_the_bound_are_closed(server: StatusServer) -> None:
    idle = []
    try:
        for _ in range(MAX_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            idle.append(connection)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


def test_a_connection_that_trickles_is_ended(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlog.telemetry.http.CONNECTION_S", 0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /status HTTP/1.0\r\nX: ")
        assert connection.recv(1) == b""


def test_a_taken_port_is_named_with_the_cure(server: StatusServer) -> None:
    with pytest.raises(StatusServerError, match=rf"{server.port} .* is taken .*--status-port"):
        StatusServer(server.port, status=status, metrics=ServerMetrics(job="j"))


def test_a_closed_port_is_free_again(server: StatusServer) -> None:
    server.close()
    server.close()
    with StatusServer(server.port, status=status, metrics=ServerMetrics(job="j")) as again:
        assert again.address == f"http://127.0.0.1:{server.port}"
        assert ask(again, "/healthz")[0] == 200
