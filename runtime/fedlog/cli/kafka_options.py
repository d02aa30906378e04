"""The options for a secured Kafka, the same on every command that connects to one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from fedlog.job import environment

_PANEL = "Secured Kafka"

T = TypeVar("T")


def _option(flag: str, variable: str, metavar: str, text: str) -> Any:
    return Annotated[
        str | None,
        typer.Option(
            flag,
            envvar=variable,
            metavar=metavar,
            help=text,
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ]


# name of the parameter -> the variable that the option stands for, and its type
_OPTIONS: dict[str, tuple[str, Any]] = {
    name: (variable, _option(flag, variable, metavar, text))
    for name, flag, variable, metavar, text in (
        (
            "kafka_security",
            "--kafka-security",
            environment.KAFKA_SECURITY_PROTOCOL,
            "PROTOCOL",
            f"{', '.join(environment.PROTOCOLS)}. Default: what the other options need, over TLS.",
        ),
        (
            "kafka_mechanism",
            "--kafka-mechanism",
            environment.KAFKA_SASL_MECHANISM,
            "NAME",
            f"{', '.join(environment.MECHANISMS)}. Default: the first, for a user.",
        ),
        (
            "kafka_user",
            "--kafka-user",
            environment.KAFKA_SASL_USERNAME,
            "NAME",
            "User of SCRAM. The password is in a file, or in KAFKA_SASL_PASSWORD.",
        ),
        (
            "kafka_password_file",
            "--kafka-password-file",
            environment.KAFKA_SASL_PASSWORD_FILE,
            "FILE",
            "File with the user's password.",
        ),
        (
            "kafka_token_file",
            "--kafka-token-file",
            environment.KAFKA_SASL_OAUTH_TOKEN_FILE,
            "FILE",
            "File with the token of OAUTHBEARER.",
        ),
        (
            "kafka_ca",
            "--kafka-ca",
            environment.KAFKA_SSL_CAFILE,
            "FILE",
            "PEM file of the CA of the brokers. Default: the system's.",
        ),
        (
            "kafka_cert",
            "--kafka-cert",
            environment.KAFKA_SSL_CERTFILE,
            "FILE",
            "PEM file of the client's certificate.",
        ),
        (
            "kafka_key",
            "--kafka-key",
            environment.KAFKA_SSL_KEYFILE,
            "FILE",
            "PEM file of the certificate's key. Default: it is in the certificate's file.",
        ),
    )
}


def with_kafka_options(command: Callable[..., T]) -> Callable[..., T]:
    """The command with one more option for each part of spec.kafka.authentication.

    It gets them as `kafka`, a mapping like the environment: variable -> value, where one was given
    by flag or variable. Nothing secret is among them.
    """

    @functools.wraps(command)
    def wrapped(**given: Any) -> T:
        chosen = {
            variable: value
            for name, (variable, _) in _OPTIONS.items()
            if (value := given.pop(name)) is not None
        }
        return command(**given, kafka=chosen)

    signature = inspect.signature(command, eval_str=True)
    parameters = [each for name, each in signature.parameters.items() if name != "kafka"]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, (_, option) in _OPTIONS.items()
    ]
    # typer reads both of them.
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # a function takes it
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped
