"""Logs: one JSON object a line, of the level that was asked for, never with a credential."""

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from envfabric.core.errors import Reason, SpecError, redact
from envfabric.telemetry import logs

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
