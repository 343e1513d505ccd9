"""requests/: how a command asks the daemon that holds ROOT to do something, over any file system.

A request is requests/<id>.json, written whole; <id>.taken while it is carried out; its answer is <id>.answer.
The asker renews its request while it waits: one that nobody waits for any more is not carried out, however
long the daemon was away. What a writer took and did not answer, because it was killed, the next one answers.
What is put there by hand and makes no sense is answered, or removed, and stops nothing.
"""

import contextlib
import json
import os
import pwd
import re
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.telemetry import logs

FORGOTTEN = 60.0
"""Seconds without a renewal after which nobody waits for a request."""
_ANSWER_AGE = 3600.0
_MOST_BYTES = 64 * 1024
_TIDY = 60.0
"""Seconds between two looks at what nobody has fetched, where no request brings one."""
_NAME = re.compile(r"([0-9a-f]{32})\.(json|taken)")


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks for, and who it was."""

    id: str
    command: str
    arguments: dict[str, Any]
    by: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: shown by the command, which exits 0 or 1 by `ok`."""

    ok: bool
    message: str
    data: dict[str, Any] = field(default_factory=dict)


class Asker:
    """A command's side of one request, from `ask` until `close`."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._id = uuid.uuid4().hex

    def ask(self, command: str, arguments: dict[str, Any]) -> None:
        """Leaves the request. Raises `StoreError` that says who may, and `OSError`."""
        self._root.require_marker()
        content = {"command": command, "arguments": arguments, "by": who(), "at": now()}
        try:
            self._files.write_atomic(self._path, json.dumps(content).encode(), durable=False)
        except PermissionError as error:
            raise StoreError(
                f"{self._root.requests} can't be written to: {error.strerror}. ROOT belongs to "
                f"{owner(self._root.requests)}; run this command as that user."
            ) from error

    def renew(self) -> None:
        """Says that somebody still waits."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def answer(self) -> Answer | None:
        """The answer, once there is one."""
        # A client that has looked in vain for a name sees it late, unless the folder is opened first.
        with contextlib.suppress(OSError):
            os.close(os.open(self._root.requests, os.O_RDONLY | os.O_DIRECTORY))
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            raw = json.loads(self._answer_path.read_bytes())
            return Answer(bool(raw["ok"]), str(raw["message"]), dict(raw["data"]))
        return None

    def withdraw(self) -> bool:
        """Takes the request back; whether it was still there, so that nobody else has carried it out."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Removes what is left of the request."""
        for path in (self._path, self._path.with_suffix(".taken"), self._answer_path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._root.requests / f"{self._id}.json"

    @property
    def _answer_path(self) -> Path:
        return self._root.requests / f"{self._id}.answer"


class Inbox:
    """The writer's side: requests as they come in, for one turn as the writer. Belongs to the loop's thread."""

    def __init__(self, root: Root, files: Files, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises where this process is no longer the writer: then nothing is taken."""
        self._root = root
        self._files = files
        self._check = check
        self._taken: set[str] = set()
        self._next_tidy = 0.0
        self._told: set[str] = set()
        self._log = logs.get()

    def take(self) -> list[Request]:
        """The requests that came in, each once.

        Raises `OSError` where the folder can't be read or written, and what `check` raises.
        """
        names = sorted(os.listdir(self._root.requests))
        # What is only waiting to be old enough costs no operation in each round.
        if not any(self._is_new(name) for name in names) and time.monotonic() < self._next_tidy:
            return []
        if not names:
            return []
        # Between two looks an idle writer does not know yet that it lost its lock.
        self._check()
        self._next_tidy = time.monotonic() + _TIDY
        clock = self._files.server_time(self._root.requests)
        taken = []
        for name in names:
            try:
                request = self._look_at(self._root.requests / name, clock)
            except FileNotFoundError:
                continue
            except OSError as error:
                # One that can't be dealt with keeps no other from being taken.
                if name not in self._told:
                    self._told.add(name)
                    self._log.warning("request can't be dealt with", name=name, error=str(error))
                continue
            if request is not None:
                taken.append(request)
        return taken

    def _is_new(self, name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and match[1] not in self._taken and name not in self._told

    def _look_at(self, path: Path, clock: float) -> Request | None:
        status = path.lstat()
        age = clock - status.st_mtime
        match = _NAME.fullmatch(path.name)
        if stat.S_ISDIR(status.st_mode):
            self._told.add(path.name)
        elif match is None:
            if age > _ANSWER_AGE:
                self._files.unlink(path)
        elif match[2] == "taken":
            if match[1] not in self._taken:
                self._answer_for_the_dead(path, match[1])
        elif age > FORGOTTEN or (request := self._read(path, match[1], status)) is None:
            self._files.unlink(path)
        else:
            # Before it is carried out: killed after this, it is never carried out twice.
            self._files.rename(path, path.with_suffix(".taken"))
            self._taken.add(match[1])
            return request
        return None

    def _answer_for_the_dead(self, path: Path, request_id: str) -> None:
        if os.path.lexists(path.with_suffix(".answer")):
            # Killed between the two: what it answered is true, and maybe not fetched yet.
            self._files.unlink(path)
            return
        told = "the daemon ended before it answered; whether it was done can be seen by `envfabric status`"
        self.answer(Request(request_id, "", {}, ""), Answer(False, told))

    def answer(self, request: Request, answer: Answer) -> None:
        """Answers a request. Raises `OSError`."""
        content = {"ok": answer.ok, "message": answer.message, "data": answer.data}
        path = self._root.requests / f"{request.id}.answer"
        self._files.write_atomic(path, json.dumps(content).encode(), durable=False)
        self._files.unlink(path.with_suffix(".taken"))
        self._taken.discard(request.id)

    def _read(self, path: Path, request_id: str, status: os.stat_result) -> Request | None:
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            if status.st_size > _MOST_BYTES:
                raise ValueError(f"it has {status.st_size} bytes")
            raw = json.loads(path.read_bytes())
            arguments = raw["arguments"]
            if not isinstance(arguments, dict):
                raise TypeError("arguments is no object")
            return Request(request_id, str(raw["command"]), arguments, str(raw.get("by", "")))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told = Answer(False, f"the request can't be understood: {error}")
            self.answer(Request(request_id, "", {}, ""), told)
            return None


def who() -> str:
    """The user and host that ask, for the daemon's log."""
    return f"{_user(os.geteuid())}@{os.uname().nodename}"


def owner(path: Path) -> str:
    """The user that a file belongs to, by name where this host knows one."""
    return _user(path.stat().st_uid)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
