"""How much a run holds in the embedded broker's memory at once, and whether that fits. Pure."""

from __future__ import annotations

import math

from fedlog.job.model import Spec
from fedlog.local.errors import NotEnoughMemoryError

_KEPT = 3
"""Rounds whose bulk the broker may hold at once: the current one, the one whose topics are being
deleted, and one for updates that come late."""

_MARGIN_BYTES = 200 * 2**20
"""Left to everything else on the machine."""


def asked_per_round(spec: Spec) -> int:
    """Clients that are asked for an update in one round, over-selection included."""
    part = spec.participation
    if part.clients_per_round is not None:
        wanted = part.clients_per_round
    elif part.fraction is not None:
        wanted = math.ceil(part.fraction * spec.client_count)
    else:
        wanted = spec.client_count
    wanted = max(wanted, part.min_clients)
    return min(spec.client_count, math.ceil(wanted * part.over_selection))


def broker_bytes(model_bytes: int, asked: int) -> int:
    """Models and updates of the rounds that the broker holds at once, in bytes."""
    return _KEPT * model_bytes * (1 + asked)


def check_fits(spec: Spec, model_bytes: int, available_bytes: int) -> int:
    """The estimate in bytes; raises NotEnoughMemoryError when it is more than what is free."""
    asked = asked_per_round(spec)
    needed = broker_bytes(model_bytes, asked)
    if needed + _MARGIN_BYTES > available_bytes:
        raise NotEnoughMemoryError(
            f"the embedded broker keeps everything in memory: a model of {_size(model_bytes)}, "
            f"{asked} updates a round and {_KEPT} rounds at once are {_size(needed)}, but only "
            f"{_size(available_bytes)} are free. Use --broker with an Apache Kafka, lower "
            "participation.clientsPerRound, or choose a smaller model."
        )
    return needed


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
