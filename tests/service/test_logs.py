"""Logs: one JSON object a line, of the level that was asked for, never with a credential."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from envfabric.core.errors import Reason, SpecError, redact
from envfabric.telemetry import journal, logs

SECRET = "https://user:s3cret@packages.example/simple"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    """Each test leaves the process's logging as it found it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_are_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard error is a file or the journal, each event is one JSON object on one line."""
    logs.configure()
    logs.get().info("built", spec="wf/a", commit="c1", digest="d1", text="two\nlines ä")
    logs.get().warning("odd")
    first, second = lines(capsys.readouterr().err)
    assert {name: first[name] for name in ("event", "level", "spec", "commit", "digest", "text")} == {
        "event": "built",
        "level": "info",
        "spec": "wf/a",
        "commit": "c1",
        "digest": "d1",
        "text": "two\nlines ä",
    }
    assert first["timestamp"].endswith("Z")
    assert second["level"] == "warning"


def test_terminal_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal an event is text for people."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure()
    logs.get().info("built", spec="wf/a")
    assert "built" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_form_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """The choice by terminal can be overruled, both ways."""
    logs.configure(json=False)
    logs.get().info("text")
    assert not capsys.readouterr().err.startswith("{")
    logs.configure(json=True)
    logs.get().info("text")
    assert lines(capsys.readouterr().err)[0]["event"] == "text"


@pytest.mark.parametrize("level", logs.LEVELS)
def test_level_is_the_least_that_is_written(capsys: pytest.CaptureFixture[str], level: str) -> None:
    """Nothing below the level is written, the level itself and what is above are."""
    logs.configure(level)
    log = logs.get()
    for name in logs.LEVELS:
        getattr(log, name)(name)
    order = ["debug", "info", "warning", "error"]
    assert [line["event"] for line in lines(capsys.readouterr().err)] == order[order.index(level) :]


@pytest.mark.parametrize("terminal", [False, True])
def test_credentials_are_not_written(capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    """User and password of a URL stay out of events and values; the rest of the URL stays readable."""
    logs.configure(json=not terminal)
    logs.get().error(f"can't reach {SECRET}", url=SECRET, both=f"{SECRET} and git+ssh://tok3n@host/x")
    text = capsys.readouterr().err
    assert "s3cret" not in text
    assert "user" not in text
    assert "tok3n" not in text
    assert text.count("https://***@packages.example/simple") == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_credentials_in_tracebacks_are_not_written(
    capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """An exception's text, its cause's and the values around it are as harmless as an event's."""
    logs.configure(json=not terminal)
    local = SECRET + "/local"
    try:
        try:
            raise ValueError(f"cause {SECRET} {len(local)}")
        except ValueError as error:
            raise RuntimeError(f"no answer from {SECRET}") from error
    except RuntimeError:
        logs.get().exception("failed")
    text = capsys.readouterr().err
    assert "no answer from https://***@packages.example/simple" in text
    assert "cause https://***@packages.example/simple" in text
    assert "Traceback" in text
    assert "s3cret" not in text
    if not terminal:
        assert len(lines(text)) == 1


@pytest.mark.parametrize("secret", ["s3cret", "s3@cret", "@s3cret", "s3cret@@"])
@pytest.mark.parametrize("terminal", [False, True])
def test_credentials_in_any_value_are_not_written(
    capsys: pytest.CaptureFixture[str], terminal: bool, secret: str
) -> None:
    """Exceptions, lists, tables and objects as values are as harmless as text, a password with @ too."""
    url = f"https://user:{secret}@packages.example/simple"

    class Odd:
        def __repr__(self) -> str:
            return f"<{url}>"

    logs.configure(json=not terminal)
    logs.get().error(
        "failed", error=OSError(2, url), many=[url, (url,)], table={"deep": [{"url": url}]}, odd=Odd()
    )
    text = capsys.readouterr().err
    assert "s3" not in text
    assert "cret" not in text
    assert "user" not in text
    assert text.count("https://***@packages.example/simple") == 5
    if not terminal:
        (line,) = lines(text)
        assert line["many"] == [
            "https://***@packages.example/simple",
            ["https://***@packages.example/simple"],
        ]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("https://user:p@ss@x.example/a@b", "https://***@x.example/a@b"),
        (
            "https://tok3n@x.example and http://a:b@y.example",
            "https://***@x.example and http://***@y.example",
        ),
        ("see https://x.example/a, or mail me@x.example", "see https://x.example/a, or mail me@x.example"),
        ("'https://x.example', 'me@x.example'", "'https://x.example', 'me@x.example'"),
    ],
)
def test_redacted_is_up_to_the_last_at_of_the_host(text: str, redacted: str) -> None:
    """All before a URL's host goes, a password with @ as a whole; what is no URL's stays."""
    assert redact(text) == redacted
    assert SpecError(Reason.FETCH, text, text).output == redacted


