"""Errors of the log.

TransportError
├── BrokerUnavailableError (retriable)   nobody answers
├── UnknownTopicError      (retriable)   the topic does not exist (yet)
├── RecordTooLargeError                  a record is larger than the broker takes
├── BulkMissingError                     offsets that a manifest names are gone
├── FencedError                          a newer server of this run exists
└── SecurityError                        the broker and this process do not trust each other
    ├── SecuritySettingsError            a certificate, key or password here cannot be used
    ├── EncryptionError                  no TLS with this broker: CA, name, date, or a plain port
    ├── AuthenticationError              the broker does not accept who this says it is
    └── NotAllowedError                  it does, and this user lacks a right

No message of a SecurityError holds a password, a key or a token: only names of users and files.
"""

from fedlog import exit_codes
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


class SecurityError(TransportError):
    """The broker and this process do not agree on encryption, identity or rights."""

    exit_code: int = exit_codes.DENIED
    """How a process ends because of it."""


class SecuritySettingsError(SecurityError):
    """What should prove this process's identity is incomplete, unreadable or does not fit."""

    exit_code = exit_codes.USAGE


class EncryptionError(SecurityError):
    """No encrypted connection comes about, or one side speaks TLS and the other does not."""


class AuthenticationError(SecurityError):
    """The broker does not accept the certificate, the password or the token."""


class NotAllowedError(SecurityError):
    """The broker knows this user and denies it the right."""
