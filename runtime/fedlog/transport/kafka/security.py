"""How a process proves to a broker who it is, and how it checks the broker.

`Security` says which files and which user; it never changes. `Credentials` is what the files hold
at a moment. Every new connection asks `CredentialFiles` for the current ones, so that a swapped
certificate or password is used from the next connection on.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kafka.net.sasl import get_sasl_mechanism
from kafka.net.sasl.abc import SaslMechanism
from kafka.net.sasl.oauth import AbstractTokenProvider

from fedlog.job.environment import KAFKA_SASL_PASSWORD
from fedlog.job.model import Authentication, AuthenticationType
from fedlog.transport.errors import SecuritySettingsError

log = logging.getLogger(__name__)

MECHANISMS: Final = {
    AuthenticationType.SCRAM_SHA_256: "SCRAM-SHA-256",
    AuthenticationType.SCRAM_SHA_512: "SCRAM-SHA-512",
    AuthenticationType.OAUTH_BEARER: "OAUTHBEARER",
}

_MAX_SECRET_BYTES = 64 * 1024
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_DER_TIME = re.compile(rb"\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z")

CA: Final = "spec.kafka.authentication.caFile, --kafka-ca or KAFKA_SSL_CAFILE"
CERTIFICATE: Final = (
    "spec.kafka.authentication.certificateFile and keyFile, --kafka-cert and --kafka-key, or "
    "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE"
)
USERNAME: Final = "spec.kafka.authentication.username, --kafka-user or KAFKA_SASL_USERNAME"
PASSWORD: Final = (
    "spec.kafka.authentication.passwordFile, --kafka-password-file, KAFKA_SASL_PASSWORD_FILE or "  # noqa: S105 - names of settings
    "KAFKA_SASL_PASSWORD"
)
TOKEN: Final = (
    "spec.kafka.authentication.tokenFile, --kafka-token-file or KAFKA_SASL_OAUTH_TOKEN_FILE"  # noqa: S105 - names of settings
)


class _Token(AbstractTokenProvider):  # type: ignore[misc] # the library has no types
    """A token as it was read; a new connection reads a new one."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        return self._token


@dataclass(frozen=True)
class Credentials:
    """What one connection uses. Never printed: it holds secrets."""

    context: ssl.SSLContext | None = field(default=None, repr=False)
    sasl: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Settings of the library's mechanisms."""

    def mechanism(self, host: str) -> SaslMechanism:
        """The client's half of a new authentication."""
        found: SaslMechanism = get_sasl_mechanism(self.sasl["sasl_mechanism"])(
            host=host, **self.sasl
        )
        return found


