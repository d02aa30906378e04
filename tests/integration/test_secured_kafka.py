"""TLS, SCRAM, tokens and ACLs on the real Apache Kafka."""

import dataclasses
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kafka.admin import ACLOperation, ACLResourcePatternType, ResourceType

from fedlog import exit_codes
from fedlog.local.run import run as run_locally
from fedlog.transport.apache import ApacheKafka, SecuredListeners
from fedlog.transport.base import TopicSpec
from fedlog.transport.errors import (
    AuthenticationError,
    EncryptionError,
    NotAllowedError,
    SecuritySettingsError,
    TransportError,
)
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.kafka.security import Security
from integration.certificates import Authority
from integration.secured import (
    HOST,
    SESSION_MS,
    SecuredKafka,
    client_rights,
    password,
    server_rights,
)
from processes import until

pytestmark = pytest.mark.apache_kafka

QUICK_S = 10.0  # a refusal comes long before the deadline; on a busy machine, too
DEADLINE_S = 30.0


def _round_trip(kafka: SecuredKafka, servers: str, security: Security, name: str) -> None:
    transport = KafkaTransport(servers, security=security, deadline_s=DEADLINE_S)
    try:
        transport.create_topics([TopicSpec(name)])
        offset = transport.writer().send(name, b"large" * 100_000).result(DEADLINE_S)
        reader = transport.reader(name)
        until(lambda: bool(reader.poll(0.2)), "the record")
        bulk = transport.bulk_reader(900_000)
        assert list(bulk.read(name, 0, [offset], DEADLINE_S)) == [b"large" * 100_000]
        with (writer := transport.writer(transactional_id=name)).transaction():
            writer.send(name, b"small")
    finally:
        transport.close()


@pytest.mark.parametrize("way", ["mutual TLS", "SCRAM-512", "SCRAM-256", "no TLS", "token"])
def test_every_way_in_reads_and_writes(secured_kafka, new_name, way):
    kafka = secured_kafka
    servers, security = {
        "mutual TLS": (kafka.tls, kafka.mutual_tls("operator")),
        "SCRAM-512": (kafka.sasl, kafka.scram("operator")),
        "SCRAM-256": (kafka.sasl, kafka.scram("operator", bits=256)),
        "no TLS": (kafka.sasl_plain, kafka.scram("operator", encrypted=False)),
        "token": (kafka.sasl, kafka.bearer("operator")),
    }[way]
    _round_trip(kafka, servers, security, new_name(way.replace(" ", "-")))


