"""A broker as a child process: started, watched, stopped by its own pid, never left behind."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fedlog.transport.errors import BrokerUnavailableError

_POLL_S = 0.02
_TERMINATE_S = 10.0

# Kafka's ApiVersions request, version 0: size, api key 18, version, correlation id, no client id.
_API_VERSIONS_REQUEST = struct.pack(">ihhih", 10, 18, 0, 1, -1)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether something at the address answers the Kafka protocol (without TLS)."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(_API_VERSIONS_REQUEST)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


class BrokerProcess:
    """A broker on 127.0.0.1 that runs from `__enter__` to `__exit__`.

    It ends with the process that started it, even when that one is killed: a shell waits on a pipe
    whose other end is open as long as the parent lives. (A parent-death signal would do on Linux
    alone, and there it follows the thread that started the child.)
    """

    def __init__(self, name: str, *, port: int, start_s: float) -> None:
        self.name = name
        self.port = port
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers. Raises BrokerUnavailableError with what it said."""
        raise NotImplementedError

    def poll(self) -> int | None:
        """Exit code of a broker that has ended, None while it runs."""
        return None if self._process is None else self._process.poll()

    def rss_bytes(self) -> int:
        """Memory that the broker holds; 0 when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return 0
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def stop(self) -> None:
        """Terminate, then kill. Safe to call twice."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(kill=True)

    def last_words(self, limit: int = 2000) -> str:
        """The end of what the broker wrote."""
        if self._log is None or not self._log.exists():
            return ""
        return self._log.read_text(errors="replace")[-limit:].strip()

    def _check_port(self) -> None:
        """Somebody else's broker on our port would answer in the place of ours."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise BrokerUnavailableError(
                    f"{self.name} cannot listen on {self.bootstrap_servers}: {error.strerror}; "
                    "choose another port"
                ) from error

    def _launch(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._check_port()
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,  # Ctrl-C is for us: the broker ends last, by our hand
            )
        self._guard = subprocess.Popen(  # noqa: S603 - our own command line
            ["/bin/sh", "-c", 'read -r _; kill -KILL "$1"', "guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._start_s
        while not answers("127.0.0.1", self.port):
            code = self.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                what = (
                    f"ended with exit code {code}"
                    if code is not None
                    else f"did not answer within {self._start_s:g} s"
                )
                raise BrokerUnavailableError(
                    f"{self.name} at {self.bootstrap_servers} {what}: {self.last_words()}"
                )
            time.sleep(_POLL_S)

    def _end(self, *, kill: bool) -> None:
        # The guard first: it must not kill a pid that is somebody else's by then.
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()
        process, self._process = self._process, None
        if process is None:
            return
        if not kill:
            process.terminate()
            try:
                process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            process.kill()
            process.wait()
