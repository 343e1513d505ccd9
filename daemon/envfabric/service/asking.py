"""A command that changes ROOT: carried out here where no daemon runs, else asked of the one that does.

Whichever it is, the command ends when the outcome is published, and shows the same answer.
"""

import time
from collections.abc import Callable
from typing import Any

from envfabric.core.errors import StoreError
from envfabric.service.daemon import Daemon
from envfabric.service.settings import Settings
from envfabric.store.files import Files
from envfabric.store.requests import Answer, Asker, owner
from envfabric.store.writer import Busy

POLL, RENEW = 0.2, 5.0
"""Seconds between two looks for the answer, and between two renewals of the request."""


class _Taken(StoreError):
    """The request was taken by a daemon that is gone."""


def order(
    settings: Settings, command: str, arguments: dict[str, Any], on_wait: Callable[[], None] = lambda: None
) -> Answer:
    """Has the writer of ROOT carry out a command, whoever that is.

    `on_wait` is called again and again meanwhile. Raises `ConfigError`, `SourceError`, `StoreError` and
    `OSError`.
    """
    daemon = Daemon(settings)
    try:
        return daemon.carry_out(command, arguments, on_wait)
    except Busy:
        return _ask(daemon, command, arguments, on_wait)
    except PermissionError as error:
        raise StoreError(
            f"{error.filename or daemon.root.path} can't be written to: {error.strerror}. ROOT belongs to "
            f"{owner(daemon.root.requests)}; run this command as that user."
        ) from error


def _ask(daemon: Daemon, command: str, arguments: dict[str, Any], on_wait: Callable[[], None]) -> Answer:
    asker = Asker(daemon.root, Files())

    def not_taken() -> None:
        if not asker.withdraw():
            raise _Taken(
                f"the daemon ended before it answered; whether {command} was done can be seen by `envfabric status`"
            )

    try:
        asker.ask(command, arguments)
        renewed = time.monotonic()
        while True:
            answer = asker.answer()
            if answer is not None:
                return answer
            on_wait()
            time.sleep(POLL)
            if time.monotonic() - renewed < RENEW:
                continue
            asker.renew()
            renewed = time.monotonic()
            try:
                # Where nobody holds ROOT any more, nobody will answer.
                return daemon.carry_out(command, arguments, on_wait, not_taken)
            except Busy:
                continue
            except _Taken:
                # Its last act may have been the answer.
                if (answer := asker.answer()) is not None:
                    return answer
                raise
    finally:
        asker.close()
