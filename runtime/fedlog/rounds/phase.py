"""Where a job stands; the same words in the engine, the status, the metrics and the reports."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Joining, Training, Closing and Evaluating go on; Complete and Failed are the ends."""

    JOINING = "Joining"
    TRAINING = "Training"
    CLOSING = "Closing"
    EVALUATING = "Evaluating"
    COMPLETE = "Complete"
    FAILED = "Failed"

    @property
    def ended(self) -> bool:
        """No further round will come."""
        return self in (Phase.COMPLETE, Phase.FAILED)
