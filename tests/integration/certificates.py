"""Certificates for tests: a CA of one's own, and what it signs, valid or wrong on purpose."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


class Authority:
    """A CA that signs into one folder; `certificate` is its own PEM file."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"Test {name}")
        self.certificate = folder / f"{name}.crt"
        signed = (
            _builder(self._name, self._name, self._key.public_key(), *_valid())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(signed.public_bytes(_PEM))

    def sign(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        expired: bool = False,
        file: str | None = None,
    ) -> tuple[Path, Path]:
        """Certificate and key (PKCS #8, PEM) with CN=name; with `hosts` it is a broker's."""
        key = ec.generate_private_key(ec.SECP256R1())
        first, last = _valid()
        if expired:
            last = datetime.now(UTC) - timedelta(days=1)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(_named(name), self._name, key.public_key(), first, last).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        certificate = self._folder / f"{file or name}.crt"
        certificate.write_bytes(signed.public_bytes(_PEM))
        key_file = self._folder / f"{file or name}.key"
        key_file.write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return certificate, key_file

    def key_store(self, name: str, hosts: tuple[str, ...], *, expired: bool = False) -> Path:
        """Key and certificate in one file, as Kafka's PEM key stores want them."""
        certificate, key = self.sign(name, hosts=hosts, expired=expired)
        store = self._folder / f"{name}.pem"
        store.write_bytes(key.read_bytes() + certificate.read_bytes())
        return store


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _valid() -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now - timedelta(days=30), now + timedelta(days=30)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    first: datetime,
    last: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
