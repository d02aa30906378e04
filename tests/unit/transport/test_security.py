"""Settings, files and variables of a secured Kafka, without a broker."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from fedlog.job.environment import apply_environment, authentication_fields, classic_overrides
from fedlog.job.errors import JobError
from fedlog.job.loading import JobFile, dump, loads
from fedlog.job.model import Authentication
from fedlog.transport.errors import SecuritySettingsError
from fedlog.transport.kafka import KafkaTransport
from fedlog.transport.kafka.security import CredentialFiles, Security
from integration.certificates import Authority

JOB = """
apiVersion: fedlog.dev/v1alpha1
kind: FederatedJob
metadata: {name: job}
spec:
  task: {entrypoint: "fedlog.tasks.noop:task"}
  rounds: 1
  clients: [{name: site, replicas: 2}]
"""


def _job(**authentication: object) -> JobFile:
    overrides = [f"kafka.authentication.{k}={v}" for k, v in authentication.items()]
    return loads(JOB, overrides=overrides)


def _security(base: Path = Path(), environment: dict[str, str] | None = None, **fields: object):
    return Security.of(Authentication.model_validate(fields), base, environment or {})


@pytest.mark.parametrize(
    ("fields", "protocol"),
    [
        ({}, "PLAINTEXT"),
        ({"tls": True}, "SSL"),
        ({"caFile": "ca"}, "SSL"),
        ({"type": "Tls", "certificateFile": "c"}, "SSL"),
        ({"type": "ScramSha512", "username": "u", "passwordFile": "p"}, "SASL_SSL"),
        (
            {"type": "ScramSha256", "username": "u", "passwordFile": "p", "tls": False},
            "SASL_PLAINTEXT",
        ),
        ({"type": "OAuthBearer", "tokenFile": "t"}, "SASL_SSL"),
    ],
)
def test_the_protocol_follows_from_the_type(fields: dict[str, object], protocol: str) -> None:
    assert _security(**fields).protocol == protocol


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"type": "Tls"}, "KAFKA_SSL_CERTFILE"),
        ({"type": "ScramSha512", "passwordFile": "p"}, "KAFKA_SASL_USERNAME"),
        ({"type": "ScramSha512", "username": "u"}, "KAFKA_SASL_PASSWORD"),
        ({"type": "OAuthBearer"}, "KAFKA_SASL_OAUTH_TOKEN_FILE"),
    ],
)
def test_what_is_missing_is_named(fields: dict[str, object], cure: str) -> None:
    with pytest.raises(SecuritySettingsError, match=cure):
        _security(**fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "Tls", "tls": "false"}, "authentication.tls"),
        ({"caFile": "ca", "tls": "false"}, "authentication.caFile"),
        ({"certificateFile": "c"}, "authentication.certificateFile"),
        ({"type": "Tls", "keyFile": "k"}, "authentication.keyFile"),
        ({"username": "u"}, "authentication.username"),
        ({"type": "OAuthBearer", "passwordFile": "p"}, "authentication.passwordFile"),
        ({"type": "ScramSha512", "tokenFile": "t"}, "authentication.tokenFile"),
        ({"type": "Scram"}, "authentication.type"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, str], field: str) -> None:
    with pytest.raises(JobError) as raised:
        _job(**fields)
    assert field in str(raised.value)


def test_a_password_written_into_the_job_is_refused_and_not_repeated() -> None:
    text = JOB + "  kafka: {authentication: {type: ScramSha512, password: hunter2}}\n"
    with pytest.raises(JobError) as raised:
        loads(text)
    assert "password" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_the_password_of_the_environment_never_enters_the_job() -> None:
    variables = {"KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "hunter2"}
    job_file = loads(JOB, overrides=classic_overrides(variables))
    assert "hunter2" not in dump(job_file)
    applied = apply_environment(loads(JOB).job, variables)
    assert applied.spec.kafka.authentication == job_file.job.spec.kafka.authentication
    security = Security.of(job_file.job.spec.kafka.authentication, Path(), variables)
    assert security.password == "hunter2"
    assert "hunter2" not in repr(security)
    assert "hunter2" not in repr(security.read())


@pytest.mark.parametrize(
    ("variables", "fields"),
    [
        ({}, {}),
        ({"KAFKA_SECURITY_PROTOCOL": "ssl"}, {"tls": True}),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, {"type": "ScramSha512", "tls": True}),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"},
            {"type": "ScramSha256", "tls": False},
        ),
        ({"KAFKA_SASL_USERNAME": "u"}, {"type": "ScramSha512", "username": "u"}),
        ({"KAFKA_SSL_CERTFILE": "/c"}, {"type": "Tls", "certificateFile": "/c"}),
        ({"KAFKA_SASL_OAUTH_TOKEN_FILE": "/t"}, {"type": "OAuthBearer", "tokenFile": "/t"}),
        ({"KAFKA_SSL_CAFILE": "/ca"}, {"caFile": "/ca"}),
        (
            {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "KAFKA_SASL_USERNAME": "u"},
            {"type": "None", "tls": False},
        ),
    ],
)
def test_variables_stand_for_fields(variables: dict[str, str], fields: dict[str, object]) -> None:
    assert authentication_fields(variables) == fields


def test_plaintext_takes_the_jobs_authentication_away() -> None:
    job = _job(type="ScramSha512", username="u", passwordFile="p").job
    applied = apply_environment(job, {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"})
    assert Security.of(applied.spec.kafka.authentication, Path(), {}).protocol == "PLAINTEXT"


@pytest.mark.parametrize("variable", ["KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_MECHANISM"])
def test_an_unknown_name_is_refused_with_the_known_ones(variable: str) -> None:
    with pytest.raises(JobError, match="allowed"):
        authentication_fields({variable: "GSSAPI"})


def test_paths_start_from_the_job_and_those_of_variables_from_here(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret\n")
    job_file = loads(
        JOB,
        path=tmp_path / "job.yaml",
        overrides=[
            "kafka.authentication.type=ScramSha512",
            "kafka.authentication.tls=false",
            "kafka.authentication.username=u",
            "kafka.authentication.passwordFile=p",
        ],
    )
    security = Security.of(job_file.job.spec.kafka.authentication, job_file.base, {})
    assert security.read().sasl["sasl_plain_password"] == "secret"
    assert authentication_fields({"KAFKA_SSL_CAFILE": "ca"}) == {"caFile": f"{Path.cwd()}/ca"}
    KafkaTransport.of(job_file).close()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("one")
    files = CredentialFiles(Security(mechanism="SCRAM-SHA-512", username="u", password_file=path))
    first = files.current()
    assert files.current() is first
    fresh = tmp_path / "fresh"
    fresh.write_text("two")
    os.replace(fresh, path)
    assert files.current().sasl["sasl_plain_password"] == "two"


def test_half_swapped_files_leave_the_last_good_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("user")
    security = Security(
        encrypted=True,
        ca_file=authority.certificate,
        certificate_file=certificate,
        key_file=key,
    )
    files = CredentialFiles(security)
    first = files.current()
    caplog.set_level(logging.INFO)
    authority.sign("user", file="fresh")
    os.replace(tmp_path / "fresh.crt", certificate)
    assert files.current() is first
    assert files.current() is first
    assert caplog.text.count("the last credentials stay in use") == 1
    os.replace(tmp_path / "fresh.key", key)
    assert files.current() is not first
    key.unlink()
    assert files.current().context is not None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ca", b"no certificate", "no certificate in PEM form"),
        ("password", b"\n", "is empty"),
        ("password", b"\xff\xfe", "no text"),
        ("password", b"x" * 70_000, "larger than"),
        ("password", None, "cannot be read"),
        ("ca", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_quoted(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    files = {"ca": Authority(tmp_path).certificate, "password": tmp_path / "password"}
    files["password"].write_text("secret")
    files[name].unlink()
    if content is not None:
        files[name].write_bytes(content)
    security = Security(
        encrypted=True,
        mechanism="SCRAM-SHA-512",
        username="u",
        password_file=files["password"],
        ca_file=files["ca"],
    )
    with pytest.raises(SecuritySettingsError, match=words) as raised:
        security.read()
    assert str(files[name]) in str(raised.value)
    assert "xxx" not in str(raised.value)


def test_an_encrypted_key_is_refused_without_asking(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("user")
    locked = tmp_path / "locked.key"
    subprocess.run(
        [
            *("openssl", "pkey", "-in", str(key), "-out", str(locked)),
            *("-aes256", "-passout", "pass:hunter2"),
        ],
        check=True,
        timeout=30,
    )
    security = Security(
        encrypted=True,
        ca_file=authority.certificate,
        certificate_file=certificate,
        key_file=locked,
    )
    with pytest.raises(SecuritySettingsError, match="openssl pkey"):
        security.read()


def test_a_user_with_reserved_characters_is_escaped() -> None:
    security = Security(mechanism="SCRAM-SHA-512", username="a,b=c", password="p")
    first = security.read().mechanism("host").auth_bytes()
    assert first.startswith(b"n,,n=a=2Cb=3Dc,r=")


def test_the_end_of_a_certificate_is_read_from_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    valid, _ = authority.sign("valid")
    expired, _ = authority.sign("expired", expired=True)
    one = Security(certificate_file=valid).certificate_expiry()
    other = Security(certificate_file=expired).certificate_expiry()
    assert one is not None
    assert other is not None
    assert 30 <= (one - other).days <= 31
    assert Security(certificate_file=authority.certificate.with_name("x")).certificate_expiry() is (
        None
    )


def test_a_file_that_is_being_replaced_leaves_the_last_good_credentials(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("first")
    files = CredentialFiles(
        Security(mechanism="SCRAM-SHA-512", username="server", password_file=password)
    )
    before = files.current()
    password.unlink()
    assert files.current() == before
