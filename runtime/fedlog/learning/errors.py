"""Errors of weights and updates: LearningError is the root, all are FedlogErrors."""

from fedlog.errors import FedlogError


class LearningError(FedlogError):
    """Weights or updates that cannot be used."""


class ShapeMismatchError(LearningError):
    """Two sets of weights differ in names, shapes or dtypes."""


class UnfitModelError(ShapeMismatchError):
    """A client's model cannot take part in learning the global one.

    table: a line per tensor, for people.
    """

    def __init__(self, message: str, *, table: str) -> None:
        super().__init__(message)
        self.table = table


class NonFiniteError(LearningError):
    """An update holds NaN or infinity."""


class EmptyCohortError(LearningError):
    """A mean over no update, or over updates with no example."""
