"""A command that changes ROOT: carried out here where no daemon runs, else asked of the one that does.

Whichever it is, the command ends when the outcome is published, and shows the same answer.
"""

import time
from collections.abc import Callable
from typing import Any

from envfabric.core.errors import ConfigError, StoreError
from envfabric.service.daemon import Daemon
from envfabric.service.settings import Settings
from envfabric.specs.repository import SourceError
from envfabric.store.files import Files
from envfabric.store.requests import Answer, Asker, owner
from envfabric.store.root import Root, open_root
from envfabric.store.writer import Busy, Writer

POLL, RENEW = 0.2, 5.0
"""Seconds between two looks for the answer, and between two renewals of the request."""


CarryOut = Callable[[Callable[[], None]], Answer]
"""Carries an order out once ROOT is held and what it is given has been called; raises `Busy` where it is not."""


class _Taken(StoreError):
    """The request was taken by a daemon that is gone."""


def order(
    settings: Settings, command: str, arguments: dict[str, Any], on_wait: Callable[[], None] = lambda: None
) -> Answer:
    """Has the writer of ROOT carry out a command, whoever that is.

    `on_wait` is called again and again meanwhile. The repository is needed only where no daemon runs.
    Raises `ConfigError`, `SourceError`, `StoreError` and `OSError`.
    """
    root, carry_out = _carrying_out(settings, command, arguments, on_wait)
    try:
        return carry_out(lambda: None)
    except Busy:
        return _ask(root, command, arguments, on_wait, carry_out)
    except PermissionError as error:
        raise StoreError(
            f"{error.filename or root.path} can't be written to: {error.strerror}. ROOT belongs to "
            f"{owner(root.requests)}; run this command as that user."
        ) from error


def _carrying_out(
    settings: Settings, command: str, arguments: dict[str, Any], on_wait: Callable[[], None]
) -> tuple[Root, CarryOut]:
    """ROOT, and what carries the order out here where nobody else holds it."""
    reason: ConfigError | SourceError
    if settings.repo is not None or settings.root is None:
        try:
            daemon = Daemon(settings)
            return daemon.root, lambda before: daemon.carry_out(command, arguments, on_wait, before)
        except (ConfigError, SourceError) as error:
            # A daemon that runs may well do it: what it serves does not hang on what can be read here and now.
            if settings.root is None:
                raise
            reason = error
    else:
        reason = ConfigError(
            f"no daemon holds {settings.root}, and to do it here the spec repository is needed: use --repo, "
            "ENVFABRIC_REPO or repo in envfabric.toml"
        )
    root = open_root(settings.root)

    def only_where_held(before: Callable[[], None]) -> Answer:
        with Writer(root, Files()).acquire():
            before()
        raise reason

    return root, only_where_held


def _ask(
    root: Root,
    command: str,
    arguments: dict[str, Any],
    on_wait: Callable[[], None],
    carry_out: CarryOut,
) -> Answer:
    asker = Asker(root, Files())

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
                return carry_out(not_taken)
            except Busy:
                continue
            except _Taken:
                # Its last act may have been the answer.
                if (answer := asker.answer()) is not None:
                    return answer
                raise
    finally:
        asker.close()
