"""What a broker or TLS says when it refuses us, in words that name the cure.

No sentence here holds a secret: users and files have names, passwords and tokens are never quoted,
and neither is what a broker says in an answer to them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from kafka import errors as kafka_errors

from fedlog.transport.errors import (
    AuthenticationError,
    EncryptionError,
    NotAllowedError,
    SecurityError,
)
from fedlog.transport.kafka.security import CA, CERTIFICATE, PASSWORD, TOKEN, USERNAME, Security

Address = tuple[str, int]

# OpenSSL's X509_V_ERR_*
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})

# Reasons in OpenSSL's words: what the broker says of our certificate …
_CERTIFICATE_REFUSED: Final = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_REQUIRED",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_ACCESS_DENIED",
)
# … and what it looks like when the other side does not speak TLS at all.
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)

_RESOURCES: Final = {
    kafka_errors.TopicAuthorizationFailedError: "on the topic",
    kafka_errors.TransactionalIdAuthorizationFailedError: "on the transactional id",
    kafka_errors.ClusterAuthorizationFailedError: "on the cluster",
    kafka_errors.GroupAuthorizationFailedError: "on the group",
}
_PROTOCOL: Final = "spec.kafka.authentication, --kafka-security or KAFKA_SECURITY_PROTOCOL"


def of_tls(error: ssl.SSLError, address: Address, security: Security) -> SecurityError:
    """A failed handshake, or the alert that ends a connection after it (TLS 1.3)."""
    at = _text(address)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_verification(error, address, security)
    reason = error.reason or ""
    if any(reason.endswith(refused) for refused in _CERTIFICATE_REFUSED):
        return _certificate_refused(address, security)
    if reason in _NOT_TLS:
        return EncryptionError(
            f"the broker at {at} does not speak TLS on this port: use the port of its TLS "
            f"listener, or connect without TLS ({_PROTOCOL})"
        )
    return EncryptionError(
        f"no TLS connection with the broker at {at} ({reason or 'unknown reason'}): it takes "
        "versions 1.2 and 1.3; see the broker's log for its side"
    )


def is_tls_alert(start: bytes | bytearray) -> bool:
    """Whether what should be the size of an answer is a TLS alert: type 21, version 3.x."""
    return len(start) >= 3 and start[0] == 21 and start[1] == 3


def wants_tls(address: Address, security: Security) -> SecurityError:
    return EncryptionError(
        f"the broker at {_text(address)} wants TLS, and this connection is {security.protocol}: "
        f"set SSL or SASL_SSL and the CA ({_PROTOCOL}; {CA})"
    )


def hangs_up(addresses: str, security: Security) -> SecurityError:
    """Closed again and again before the first answer: the listener has another protocol."""
    if security.encrypted and security.mechanism is None:
        cure = "its port may be one without TLS, or one that wants a user and a password (SASL_SSL)"
    elif security.encrypted:
        cure = "its port may be one without TLS (SASL_PLAINTEXT), or one without users (SSL)"
    elif security.mechanism is None:
        cure = "its port may be one with TLS (SSL), or one that wants a user (SASL_SSL)"
    else:
        cure = "its port may be one with TLS (SASL_SSL)"
    return EncryptionError(
        f"the broker at {addresses} closes every connection of protocol {security.protocol} before "
        f"it answers: {cure}. Set the listener's protocol ({_PROTOCOL}) or use another port"
    )


def unknown_mechanism(
    address: Address, security: Security, enabled: Iterable[str]
) -> SecurityError:
    offers = ", ".join(enabled)
    what = (
        f"offers no {security.mechanism} but {offers}"
        if offers
        else "takes no users on this port (use the port of its SASL listener, or another type)"
    )
    return AuthenticationError(
        f"the broker at {_text(address)} {what}: set spec.kafka.authentication.type, "
        "--kafka-mechanism or KAFKA_SASL_MECHANISM"
    )


def not_authenticated(address: Address, security: Security) -> SecurityError:
    cure = (
        f"check that the token is fresh and for this cluster ({TOKEN})"
        if security.token_file is not None
        else f"check the name ({USERNAME}) and the password ({PASSWORD}), and that the user has "
        f"{security.mechanism} credentials"
    )
    return AuthenticationError(
        f"the broker at {_text(address)} does not accept {security.user} by {security.mechanism}: "
        f"{cure}"
    )


def broker_not_authenticated(address: Address, security: Security) -> SecurityError:
    return AuthenticationError(
        f"the broker at {_text(address)} does not prove that it knows the password of "
        f"{security.user}: it is not the broker that this user belongs to; check the address"
    )


def not_allowed(
    error: kafka_errors.AuthorizationError, what: str, security: Security
) -> SecurityError:
    """`what` we were doing, with the topic or id: "reading a.b/0"."""
    where = _RESOURCES.get(type(error), "there")
    return NotAllowedError(
        f"{what}: {security.user} lacks a right {where}. An administrator of the Kafka grants it: "
        "docs/securing-kafka.md lists the ACLs of a server and of a client"
    )


def _of_verification(
    error: ssl.SSLCertVerificationError, address: Address, security: Security
) -> SecurityError:
    at = _text(address)
    if error.verify_code == _EXPIRED:
        return EncryptionError(
            f"the certificate of the broker at {at}, or of its CA, has expired: renew it there, or "
            "correct this machine's clock"
        )
    if error.verify_code == _NOT_YET_VALID:
        return EncryptionError(
            f"the certificate of the broker at {at} is not valid yet: compare the clocks of both "
            "machines"
        )
    if error.verify_code in _WRONG_NAME:
        return EncryptionError(
            f"the certificate of the broker at {at} is not for the name {address[0]!r}: connect by "
            "a name that is in it, or have the broker's certificate (and advertised.listeners) "
            "name this one"
        )
    ours = "the system's CAs" if security.ca_file is None else f"the CA in {security.ca_file}"
    return EncryptionError(
        f"the certificate of the broker at {at} is not signed by {ours}: name the CA of this Kafka "
        f"({CA})"
    )


def _certificate_refused(address: Address, security: Security) -> SecurityError:
    at = _text(address)
    if security.certificate_file is None:
        return AuthenticationError(
            f"the broker at {at} asks for a client certificate and there is none: {CERTIFICATE}"
        )
    expiry = security.certificate_expiry()
    if expiry is not None and expiry < datetime.now(UTC):
        return AuthenticationError(
            f"the broker at {at} does not accept the certificate in {security.certificate_file}: "
            f"it expired on {expiry:%Y-%m-%d %H:%M} UTC; renew it"
        )
    return AuthenticationError(
        f"the broker at {at} does not accept the certificate in {security.certificate_file}: have "
        "it signed by the CA that the broker trusts for clients, and check that it is for client "
        f"authentication ({CERTIFICATE})"
    )


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
