"""Logs: the journal's fields under systemd, else JSON lines unless standard error is a terminal; never a credential.

Spec id, commit and digest are bound by the caller under the keys `spec`, `commit` and `digest`.
"""

import logging
import sys
from typing import Any

import structlog

from envfabric.core.errors import redact
from envfabric.telemetry import journal

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _redact_line(_: object, __: str, line: Any) -> str:
    # Last of all: whatever a value was, it is text by now.
    return redact(line)


def _logger(*_: object) -> structlog.WriteLogger:
    # sys.stderr is looked up at each call: a progress display replaces it while it is drawn.
    return structlog.WriteLogger(sys.stderr)


def _to_journal(*_: object) -> journal.JournalLogger:
    return journal.JournalLogger()


def configure(level: str = "info", json: bool | None = None) -> None:
    """Sets logging up for this process.

    `json=None` decides: the journal where standard error leads there, text on a terminal, JSON elsewhere.
    """
    to_journal = json is None and journal.leads_to_journal()
    as_json = not sys.stderr.isatty() if json is None else json
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if to_journal:
        processors.append(journal.render)
    else:
        processors += [
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
            _redact_line,
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_to_journal if to_journal else _logger,
        cache_logger_on_first_use=False,
    )


def get() -> structlog.typing.FilteringBoundLogger:
    """The process's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
