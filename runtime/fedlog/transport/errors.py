"""Errors of the log.

TransportError
├── BrokerUnavailableError (retriable)   nobody answers
├── UnknownTopicError      (retriable)   the topic does not exist (yet)
├── RecordTooLargeError                  a record is larger than the broker takes
├── BulkMissingError                     offsets that a manifest names are gone
└── FencedError                          a newer server of this run exists
"""

from fedlog.errors import FedlogError


class TransportError(FedlogError):
    """The log did not do what was asked."""


class BrokerUnavailableError(TransportError):
    """No broker answers at the address within the deadline."""

    retriable = True


class UnknownTopicError(TransportError):
    """The topic does not exist; nothing was created."""

    retriable = True


class RecordTooLargeError(TransportError):
    """A record exceeds the message size that is configured or that the broker takes."""


class BulkMissingError(TransportError):
    """An offset that a manifest names is not on the log (any more)."""


class FencedError(TransportError):
    """A newer writer with the same transactional id has taken over."""
