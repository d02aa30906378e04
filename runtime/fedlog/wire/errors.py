"""Errors of bytes: WireError is the root; every one is a reason to refuse a record, never a crash.

`reason` is a short, stable word for counters and status.
"""

from typing import ClassVar

from fedlog.errors import FedlogError


class WireError(FedlogError):
    """Bytes that are not what they claim to be."""

    reason: ClassVar[str] = "malformed"


class LimitExceededError(WireError):
    """A count, rank or size is above its limit."""

    reason = "too-large"


class DigestMismatchError(WireError):
    """The bytes do not have the digest that their manifest names."""

    reason = "digest"


class UnsupportedVersionError(WireError):
    """Written by a newer Fedlog."""

    reason = "version"