def _refusals(kafka: SecuredKafka) -> dict[str, tuple[str, Security, type, str]]:
    """What is wrong -> address, settings, error, words that name the cure."""
    tls, scram = kafka.mutual_tls("operator"), kafka.scram("operator")
    change = dataclasses.replace
    other = kafka.other_authority
    expired = kafka.authority.sign("operator", expired=True, file="expired")
    alien = other.sign("operator", file="alien")
    plain = Security()
    by_address = f"127.0.0.1:{kafka.listeners.sasl_port}"
    return {
        "wrong password": (
            kafka.sasl,
            change(scram, password_file=None, password="hunter2-in-vain"),
            AuthenticationError,
            "KAFKA_SASL_PASSWORD",
        ),
        "unknown user": (kafka.sasl, change(scram, username="x"), AuthenticationError, "user 'x'"),
        "wrong CA": (
            kafka.sasl,
            change(scram, ca_file=other.certificate),
            EncryptionError,
            "--kafka-ca",
        ),
        "no CA": (kafka.sasl, change(scram, ca_file=None), EncryptionError, "the system's CAs"),
        "wrong host name": (by_address, scram, EncryptionError, "not for the name '127.0.0.1'"),
        "expired certificate": (
            kafka.tls,
            change(tls, certificate_file=expired[0], key_file=expired[1]),
            AuthenticationError,
            "it expired on",
        ),
        "certificate of another CA": (
            kafka.tls,
            change(tls, certificate_file=alien[0], key_file=alien[1]),
            AuthenticationError,
            "signed by the CA that the broker trusts",
        ),
        "no certificate": (
            kafka.tls,
            change(tls, certificate_file=None, key_file=None),
            AuthenticationError,
            "KAFKA_SSL_CERTFILE",
        ),
        "expired token": (
            kafka.sasl,
            kafka.bearer("operator", lifetime_s=-60.0),
            AuthenticationError,
            "token is fresh",
        ),
        "plain to TLS": (kafka.tls, plain, EncryptionError, "wants TLS"),
        "plain to a port with users": (kafka.sasl_plain, plain, EncryptionError, "wants a user"),
        "TLS to a plain port": (
            kafka.broker.bootstrap_servers,
            change(tls, certificate_file=None, key_file=None),
            EncryptionError,
            "without TLS",
        ),
        "users to a port without": (
            kafka.tls,
            change(scram, certificate_file=tls.certificate_file, key_file=tls.key_file),
            AuthenticationError,
            "takes no users",
        ),
        "unknown mechanism": (
            kafka.sasl,
            change(scram, mechanism="PLAIN"),
            AuthenticationError,
            "SCRAM-SHA-512",
        ),
        "key of another certificate": (
            kafka.tls,
            change(tls, key_file=expired[1]),
            SecuritySettingsError,
            "does not belong",
        ),
        "missing right": (kafka.sasl, kafka.scram("nobody"), NotAllowedError, "ACL"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "wrong password",
        "unknown user",
        "wrong CA",
        "no CA",
        "wrong host name",
        "expired certificate",
        "certificate of another CA",
        "no certificate",
        "expired token",
        "plain to TLS",
        "plain to a port with users",
        "TLS to a plain port",
        "users to a port without",
        "unknown mechanism",
        "key of another certificate",
        "missing right",
    ],
)
def test_a_refusal_is_one_error_at_once_that_names_the_cure(
    secured_kafka, caplog, monkeypatch, wrong
):
    servers, security, kind, cure = _refusals(secured_kafka)[wrong]
    monkeypatch.setattr(logging.getLogger("kafka"), "level", logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    transport = KafkaTransport(servers, security=security, deadline_s=DEADLINE_S)
    started = time.monotonic()
    with pytest.raises(kind) as raised:
        transport.partitions("anything")
    transport.close()
    assert time.monotonic() - started < QUICK_S
    message = str(raised.value)
    assert cure in message
    assert "\n" not in message
    told = message + caplog.text + repr(security)
    assert "hunter2" not in told
    assert "Pa55" not in told


def test_no_secret_is_logged_by_a_connection_that_works(secured_kafka, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kafka"), "level", logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    for security in (secured_kafka.scram("operator"), secured_kafka.bearer("operator")):
        transport = KafkaTransport(secured_kafka.sasl, security=security)
        transport.partitions("anything")
        transport.writer().close()
        transport.close()
    token = (secured_kafka.folder / "operator.600.token").read_text()
    assert "SASL" in caplog.text  # the library did talk
    assert password("operator") not in caplog.text
    assert token not in caplog.text


def test_a_missing_right_to_read_or_write_is_told_at_once(secured_kafka, new_name):
    operator = KafkaTransport(secured_kafka.sasl, security=secured_kafka.scram("operator"))
    name = new_name("describe-only")
    operator.create_topics([TopicSpec(name)])
    literal = ACLResourcePatternType.LITERAL
    secured_kafka.allow("nobody", [(ResourceType.TOPIC, name, literal, ACLOperation.DESCRIBE)])
    transport = KafkaTransport(secured_kafka.tls, security=secured_kafka.mutual_tls("nobody"))
    started = time.monotonic()
    reader = transport.reader(name)
    with pytest.raises(NotAllowedError, match=name):
        reader.poll(DEADLINE_S)
    with pytest.raises(NotAllowedError):
        transport.writer(transactional_id="somebody-else")
    assert time.monotonic() - started < 2 * QUICK_S
    transport.close()
    operator.close()


def test_a_changed_password_is_read_again_and_work_goes_on(secured_kafka, new_name):
    user, name = "operator", new_name("rotation")
    file = secured_kafka.folder / "rotating.password"
    shutil.copy(secured_kafka.folder / f"{user}.password", file)
    security = dataclasses.replace(secured_kafka.scram(user), password_file=file)
    transport = KafkaTransport(secured_kafka.sasl, security=security, deadline_s=DEADLINE_S)
    transport.create_topics([TopicSpec(name)])
    writer, reader = transport.writer(), transport.reader(name)
    secured_kafka.change_password(user, "Pa55-fresh")
    try:
        file.write_text("Pa55-fresh")
        # Sessions end within this time: each connection must prove its identity again.
        deadline = time.monotonic() + 2 * SESSION_MS / 1000
        sent = received = refused = 0
        while time.monotonic() < deadline or received < sent:
            if time.monotonic() < deadline:
                try:
                    writer.send(name, b"x").result(DEADLINE_S)
                    sent += 1
                except TransportError:
                    refused += 1  # its session ended while the file still had the old password
            received += len(reader.poll(0.1))
        assert received == sent > 10
        assert refused <= 1
        stale = dataclasses.replace(security, password_file=None, password=password(user))
        with pytest.raises(AuthenticationError):
            KafkaTransport(secured_kafka.sasl, security=stale).check()
    finally:
        transport.close()
        secured_kafka.change_password(user, password(user))


def test_a_swapped_certificate_is_used_and_work_goes_on(kafka_jars, tmp_path):
    """The broker stops trusting the CA of the first certificate: only the new one gets in."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    trusted, ca = tmp_path / "trusted.pem", tmp_path / "ca.pem"
    shutil.copy(first.certificate, trusted)
    ca.write_bytes(first.certificate.read_bytes() + second.certificate.read_bytes())
    store = first.key_store("broker", (HOST,))
    listeners = SecuredListeners(store, trusted)
    first.sign("user")
    security = Security(
        encrypted=True,
        ca_file=ca,
        certificate_file=tmp_path / "user.crt",
        key_file=tmp_path / "user.key",
    )
    with ApacheKafka(kafka_jars, tmp_path / "data", secured=listeners) as broker:
        kafka = SecuredKafka.__new__(SecuredKafka)
        kafka.broker = broker
        prefixed = ACLResourcePatternType.PREFIXED
        kafka.allow("user", [(ResourceType.TOPIC, "swap", prefixed, ACLOperation.ALL)])
        servers = f"{HOST}:{listeners.tls_port}"
        transport = KafkaTransport(servers, security=security, deadline_s=60.0)
        transport.create_topics([TopicSpec("swap")])
        writer, reader = transport.writer(), transport.reader("swap")
        writer.send("swap", b"before").result(DEADLINE_S)
        until(lambda: bool(reader.poll(0.2)), "the first record")

        old = tmp_path / "old"
        old.mkdir()
        for name in ("user.crt", "user.key"):
            shutil.copy(tmp_path / name, old / name)
        broker.stop()
        second.sign("user")
        shutil.copy(second.certificate, trusted)
        store.write_bytes(second.key_store("fresh", (HOST,)).read_bytes())
        broker.start()

        writer.send("swap", b"after").result(60.0)
        until(lambda: [each.value for each in reader.poll(0.2)] == [b"after"], "the second record")
        transport.close()
        stale = dataclasses.replace(
            security, certificate_file=old / "user.crt", key_file=old / "user.key"
        )
        with pytest.raises(AuthenticationError):
            KafkaTransport(servers, security=stale).check()


class Processes:
    """A server and two clients of a small job, each with an identity of its own."""

    def __init__(self, kafka: SecuredKafka, folder: Path, run: str, way: str) -> None:
        self.kafka = kafka
        self.folder = folder
        self.run = run
        self.way = way
        self.job = folder / "job.yaml"
        self.job.write_text(yaml.safe_dump(_job("secured")))
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, user: str, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        kafka = self.kafka
        variables = {"KAFKA_SSL_CAFILE": str(kafka.authority.certificate)}
        if self.way == "scram":
            variables |= {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_USERNAME": user}
            if user == "server":
                variables["KAFKA_SASL_PASSWORD"] = password(user)
            else:
                arguments += ("--kafka-password-file", str(kafka.folder / f"{user}.password"))
        else:
            variables["KAFKA_SSL_CERTFILE"] = str(kafka.folder / f"{user}.crt")
            arguments += ("--kafka-key", str(kafka.folder / f"{user}.key"))
        broker = kafka.sasl if self.way == "scram" else kafka.tls
        with (self.folder / f"{command}-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fedlog", command, str(self.job)),
                    *("--run", self.run, "--broker", broker, *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_clean_environment() | variables,
            )
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def _job(name: str, **kafka: object) -> dict[str, object]:
    return {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": name},
        "spec": {
            "task": {
                "entrypoint": "fedlog.tasks.noop:task",
                "parameters": {"sizeBytes": 400_000},  # bulk, not inside the records
            },
            "rounds": 3,
            "kafka": kafka,
            "clients": [{"name": "site", "replicas": 2}],
        },
    }


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "BOOTSTRAP_"))}


@pytest.mark.parametrize("way", ["scram", "tls"])
def test_a_job_needs_no_more_than_the_documented_rights(secured_kafka, tmp_path, way):
    run = secrets.token_hex(4)  # a name has eight characters of it
    identity = f"fedlog.default.secured.{run}"
    secured_kafka.allow("server", server_rights(identity))
    secured_kafka.allow("client", client_rights(identity))
    processes = Processes(secured_kafka, tmp_path, run, way)
    output = tmp_path / "output"
    try:
        # Who has no rights is told so, and does not disturb the others.
        nobody = processes.start("nobody", "client", "--group", "site", "--index", "0")
        assert nobody.wait(60) == exit_codes.DENIED
        assert "lacks a right on the topic" in processes.said()
        assert "Traceback" not in processes.said()

        clients = [
            processes.start("client", "client", "--group", "site", "--index", str(index))
            for index in (0, 1)
        ]
        server = processes.start("server", "server", "--output", str(output))
        until(lambda: server.poll() is not None, "the server's end", 90)
        assert server.returncode == exit_codes.OK, processes.said()
        for client in clients:
            assert client.wait(30) == exit_codes.OK, processes.said()
    finally:
        processes.end()
    assert json.loads((output / "result.json").read_text())["outcome"] == "Complete"
    written = processes.said() + "".join(
        path.read_text(errors="replace") for path in output.rglob("*") if path.is_file()
    )
    assert "Pa55" not in written
    assert "PRIVATE KEY" not in written


def test_a_whole_local_run_uses_the_secured_broker(secured_kafka, tmp_path, monkeypatch):
    folder = secured_kafka.folder
    authentication = {
        "type": "ScramSha512",
        "username": "operator",
        "passwordFile": str(folder / "operator.password"),
        "caFile": str(secured_kafka.authority.certificate),
    }
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "nobody")  # the command hears it, this does not
    job = _job("local", authentication=authentication)
    result = run_locally(job, broker=secured_kafka.sasl, runs=tmp_path, quiet=True, workers=1)
    assert result.succeeded
    written = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "Pa55" not in written


def test_a_local_run_that_is_refused_ends_before_it_starts(secured_kafka, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(_job("refused")))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "fedlog", "run", str(job), "--broker", secured_kafka.sasl),
            *("--kafka-user", "operator", "--kafka-ca", str(secured_kafka.authority.certificate)),
            *("--runs", str(tmp_path / "runs")),
        ],
        env=_clean_environment() | {"KAFKA_SASL_PASSWORD": "hunter2-in-vain"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == exit_codes.DENIED
    assert ended.stderr.startswith("error: the broker at localhost:")
    assert len(ended.stderr.splitlines()) == 1
    assert "hunter2" not in ended.stderr + ended.stdout
    assert not (tmp_path / "runs").exists()
