"""How much a run holds in the embedded broker's memory at once, and whether that fits. Pure."""

from __future__ import annotations

from fedlog.job.model import Retain, Spec
from fedlog.local.errors import NotEnoughMemoryError
from fedlog.server.sizes import INLINE_BUDGET_BYTES, asked_per_round
from fedlog.wire.bulk import INLINE_BYTES

_KEPT = 3
"""Rounds whose bulk the broker may hold at once: the current one, the one whose topics are being
deleted, and one for updates that come late."""

_MARGIN_BYTES = 200 * 2**20
"""Left to everything else on the machine."""


def broker_bytes(spec: Spec, model_bytes: int) -> int:
    """Bulk of the rounds that the broker holds at once, in bytes, and what travels inside records,
    which this broker keeps for the whole run.

    Updates travel inside up to INLINE_BYTES; models, too, within INLINE_BUDGET_BYTES, each in its
    announcement and on the journal.
    """
    asked = asked_per_round(spec)
    if model_bytes > INLINE_BYTES:
        kept = _KEPT if spec.kafka.topics.retain is Retain.RESUME else spec.rounds + 1
        return kept * model_bytes * (1 + asked)
    updates = spec.rounds * asked * model_bytes
    return updates + min(2 * (spec.rounds + 1) * model_bytes, 2 * INLINE_BUDGET_BYTES)


def check_fits(spec: Spec, model_bytes: int, available_bytes: int) -> int:
    """The estimate in bytes; raises NotEnoughMemoryError when it is more than what is free."""
    asked = asked_per_round(spec)
    needed = broker_bytes(spec, model_bytes)
    if needed + _MARGIN_BYTES > available_bytes:
        rounds, cure = f"{_KEPT} rounds at once", "choose a smaller model"
        if model_bytes <= INLINE_BYTES:
            rounds, cure = f"all {spec.rounds} rounds (they travel inside records)", "lower rounds"
        elif spec.kafka.topics.retain is Retain.ALL:
            rounds, cure = f"all {spec.rounds} rounds (topics.retain: All)", "leave out retain"
        raise NotEnoughMemoryError(
            f"the embedded broker keeps everything in memory: a model of {_size(model_bytes)}, "
            f"{asked} updates a round and {rounds} are {_size(needed)}, but only "
            f"{_size(available_bytes)} are free. Use --broker with an Apache Kafka, lower "
            f"participation.clientsPerRound, or {cure}."
        )
    return needed


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
