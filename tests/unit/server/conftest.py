from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlog.transport.memory import MemoryTransport
from unit.server.by_hand import Bench


@pytest.fixture
def log() -> MemoryTransport:
    return MemoryTransport()


@pytest.fixture
def bench(tmp_path: Path, log: MemoryTransport) -> Iterator[Bench]:
    made = Bench(tmp_path, log)
    yield made
    made.end()