def test_bound_values_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    """What a caller binds for later events goes the same way, context variables too."""
    logs.configure()
    with structlog.contextvars.bound_contextvars(index=SECRET):
        logs.get().bind(url=SECRET).info("event")
    (line,) = lines(capsys.readouterr().err)
    assert line["url"] == line["index"] == "https://***@packages.example/simple"


def test_replaced_stream_is_followed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logger made earlier writes to what standard error is now: a progress display replaces it."""
    logs.configure()
    log = logs.get()
    log.info("first")
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    log.info("second")
    assert [line["event"] for line in lines(capsys.readouterr().err)] == ["first"]
    assert [line["event"] for line in lines(other.getvalue())] == ["second"]


@pytest.fixture
def journald(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket in the place of journald's; logging is set up as for the journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal, "leads_to_journal", lambda: True)
    monkeypatch.setattr(logs, "_to_journal", lambda *_: journal.JournalLogger("journald"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("journald")
        channel.settimeout(60)
        logs.configure("debug")
        yield channel


def fields(data: bytes) -> dict[str, str]:
    """An entry of journald's protocol."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, is_text, value = line.partition(b"=")
        if not is_text:
            (size,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_fields(journald: socket.socket) -> None:
    """Each value is a field of its own, the priority is the level's, and the message is for people."""
    logs.get().error("failed", spec="wf/a", exit_code=3, text="two\nlines ä")
    entry = fields(journald.recv(65536))
    assert entry["ENVFABRIC_SPEC"] == "wf/a"
    assert entry["ENVFABRIC_EXIT_CODE"] == "3"
    assert entry["ENVFABRIC_TEXT"] == "two\nlines ä"
    assert entry["MESSAGE"] == "failed spec=wf/a exit_code=3 text=two\nlines ä"
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("3", "envfabric")


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3")]
)
def test_the_journals_priority_is_the_levels(journald: socket.socket, level: str, priority: str) -> None:
    """`journalctl -p warning` shows warnings and errors."""
    getattr(logs.get(), level)("event")
    assert fields(journald.recv(65536))["PRIORITY"] == priority


def test_no_credential_reaches_the_journal(journald: socket.socket) -> None:
    """Events, values and tracebacks are redacted once they are text."""
    try:
        raise RuntimeError(f"no answer from {SECRET}")
    except RuntimeError as error:
        logs.get().exception(f"failed {SECRET}", error=error, many=[SECRET])
    data = journald.recv(65536)
    assert b"s3cret" not in data
    entry = fields(data)
    assert "Traceback" in entry["MESSAGE"]
    assert entry["ENVFABRIC_ERROR"] == "no answer from https://***@packages.example/simple"


def test_a_large_event_reaches_the_journal(journald: socket.socket) -> None:
    """What is too large for a datagram goes as a sealed file in memory, and a value is cut somewhere."""
    logs.get().info("large", output="x" * 10_000_000)
    data, descriptors, _, _ = socket.recv_fds(journald, 16, 1)
    assert data == b""
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        entry = fields(file.read())
    assert set(entry["ENVFABRIC_OUTPUT"]) == {"x"}
    assert len(entry["ENVFABRIC_OUTPUT"]) == 256 * 1024


def test_without_journald_the_line_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journald that is away ends nothing, and what was to be told is not lost."""
    monkeypatch.setattr(journal, "leads_to_journal", lambda: True)
    monkeypatch.setattr(logs, "_to_journal", lambda *_: journal.JournalLogger("/nowhere/socket"))
    logs.configure()
    logs.get().info("event", spec="wf/a")
    assert "MESSAGE=event spec=wf/a" in capsys.readouterr().err


def test_only_the_journals_own_stream_counts(tmp_path: Path) -> None:
    """Standard error leads to the journal where device and inode are those that systemd names, not by the variable."""
    code = "import envfabric.telemetry.journal as j; j.SOCKET = '/'; print(j.leads_to_journal())"
    with (tmp_path / "stderr").open("wb") as stream:
        own = os.fstat(stream.fileno())
        for named, expected in (
            (f"{own.st_dev}:{own.st_ino}", "True"),
            (f"{own.st_dev}:1", "False"),
            ("", "False"),
        ):
            env = {**os.environ, "JOURNAL_STREAM": named}
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stream, env=env, text=True
            )
            assert done.stdout.strip() == expected
