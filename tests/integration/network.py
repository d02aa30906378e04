"""A network namespace with a cable to it that can be drawn: real packets that do not come."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from fedlog.transport.broker_process import free_port


@dataclass(frozen=True)
class Cable:
    """name: of the namespace and of our end of the cable. host, port: where Kafka listens for it.
    plain, controller: ports of Kafka's other listeners, on 127.0.0.1.
    """

    name: str
    host: str
    peer: str
    port: int
    plain: int
    controller: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def within(self, command: list[str]) -> list[str]:
        """The command, in the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def listeners(self) -> dict[str, str]:
        """Settings of a Kafka that listens at our end, too."""
        ends = f"PLAINTEXT://127.0.0.1:{self.plain},CABLE://{self.address}"
        return {
            "listeners": f"{ends},CONTROLLER://127.0.0.1:{self.controller}",
            "advertised.listeners": ends,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self.controller}",
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CABLE:PLAINTEXT"
            ),
        }

    @contextmanager
    def drawn(self) -> Iterator[None]:
        _ip("link", "set", self.name, "down")
        try:
            yield
        finally:
            _ip("link", "set", self.name, "up")


@contextmanager
def network_namespace() -> Iterator[Cable]:
    """Only root may make one: elsewhere the test is skipped, and says so."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("NOT RUN: a network namespace needs root")
    number = uuid.uuid4().int
    name = f"fl{number % 10**9}"
    net = f"10.{200 + number % 50}.{number // 50 % 250}"
    cable = Cable(name, f"{net}.1", f"{net}.2", free_port(), free_port(), free_port())
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT RUN: no network namespace here: {error.stderr.decode()}")
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        _ip("address", "add", f"{cable.host}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", f"{cable.peer}/30", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield cable
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