@dataclass(frozen=True)
class Security:
    """Which encryption and which identity. The default is neither: PLAINTEXT."""

    encrypted: bool = False
    mechanism: str | None = None
    """SCRAM-SHA-512, SCRAM-SHA-256, OAUTHBEARER, or None without SASL."""
    username: str = ""
    password: str = field(default="", repr=False)
    """Used where there is no `password_file`."""
    password_file: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def of(
        cls,
        authentication: Authentication,
        base: Path = Path(),
        environment: Mapping[str, str] = os.environ,
    ) -> Security:
        """The job's, with relative paths from `base`.

        Of the environment only KAFKA_SASL_PASSWORD counts here: every other variable is in the job
        already (`fedlog.job.environment`). Raises SecuritySettingsError for what is missing.
        """
        kind = authentication.type
        security = cls(
            encrypted=authentication.encrypted,
            mechanism=MECHANISMS.get(kind),
            username=authentication.username or "",
            password=environment.get(KAFKA_SASL_PASSWORD, ""),
            password_file=_path(base, authentication.password_file),
            token_file=_path(base, authentication.token_file),
            ca_file=_path(base, authentication.ca_file),
            certificate_file=_path(base, authentication.certificate_file),
            key_file=_path(base, authentication.key_file),
        )
        if kind is AuthenticationType.TLS and security.certificate_file is None:
            raise SecuritySettingsError(f"type Tls needs a client certificate: {CERTIFICATE}")
        if kind is AuthenticationType.OAUTH_BEARER:
            if security.token_file is None:
                raise SecuritySettingsError(f"type OAuthBearer needs a token: {TOKEN}")
        elif security.mechanism is not None:
            if not security.username:
                raise SecuritySettingsError(f"type {kind.value} needs a user: {USERNAME}")
            if security.password_file is None and not security.password:
                raise SecuritySettingsError(f"type {kind.value} needs a password: {PASSWORD}")
        return security

    @property
    def protocol(self) -> str:
        """Kafka's name: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
        secured = "SSL" if self.encrypted else "PLAINTEXT"
        return secured if self.mechanism is None else f"SASL_{secured}"

    @property
    def user(self) -> str:
        """Who this is, for messages."""
        if self.mechanism == MECHANISMS[AuthenticationType.OAUTH_BEARER]:
            return f"the owner of the token in {self.token_file}"
        if self.mechanism is not None:
            return f"user {self.username!r}"
        if self.certificate_file is not None:
            return f"the owner of the certificate {self.certificate_file}"
        return "an anonymous user"

    def read(self) -> Credentials:
        """What the files hold now. Raises SecuritySettingsError for what cannot be used."""
        return Credentials(self._context() if self.encrypted else None, self._sasl())

    def files(self) -> list[Path]:
        """Every file that `read` reads."""
        named = (
            self.ca_file,
            self.certificate_file,
            self.key_file,
            self.password_file,
            self.token_file,
        )
        return [path for path in named if path is not None]

    def certificate_expiry(self) -> datetime | None:
        """The last moment of the client's certificate; None where it cannot be told."""
        if self.certificate_file is None:
            return None
        try:
            pem = _PEM.search(self.certificate_file.read_bytes())
            if pem is None:
                return None
            # Validity is the first pair of times in a certificate: from, to.
            times = _DER_TIME.findall(ssl.PEM_cert_to_DER_cert(pem.group().decode("ascii")))
            short, long = times[1]
            text = (short or long).decode("ascii")
            layout = "%y%m%d%H%M%S" if short else "%Y%m%d%H%M%S"
            return datetime.strptime(text, layout).replace(tzinfo=UTC)
        except (OSError, ValueError, IndexError):
            return None

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca_file is None:
            context.load_default_certs()
        else:
            _check_readable(self.ca_file, f"the CA ({CA})")
            try:
                context.load_verify_locations(self.ca_file)
            except (ssl.SSLError, OSError) as error:
                raise SecuritySettingsError(
                    f"{self.ca_file} holds no certificate in PEM form: {CA} names the CA of the "
                    "brokers"
                ) from error
        if self.certificate_file is not None:
            self._load_certificate(context, self.certificate_file)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certificate: Path) -> None:
        _check_readable(certificate, f"the client certificate ({CERTIFICATE})")
        if self.key_file is not None:
            _check_readable(self.key_file, f"the certificate's key ({CERTIFICATE})")
        key = self.key_file or certificate

        def refuse() -> str:  # otherwise OpenSSL would ask at the terminal
            raise SecuritySettingsError(
                f"the key in {key} is encrypted: `openssl pkey -in {key} -out NEW` writes one that "
                "is not"
            )

        try:
            context.load_cert_chain(certificate, self.key_file, password=refuse)
        except OSError as error:  # SSLError is one; so is a file's being replaced at this moment
            what = (
                "does not belong to the certificate in"
                if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH"
                else "and the certificate cannot be read as PEM from"
            )
            raise SecuritySettingsError(
                f"the key in {key} {what} {certificate}: check {CERTIFICATE}"
            ) from error

    def _sasl(self) -> Mapping[str, Any]:
        if self.mechanism is None:
            return {}
        settings: dict[str, Any] = {
            "security_protocol": self.protocol,
            "sasl_mechanism": self.mechanism,
        }
        if self.token_file is not None:
            token = _secret(self.token_file, f"the token ({TOKEN})")
            return settings | {"sasl_oauth_token_provider": _Token(token)}
        password = (
            self.password
            if self.password_file is None
            else _secret(self.password_file, f"the password ({PASSWORD})")
        )
        # A name with these would end early (RFC 5802, 5.1); the library sends it as it is.
        username = self.username.replace("=", "=3D").replace(",", "=2C")
        return settings | {"sasl_plain_username": username, "sasl_plain_password": password}


PLAINTEXT: Final = Security()


class CredentialFiles:
    """The current credentials of a transport; files are read again once they have changed.

    Where they cannot be used at that moment, such as between the two halves of a certificate and
    its key being replaced, the last good ones go on.
    """

    def __init__(self, security: Security) -> None:
        self.security = security
        self._lock = threading.Lock()
        self._good: Credentials | None = None
        self._seen: list[tuple[int, ...]] | None = None
        self._complained = ""

    def current(self) -> Credentials:
        """Raises SecuritySettingsError when the first ones cannot be read."""
        with self._lock:
            seen = [_state(path) for path in self.security.files()]
            if self._good is not None and seen == self._seen:
                return self._good
            try:
                fresh = self.security.read()
            except SecuritySettingsError as error:
                if self._good is None:
                    raise
                if str(error) != self._complained:
                    self._complained = str(error)
                    log.warning("the last credentials stay in use: %s", error)
                return self._good
            if self._good is not None:
                log.info("credentials for Kafka have changed: read again")
            self._good, self._seen, self._complained = fresh, seen, ""
            return fresh


def _path(base: Path, given: str | None) -> Path | None:
    return None if given is None else base / given


def _state(path: Path) -> tuple[int, ...]:
    """What differs once a file is replaced or written; a link is followed."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _check_readable(path: Path, what: str) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise SecuritySettingsError(
            f"{what} cannot be read from {path}: {error.strerror}"
        ) from error


def _secret(path: Path, what: str) -> str:
    """The text of a file, without the end of its line."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SecuritySettingsError(
            f"{what} cannot be read from {path}: {error.strerror}"
        ) from error
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _MAX_SECRET_BYTES:
        # The cause would quote bytes of the secret.
        raise SecuritySettingsError(
            f"{what} in {path} is empty, larger than {_MAX_SECRET_BYTES} bytes or no text"
        )
    return text
