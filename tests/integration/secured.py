"""An Apache Kafka with TLS, SCRAM and ACLs, and identities for it: right ones and wrong ones."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from fedlog.transport.apache import ApacheKafka, SecuredListeners
from fedlog.transport.kafka.security import Security
from integration.certificates import Authority
from processes import until

HOST = "localhost"
USERS = ("operator", "server", "client", "nobody")
SESSION_MS = 4000  # SASL sessions end while tests use them

Right = tuple[ResourceType, str, ACLResourcePatternType, ACLOperation]


def password(user: str) -> str:
    return f"Pa55-of-{user}"


class SecuredKafka:
    """The broker, its CA and the users; every file is in one folder."""

    def __init__(self, jars: Path, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.other_authority = Authority(folder, "other")
        self.listeners = SecuredListeners(
            self.authority.key_store("broker", (HOST,)),
            self.authority.certificate,
            {user: password(user) for user in USERS},
            host=HOST,
            oauth=True,
            session_ms=SESSION_MS,
        )
        self.broker = ApacheKafka(jars, secured=self.listeners)
        for user in USERS:
            self.authority.sign(user)
            (folder / f"{user}.password").write_text(password(user) + "\n")

    @property
    def tls(self) -> str:
        return f"{HOST}:{self.listeners.tls_port}"

    @property
    def sasl(self) -> str:
        return f"{HOST}:{self.listeners.sasl_port}"

    @property
    def sasl_plain(self) -> str:
        return f"{HOST}:{self.listeners.sasl_plain_port}"

    def mutual_tls(self, user: str) -> Security:
        return Security(
            encrypted=True,
            ca_file=self.authority.certificate,
            certificate_file=self.folder / f"{user}.crt",
            key_file=self.folder / f"{user}.key",
        )

    def scram(self, user: str, *, encrypted: bool = True, bits: int = 512) -> Security:
        return Security(
            encrypted=encrypted,
            mechanism=f"SCRAM-SHA-{bits}",
            username=user,
            password_file=self.folder / f"{user}.password",
            ca_file=self.authority.certificate if encrypted else None,
        )

    def bearer(self, user: str, *, lifetime_s: float = 600.0) -> Security:
        """With a token that nobody signed, as the broker takes it here."""
        now = time.time()
        parts = ({"alg": "none"}, {"sub": user, "iat": now - 100, "exp": now + lifetime_s})
        texts = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
        token = ".".join(text.decode().rstrip("=") for text in texts) + "."
        path = self.folder / f"{user}.{lifetime_s:g}.token"
        path.write_text(token)
        return Security(
            encrypted=True,
            mechanism="OAUTHBEARER",
            token_file=path,
            ca_file=self.authority.certificate,
        )

    def allow(self, user: str, rights: Iterable[Right]) -> None:
        """The same rights for the user of SCRAM and the owner of the certificate."""
        acls = [
            ACL(
                principal,
                "*",
                operation,
                ACLPermissionType.ALLOW,
                ResourcePattern(resource, name, pattern),
            )
            for principal in (f"User:{user}", f"User:CN={user}")
            for resource, name, pattern, operation in rights
        ]
        with self.admin() as admin:
            until(lambda: not admin.create_acls(acls)["failed"], "granting rights")

    def change_password(self, user: str, fresh: str) -> None:
        """Of SCRAM-SHA-512."""
        change = UserScramCredentialUpsertion(user, ScramMechanism.SCRAM_SHA_512, fresh)
        with self.admin() as admin:
            assert admin.alter_user_scram_credentials([change]) == {user: None}

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """By the plain listener on loopback, whose users may do everything."""
        client = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap_servers)
        try:
            yield client
        finally:
            client.close()


def everything() -> list[Right]:
    literal = ACLResourcePatternType.LITERAL
    return [
        (ResourceType.TOPIC, "*", literal, ACLOperation.ALL),
        (ResourceType.TRANSACTIONAL_ID, "*", literal, ACLOperation.ALL),
    ]


def server_rights(run: str) -> list[Right]:
    """What docs/securing-kafka.md gives a server: its topics and its transactional id."""
    prefixed = ACLResourcePatternType.PREFIXED
    return [
        *(
            (ResourceType.TOPIC, run, prefixed, operation)
            for operation in (
                ACLOperation.CREATE,
                ACLOperation.READ,
                ACLOperation.WRITE,
                ACLOperation.DELETE,
            )
        ),
        (ResourceType.TRANSACTIONAL_ID, run, ACLResourcePatternType.LITERAL, ACLOperation.WRITE),
    ]


def client_rights(run: str) -> list[Right]:
    """What docs/securing-kafka.md gives a client."""
    literal = ACLResourcePatternType.LITERAL
    return [
        *(
            (ResourceType.TOPIC, f"{run}.{topic}", literal, ACLOperation.READ)
            for topic in ("control", "model")
        ),
        *(
            (ResourceType.TOPIC, f"{run}.{topic}", literal, ACLOperation.WRITE)
            for topic in ("updates", "events")
        ),
    ]
