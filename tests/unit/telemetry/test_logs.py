from __future__ import annotations

import contextvars
import logging
import re
import sys
import threading
from pathlib import Path

import pytest

from fedlog.telemetry.logs import RepeatFilter, configure, log_fields, one_line, redact

ours = logging.getLogger("fedlog.some.module")
library = logging.getLogger("a_library.client")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_line_has_time_level_role_and_message(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "server.log"
    configure("INFO", file=file, terminal=False, role="server")
    ours.info("round %d is over", 3)
    ours.debug("not asked for")
    (line,) = lines(file)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    server {12}round 3 is over", line
    )


def test_records_carry_job_client_and_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure(file=tmp_path / "log", terminal=False, role="server", job="digits")
    with log_fields(role="client", client="a/0"), log_fields(round=3):
        ours.warning("slow")
        ours.warning("slower", extra={"round": 4})
    ours.warning("done")
    slow, slower, done = caplog.records
    fields = ("role", "job", "client", "round")
    assert [getattr(slow, f) for f in fields] == ["client", "digits", "a/0", 3]
    assert getattr(slower, "round") == 4  # noqa: B009 - not a declared attribute
    assert [getattr(done, f) for f in fields] == ["server", "digits", "", None]
    assert " client a/0 " in lines(tmp_path / "log")[0]


def test_threads_of_two_clients_do_not_mix(tmp_path: Path) -> None:
    configure(file=tmp_path / "log", terminal=False)

    def speak(client: str) -> None:
        with log_fields(role="client", client=client):
            child = threading.Thread(
                target=contextvars.copy_context().run, args=(ours.info, "from %s", client)
            )
            child.start()
            child.join()

    threads = [threading.Thread(target=speak, args=(f"a/{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = lines(tmp_path / "log")
    assert len(said) == 4
    assert all(re.search(r"client (a/\d) +from \1$", line) for line in said)


def test_colours_are_for_terminals(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    configure(file=tmp_path / "log")
    ours.error("plain: this is no terminal")
    assert "\x1b" not in capsys.readouterr().err

    configure(file=tmp_path / "log", colour=True, role="server")
    ours.error("red")
    err = capsys.readouterr().err
    assert "\x1b[31m" in err
    assert "\x1b[34mserver" in err
    assert "\x1b" not in (tmp_path / "log").read_text()

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure()
    ours.error("on a terminal")
    assert "\x1b" in capsys.readouterr().err

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    configure()
    ours.error("on a terminal of somebody who wants none")
    assert "\x1b" not in capsys.readouterr().err


def test_what_others_say_can_neither_forge_a_line_nor_steer_a_terminal(tmp_path: Path) -> None:
    configure(file=tmp_path / "log", terminal=False)
    ours.warning("client says %s", "x\n2026-01-01 INFO server all is well\x1b[2J\u2028\ud800")
    (line,) = lines(tmp_path / "log")
    assert r"says x\n2026" in line
    assert r"\x1b[2J\u2028\ud800" in line


def test_a_trace_follows_its_line_indented(tmp_path: Path) -> None:
    configure(file=tmp_path / "log", terminal=False)
    try:
        raise ValueError("bad\nERROR forged")
    except ValueError:
        ours.exception("failed")
    first, *rest = lines(tmp_path / "log")
    assert first.endswith("failed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == "    ERROR forged"


def test_libraries_speak_from_warning_on_and_are_named(tmp_path: Path) -> None:
    configure("DEBUG", file=tmp_path / "log", terminal=False)
    library.info("chatter")
    library.warning("broker is away")
    (line,) = lines(tmp_path / "log")
    assert "[a_library.client] broker is away" in line


def test_a_second_configure_replaces_the_first(tmp_path: Path) -> None:
    configure(file=tmp_path / "one", terminal=False)
    configure(file=tmp_path / "two", terminal=False)
    ours.info("once")
    assert lines(tmp_path / "one") == []
    assert len(lines(tmp_path / "two")) == 1


class TestRepeats:
    now = 0.0

    def passed(self, logger: str, messages: list[str], level: int = logging.WARNING) -> list[int]:
        """Indices of what gets through when one message comes a second."""
        self.now = 0.0
        repeats = RepeatFilter(30.0, clock=lambda: self.now)
        through = []
        self.counts = []
        for index, message in enumerate(messages):
            self.now = float(index)
            record = logging.LogRecord(logger, level, "", 0, message, None, None)
            if repeats.filter(record):
                through.append(index)
                self.counts.append(getattr(record, "repeated"))  # noqa: B009 - not declared
        return through

    def test_a_burst_is_heard_once_a_window_with_a_count(self) -> None:
        messages = [f"connection {n} refused" for n in range(61)]
        assert self.passed("kafka.client", messages) == [0, 30, 60]
        assert self.counts == [0, 29, 29]

    def test_our_messages_about_different_clients_are_all_heard(self) -> None:
        messages = [f"client a/{n} is lost" for n in range(5)]
        assert self.passed("fedlog.rounds", messages) == [0, 1, 2, 3, 4]

    def test_below_warning_nothing_is_held_back(self) -> None:
        assert self.passed("fedlog.rounds", ["same"] * 3, logging.INFO) == [0, 1, 2]

    def test_the_count_is_in_the_line(self, tmp_path: Path) -> None:
        configure(file=tmp_path / "log", terminal=False)
        clock = [0.0]
        (handler,) = [h for h in logging.getLogger().handlers if hasattr(h, "maxBytes")]
        handler.filters[-1] = RepeatFilter(30.0, clock=lambda: clock[0])
        for second in (0.0, 1.0, 2.0, 40.0):
            clock[0] = second
            library.warning("broker is away")
        first, second_line = lines(tmp_path / "log")
        assert first.endswith("broker is away")
        assert second_line.endswith("broker is away (and 2 more like it)")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("sasl_plain_password='hunter2', x=1", "sasl_plain_password=***, x=1"),
        ('{"api_key": "abc", "b": 1}', '{"api_key": ***, "b": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("http://me:pw@host:9092/x", "http://***@host:9092/x"),
        ("tokens: counted per round", "tokens: *** per round"),
        ("round 3: 5 of 5 clients", "round 3: 5 of 5 clients"),
    ],
    ids=["password", "json", "header", "url", "overcautious", "harmless"],
)
def test_credentials_are_struck_out(text: str, written: str) -> None:
    assert redact(text) == written


def test_accents_and_emoji_are_printable() -> None:
    assert one_line("Zürich ✓ 日本") == "Zürich ✓ 日本"
