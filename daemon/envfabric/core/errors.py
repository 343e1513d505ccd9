"""The errors that people read, and the reasons that index.json may give.

A `SpecError` is about one spec and never leaves its row; a `ConfigError` is about how the
daemon was started and ends it with exit code 2; a `StoreError` is about ROOT itself.
"""

import errno
import re
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why a spec does not serve what it asks for (design, index.json)."""

    INVALID_SPEC = "invalid-spec"
    POLICY = "policy"
    LOCK_STALE = "lock-stale"
    UNRESOLVABLE = "unresolvable"
    BUILD_FAILED = "build-failed"
    FETCH = "fetch"
    NO_SPACE = "no-space"
    TIMEOUT = "timeout"
    VALIDATION = "validation"
    STORE = "store"
    INTERNAL = "internal"

    @property
    def passing(self) -> bool:
        """Whether trying again later, with the same content, can succeed."""
        return self in {Reason.FETCH, Reason.NO_SPACE, Reason.TIMEOUT, Reason.STORE, Reason.INTERNAL}


class FabricError(Exception):
    """Base of the errors that are shown to people as one message, without a traceback."""


class ConfigError(FabricError):
    """Wrong usage or configuration; the process ends with exit code 2."""


class StoreError(FabricError):
    """ROOT can't be used as it is now: gone, replaced, held by another writer."""


class HeldBack(FabricError):
    """A revision is not made true until somebody acts; what was published stays. The message says who and how."""


class SpecError(FabricError):
    """One spec can't become what it asks for.

    `message` says what is wrong and what to do in one or two sentences; `output` is the longer
    text (what uv said) that goes to failures/<workflow>/<node>.log.
    """

    def __init__(self, reason: Reason, message: str, output: str = "") -> None:
        told = redact(message)
        self.message = told if len(told) <= _MESSAGE_MOST else f"{told[: _MESSAGE_MOST - 1]}…"
        super().__init__(self.message)
        self.reason = reason
        self.output = redact(output)


_SPACE = {errno.ENOSPC, errno.EDQUOT}


def from_os_error(error: OSError, doing: str) -> SpecError:
    """A `SpecError` for a file operation on ROOT that failed while `doing` something."""
    where = f" ({error.filename})" if error.filename else ""
    what = f"{error.strerror or error}{where} while {doing}"
    if error.errno in _SPACE:
        return SpecError(
            Reason.NO_SPACE, f"{what}. Free space on the NAS; the build is tried again by itself."
        )
    todo = "Check the NAS mount"
    if error.errno == errno.ENOENT:
        todo += ", and where a folder of ROOT is gone run `envfabric init ROOT`"
    return SpecError(Reason.STORE, f"{what}. {todo}; the build is tried again by itself.")


# Up to the last @ before the path: a password may hold one.
_CREDENTIALS = re.compile(r"://[^/\s\"`]+@")
_MESSAGE_MOST = 1200
"""Longest message in characters: it stands in index.json, where everybody reads it."""


_hidden: dict[str, re.Pattern[str]] = {}
_LONG = 8
"""Characters from which on a secret is taken out of any text that it is a part of; a shorter one, which may be a part
of ordinary words, only where it stands by itself."""


def hide(secret: str) -> None:
    """Makes `redact` take this text out from now on, wherever it stands.

    One of less than four characters would take much else with it, and is not worth the name.
    """
    if len(secret) >= _LONG:
        _hidden[secret] = re.compile(re.escape(secret))
    elif len(secret) >= 4:
        _hidden[secret] = re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])")


def hidden() -> tuple[str, ...]:
    """What `hide` was told, for a process on another host that writes of the same things."""
    return tuple(_hidden)


def redact(text: str) -> str:
    """`text` without the user and password part of any URL in it, and without what `hide` was told."""
    text = _CREDENTIALS.sub("://***@", text)
    # The longest first: one may be a part of another.
    for secret in sorted(_hidden, key=len, reverse=True):
        text = _hidden[secret].sub("***", text)
    return text


def root_characters_are_valid(root: Path) -> bool:
    """Whether ROOT's path survives Ray's unquoted `bash -c "exec <py_executable> …"`."""
    return root.is_absolute() and re.fullmatch(r"[A-Za-z0-9/._-]+", str(root)) is not None
